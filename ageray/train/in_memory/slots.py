"""How the machine is shared out among trainings that run side by side."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import ray
import torch

from ageray import cluster
from ageray.errors import UserError
from ageray.experiment import Scale


class Share(NamedTuple):
    """Folds at once, and what each takes: logical CPUs, GPUs (a fraction where several share one) and compute threads (0: all cores)."""

    folds: int
    cpus: float
    gpus: float
    threads: int

    def task(self, function: Callable[..., Any]) -> Any:
        """The function as a Ray task that takes one fold's share."""
        variables = cluster.environment(bool(self.gpus))
        return ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, runtime_env={"env_vars": variables})(
            function
        )

    def map_unordered(
        self, function: Callable[..., Any], calls: Iterable[tuple[int, tuple[Any, ...]]]
    ) -> Generator[tuple[int, Any], None, None]:
        """Number and outcome (a reference) of each call, `number, arguments`, as it ends; no more at once than there are shares. What still runs
        is stopped when the caller stops."""
        task, waiting, running = self.task(function), list(calls)[::-1], dict[Any, int]()
        try:
            while waiting or running:
                while waiting and len(running) < self.folds:
                    number, arguments = waiting.pop()
                    running[task.remote(*arguments)] = number
                [ready], _ = ray.wait(list(running), num_returns=1)
                yield running.pop(ready), ready
        finally:
            for left_over in running:
                ray.cancel(left_over, force=True)


def share_out(scale: Scale) -> Share:
    """The machine's share of a fold. Raises UserError if the cluster lacks what `scale` asks for."""
    nodes = cluster.nodes()
    cpus, gpus = (sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU"))
    largest = max(node.get("CPU", 0) for node in nodes)
    if scale.gpu is True and not gpus:
        raise UserError("scale.gpu=true: the cluster has no GPU; use scale.gpu=auto")
    if scale.cpus_per_worker > largest:
        raise UserError(
            f"scale.cpus_per_worker={scale.cpus_per_worker:g}: no machine has more than {largest:g} logical CPUs; lower it"
        )
    if gpus and scale.gpu is not False:
        at_once = scale.fold_workers or int(gpus)
        share = 1 / math.ceil(at_once / gpus)
    else:
        # alone on this machine Ray may have more logical CPUs than there are cores, so that decoding never waits
        cores = min(cpus, os.cpu_count() or 1) if len(nodes) == 1 else cpus
        at_once, share = scale.fold_workers or max(1, int(cores // scale.cpus_per_worker)), 0.0
    taken = min(scale.cpus_per_worker, cpus / at_once)
    cluster.check_fits(f"scale.cpus_per_worker={scale.cpus_per_worker:g}", 1, {"CPU": taken, "GPU": share})
    return Share(
        at_once, taken, share, scale.threads or (0 if at_once == 1 else max(1, int(scale.cpus_per_worker)))
    )


@contextmanager
def on_device(threads: int) -> Iterator[torch.device]:
    """In a task: its GPU, or the CPU with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or os.cpu_count() or 1)
    try:
        yield torch.device("cuda" if ray.get_gpu_ids() else "cpu")
    finally:
        torch.set_num_threads(before)
