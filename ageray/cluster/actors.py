"""Who does what in the cluster at hand: actors that hold the model, and CPUs left to read, decode and detect."""

from __future__ import annotations

from typing import Any, NamedTuple

from ageray import cluster
from ageray.errors import UserError
from ageray.experiment import Scale

_ALONE = 4  # logical CPUs up to which one actor computes on all cores


class ActorPool(NamedTuple):
    """The actors that hold the model, and what each takes: logical CPUs, GPUs and compute threads (0: all cores)."""

    actors: int
    cpus: float
    gpus: int
    threads: int

    def each(self) -> dict[str, Any]:
        """What Ray is told of each actor: what it takes, and the variables of its process."""
        return {
            "num_cpus": self.cpus,
            "num_gpus": self.gpus,
            "runtime_env": {"env_vars": cluster.environment(bool(self.gpus))},
        }


def share_out(scale: Scale) -> ActorPool:
    """Actors for the model, with CPUs left to decode: one a GPU; without GPUs one on all cores of a small machine, or a single-threaded one
    for every other CPU.

    Raises UserError for what the cluster could never run.
    """
    nodes = cluster.nodes()
    cpus, gpus = sum(node.get("CPU", 0) for node in nodes), int(sum(node.get("GPU", 0) for node in nodes))
    if scale.gpu is True and not gpus:
        raise UserError("scale.gpu=true: the cluster has no GPU; use scale.gpu=auto")
    on_gpu = gpus > 0 and scale.gpu is not False
    each = scale.cpus_per_worker
    fit = cluster.holds(nodes, {"CPU": each, "GPU": int(on_gpu)})
    if scale.score_workers:
        actors = scale.score_workers
    elif on_gpu:
        actors = max(1, fit)
    else:
        actors = 1 if cpus <= _ALONE else max(1, int(cpus / 2 / each))
    if on_gpu and actors > gpus:
        raise UserError(
            f"scale.score_workers={actors}: each takes a GPU, and there are {gpus}; use 0 for all of them"
        )
    taken = f"{actors} scoring actors with scale.cpus_per_worker={each:g}"
    if actors * each + 1 > cpus:
        raise UserError(
            f"{taken} leave none of {cpus:g} logical CPUs for decoding; lower one, or raise scale.local_cpus"
        )
    if actors > fit:
        raise UserError(
            f"{taken}{' and a GPU each' * on_gpu} do not fit the cluster's {len(nodes)} nodes; lower one of the two"
        )
    return ActorPool(actors, each, int(on_gpu), scale.threads or (0 if actors == 1 else max(1, int(each))))


def describe(team: ActorPool, faces: int, photos: int) -> str:
    """The team and the sizes of its batches, for a reader."""
    place = "a GPU" if team.gpus else f"{team.threads or 'all'} core{'s' * (team.threads != 1)}"
    actors = f"{team.actors} actor{'s' * (team.actors > 1)} on {place}{' each' * (team.actors > 1)}"
    return f"{actors}, {faces} faces a batch; other CPUs decode {photos} images a task"
