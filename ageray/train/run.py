"""Training on Ray: workers that stream their faces and run the plain loop as one; after a loss they go on from the last checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from threading import Thread
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ageray import cluster, storage
from ageray.errors import UserError
from ageray.experiment import Experiment
from ageray.train import loader, worker
from ageray.train.plan import Plan

_RAYS = "ray"
"""What Ray Train itself keeps of a run, in its folder."""
Record = dict[str, Any]
Show = Callable[[Record], None]


def train(experiment: Experiment, plan: Plan, show: Show) -> None:
    """Trains on the connected cluster until the run folder has a bundle; continues a run that was interrupted.

    `show` receives progress (`kind` "step") and epoch records (`kind` "epoch") as they come. A run whose worker or node is lost goes on by
    itself, `scale.max_failures` times. Raises UserError if the cluster can never hold the workers, or storage fails: the last checkpoint is
    whole then.
    """
    scaling = _scaling(experiment)
    rows = loader.sources(experiment, plan)
    for attempt in range(experiment.scale.max_failures + 1):
        try:
            _fit(
                {"experiment": experiment.model_dump(mode="json"), "plan": plan, "rows": rows},
                scaling,
                plan.folder,
                show,
            )
        except TrainingFailedError:
            if attempt == experiment.scale.max_failures:
                raise
            show(
                {
                    "kind": "note",
                    "text": f"a worker was lost; going on from the last checkpoint ({attempt + 1} of {experiment.scale.max_failures})",
                }
            )
            continue
        return


class _WouldComeAgain(Exception):
    """An attempt that failed for a reason that the next would meet too."""


def _fit(settings: dict[str, Any], scaling: ScalingConfig, folder: str, show: Show) -> None:
    """One attempt."""
    # where the driver is, so that it outlives every node that may be lost
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    queue, final = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here}), list[str | None]()
    filesystem, path = storage.filesystem(folder)
    run = RunConfig(  # type: ignore[call-arg]  # its type is that of the Ray Train before this one
        name=_RAYS,
        storage_path=path,
        storage_filesystem=filesystem,
        failure_config=FailureConfig(max_failures=0),
        worker_runtime_env={"env_vars": cluster.environment(bool(scaling.use_gpu))},
    )
    trainer = TorchTrainer(
        worker.work, train_loop_config={**settings, "queue": queue}, scaling_config=scaling, run_config=run
    )
    listener = Thread(target=_listen, args=(queue, show, final), daemon=True)
    listener.start()
    try:
        trainer.fit()
    except TrainingFailedError as error:
        queue.put(None)
        listener.join()
        mistakes = [mistake for mistake in final if mistake is not None]
        if mistakes:
            raise UserError(mistakes[0]) from None
        if final:
            raise _WouldComeAgain(str(error)) from error
        raise
    finally:
        queue.put(None)
        listener.join()
        queue.shutdown()
        with suppress(UserError):  # the storage that a run stopped for
            storage.remove_tree(storage.join(folder, _RAYS))


def _listen(queue: Queue, show: Show, final: list[str | None]) -> None:
    while (record := queue.get()) is not None:
        if record["kind"] == "final":
            final.append(record["mistake"])
        else:
            show(record)


def _scaling(experiment: Experiment) -> ScalingConfig:
    """How many workers with what. Raises UserError if the cluster can never hold them beside one CPU that decodes."""
    scale = experiment.scale
    least, most = scale.workers if isinstance(scale.workers, tuple) else (scale.workers, scale.workers)
    gpus = sum(node.get("GPU", 0) for node in cluster.nodes())
    if scale.gpu is True and gpus < least:
        raise UserError(
            f"scale.gpu=true: the cluster has {gpus:g} GPUs for {least} workers; set scale.gpu=false or add GPUs"
        )
    use_gpu = gpus >= least if scale.gpu == "auto" else scale.gpu
    needed = cluster.pin_to_on_demand({"CPU": scale.cpus_per_worker, "GPU": int(use_gpu)})
    room = _room(needed, loader.ALIGNER_CPUS if experiment.align.placement == "actors" else 0)
    if room < least:
        raise UserError(
            f"scale.workers={least}: the cluster has room for {room} workers of {scale.cpus_per_worker:g} CPUs"
            f"{' and a GPU' if use_gpu else ''} each beside one CPU that decodes; lower it, or add nodes"
        )
    number: Any = (
        least if least == most else (least, min(most, room))
    )  # Ray's type does not know its own pair
    return ScalingConfig(num_workers=number, use_gpu=use_gpu, resources_per_worker=needed)


def _room(needed: dict[str, float], beside: float) -> int:
    """How many workers fit on the nodes, with `beside` CPUs more each, if one CPU is left to decode."""
    nodes = cluster.nodes()
    spare = sum(node.get("CPU", 0) for node in nodes) - 1
    return min(cluster.holds(nodes, needed), int(spare / (needed["CPU"] + beside) + 1e-6))
