"""Training on Ray, the driver's side: starts the workers of a plan and restarts them after a loss.

Plan -> TorchTrainer of `ageray.train.worker` -> the run folder with its bundle
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from threading import Thread
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ageray import cluster, config, storage
from ageray.errors import UserError
from ageray.experiment import Experiment
from ageray.storage.lease import Lease
from ageray.train import loader, worker
from ageray.train.files import RAY
from ageray.train.plan import Plan, worker_range

Record = dict[str, Any]
Show = Callable[[Record], None]


def train(experiment: Experiment, plan: Plan, show: Show) -> None:
    """Trains on the connected cluster until the run folder has a bundle; continues an interrupted
    run.

    show: receives progress (`kind` "step" and "teacher"), epoch records (`kind` "epoch") and notes
    as they come. If a worker or node is lost, training continues from the last checkpoint, at most
    `scale.max_failures` times. Raises UserError if the cluster can never fit the workers, or
    storage fails; the last checkpoint is whole then.
    """
    scaling = _scaling(experiment)
    rows = loader.sources(experiment, plan)
    settings = {
        "experiment": experiment.model_dump(mode="json"),
        "located": config.with_absolute_paths(experiment).model_dump(mode="json"),
        "plan": plan,
        "rows": rows,
    }
    with Lease(plan.folder, "training"):
        _train(settings, scaling, plan, show, experiment.scale.max_failures)


def _train(settings: dict[str, Any], scaling: ScalingConfig, plan: Plan, show: Show, failures: int) -> None:
    for attempt in range(failures + 1):
        try:
            _fit(settings, scaling, plan, show)
        except (TrainingFailedError, RayActorError):  # or the process of Train's controller
            if attempt == failures:
                raise
            text = f"a worker was lost; going on from the last checkpoint ({attempt + 1} of {failures})"
            show({"kind": "note", "text": text})
            continue
        return


class _PermanentError(Exception):
    """An attempt failed for a reason that the next attempt would meet too."""


def _fit(settings: dict[str, Any], scaling: ScalingConfig, plan: Plan, show: Show) -> None:
    """One attempt."""
    # the queue's actor runs on the driver's node, so that it outlives every node that may be lost
    driver_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": driver_node})
    final = list[UserError | None]()
    filesystem, path = storage.filesystem(plan.folder)
    run = RunConfig(  # type: ignore[call-arg]  # its type is that of the Ray Train before this one
        name=RAY,
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
        _stop(listener, queue)
        for mistake in final:
            if mistake is not None:
                raise mistake from None
        if final:
            raise _PermanentError(str(error)) from error
        raise
    finally:
        _stop(listener, queue)
        queue.shutdown()
        with suppress(UserError):  # storage that failed is why the run stopped
            storage.remove_tree(plan.files.ray)


def _listen(queue: Queue, show: Show, final: list[UserError | None]) -> None:
    """Passes records on until None; collects in `final` the mistakes that end the run."""
    with suppress(RayActorError):  # the queue's process is lost: the workers meet it too, and fail
        while (record := queue.get()) is not None:
            if record["kind"] == "final":
                final.append(record["mistake"])
            else:
                show(record)


def _stop(listener: Thread, queue: Queue) -> None:
    with suppress(RayActorError):
        queue.put(None)
    listener.join()


def _scaling(experiment: Experiment) -> ScalingConfig:
    """How many workers with what resources.

    Raises UserError if the cluster can never fit them beside one CPU that decodes.
    """
    scale = experiment.scale
    least, most = worker_range(scale)
    gpus = sum(node.get("GPU", 0) for node in cluster.nodes())
    if scale.gpu is True and gpus < least:
        raise UserError(
            f"scale.gpu=true: the cluster has {gpus:g} GPUs for {least} workers; "
            "set scale.gpu=false or add GPUs"
        )
    use_gpu = gpus >= least if scale.gpu == "auto" else scale.gpu
    resources = cluster.pin_to_on_demand({"CPU": scale.cpus_per_worker, "GPU": int(use_gpu)})
    aligner_cpus = loader.ALIGNER_CPUS if experiment.align.placement == "actors" else 0
    room = _room(resources, aligner_cpus)
    if room < least:
        share = "CPUs and a GPU" if use_gpu else "CPUs"
        raise UserError(
            f"scale.workers={least}: the cluster has room for {room} workers of {scale.cpus_per_worker:g} "
            f"{share} each beside one CPU that decodes; "
            "lower it, or add nodes"
        )
    # Ray accepts a pair (least, most), which its type does not say
    number: Any = least
    if least < most:
        number = (least, min(most, room))
    return ScalingConfig(num_workers=number, use_gpu=use_gpu, resources_per_worker=resources)


def _room(resources: dict[str, float], further_cpus: float) -> int:
    """How many workers fit, with `further_cpus` more each, if one CPU is left to decode."""
    nodes = cluster.nodes()
    spare = sum(node.get("CPU", 0) for node in nodes) - 1
    by_cpu = int(spare / (resources["CPU"] + further_cpus) + 1e-6)
    return min(cluster.capacity(nodes, resources), by_cpu)
