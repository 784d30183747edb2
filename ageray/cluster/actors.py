"""Dividing the cluster: how many actors hold the model, and which CPUs remain to read, decode and
detect.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ageray import cluster
from ageray.cluster import resources
from ageray.errors import UserError
from ageray.experiment import Scale

_SMALL = 4
"""Logical CPUs up to which one actor computes on all cores."""


_TO_READ_AND_DECODE = 2
"""Logical CPUs that these two stages need at once."""


_CUTTING = 0.3
"""Share of a GPU's CPUs whose threads cut canvases where the GPU finds the faces. Others decode.
Cutting takes 0.24 to 0.4 of what both take, at 1 and 12 megapixels (docs/benchmarks.md)."""


class ActorPool(NamedTuple):
    """The number of actors that hold the model, and what each takes: logical CPUs, GPUs, compute
    threads.

    0 threads means all cores.
    """

    actors: int
    cpus: float
    gpus: int
    threads: int

    def options(self) -> dict[str, Any]:
        """Ray's options for each actor: its resources, and the variables of its process."""
        return {
            "num_cpus": self.cpus,
            "num_gpus": self.gpus,
            "max_restarts": cluster.LOSSES,
            "runtime_env": {"env_vars": cluster.environment(bool(self.gpus))},
        }


def plan_actors(scale: Scale, detecting: bool = False) -> ActorPool:
    """The actors for the model, with CPUs left to decode.

    detecting: whether they detect faces too if they have GPUs; then each has _CUTTING of the CPUs
    of its machine, divided by its GPUs.

    With GPUs: one actor a GPU. Without: one on all cores of a small machine, or else a
    single-threaded one for every other CPU. Where it would leave but one logical CPU, a single
    actor takes none: a task that reads would wait for one that decodes, and that for its CPU, and
    Ray Data lets a block pass only every ten seconds then. Raises UserError for what the cluster
    can never run.
    """
    nodes = cluster.nodes()
    cpus, gpus = cluster.total(nodes, "CPU"), int(cluster.total(nodes, "GPU"))
    if scale.gpu is True and not gpus:
        raise UserError("scale.gpu=true: the cluster has no GPU; use scale.gpu=auto")
    on_gpu = gpus > 0 and scale.gpu is not False
    cpus_each = scale.cpus_per_worker
    if on_gpu and detecting:
        cpus_each = max(cpus_each, _cpus_to_cut(nodes))
    room = cluster.capacity(nodes, {"CPU": cpus_each, "GPU": int(on_gpu)})
    if scale.score_workers:
        actors = scale.score_workers
    elif on_gpu:
        actors = max(1, room)
    elif cpus <= _SMALL:
        actors = 1
    else:
        actors = max(1, int(cpus / 2 / cpus_each))
    if on_gpu and actors > gpus:
        text = f"scale.score_workers={actors}: each takes a GPU, and there are {gpus}"
        raise UserError(f"{text}; use 0 for all of them")
    settings = f"{actors} scoring actors with scale.cpus_per_worker={cpus_each:g}"
    if actors * cpus_each + 1 > cpus:
        text = f"{settings} leave none of {cpus:g} logical CPUs for decoding"
        raise UserError(f"{text}; lower one, or raise scale.local_cpus")
    if actors > room:
        text = f"{settings}{' and a GPU each' * on_gpu} do not fit the cluster's {len(nodes)} nodes"
        raise UserError(f"{text}; lower one of the two")
    threads = 0 if actors == 1 else max(1, int(cpus_each))
    if actors == 1 and cpus - cpus_each < _TO_READ_AND_DECODE:
        cpus_each = 0
    return ActorPool(actors, cpus_each, int(on_gpu), scale.threads or threads)


def detects_on_gpu(scale: Scale, pool: ActorPool) -> bool:
    """Whether the actors find the faces, as `scale.detect` says. Raises UserError if they have no
    GPU for it.
    """
    if scale.detect == "gpu" and not pool.gpus:
        reason = "the cluster has no GPU"
        if scale.gpu is False:
            reason = "scale.gpu=false leaves the actors none"
        raise UserError(f"scale.detect=gpu: {reason}; use scale.detect=auto")
    return pool.gpus > 0 and scale.detect != "cpu"


def _cpus_to_cut(nodes: list[resources.Resources]) -> int:
    """CPUs of an actor whose threads cut canvases, on the machine that has the fewest a GPU."""
    shares = []
    for node in nodes:
        if node.get("GPU", 0) >= 1:
            shares.append(node.get("CPU", 0) / node["GPU"])
    return int(_CUTTING * min(shares, default=0))


def describe(pool: ActorPool, faces: int, photos: int, detecting: bool = False) -> str:
    """The pool in words. faces, photos: of a batch of the model and of a decoding task. detecting:
    whether the actors find the faces."""
    device = f"{pool.threads or 'all'} core{'s' * (pool.threads != 1)}"
    if pool.gpus:
        device = "a GPU"
    if detecting:
        device = f"a GPU with the detector and {pool.cpus:g} CPU{'s' * (pool.cpus != 1)}"
    several = pool.actors > 1
    actors = f"{pool.actors} actor{'s' * several} on {device}{' each' * several}"
    return f"{actors}, {faces} faces a batch; other CPUs decode {photos} images a task"
