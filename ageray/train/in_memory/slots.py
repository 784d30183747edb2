"""Task slots: how many trainings run at the same time, and the CPUs, GPUs and threads of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from threading import Event
from typing import Any, NamedTuple

import ray
import torch

from ageray import cluster
from ageray.errors import UserError
from ageray.experiment import Scale
from ageray.machine.cpus import usable_cpus

_SECONDS_BETWEEN_LOOKS = 1.0  # at `closed`


class TaskSlots(NamedTuple):
    """folds: trainings at the same time. Each takes `cpus` logical CPUs, `gpus` GPUs (a fraction if
    several share one) and `threads` compute threads (0: all cores)."""

    folds: int
    cpus: float
    gpus: float
    threads: int

    def task(self, function: Callable[..., Any]) -> Any:
        """The function as a Ray task that takes one slot."""
        variables = cluster.environment(bool(self.gpus))
        return ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, runtime_env={"env_vars": variables})(
            function
        )

    def map_unordered(
        self,
        function: Callable[..., Any],
        calls: Iterable[tuple[int, tuple[Any, ...]]],
        closed: Event | None = None,
    ) -> Generator[tuple[int, Any], None, None]:
        """Runs the calls (number, arguments), at most `folds` at once.

        Yields the number and a reference to the result of each call as it ends. Calls that still
        run are cancelled when the caller closes the generator. Raises CancelledError, and cancels
        them, once `closed` is set.
        """
        task, waiting, running = self.task(function), list(calls)[::-1], dict[Any, int]()
        try:
            while waiting or running:
                while waiting and len(running) < self.folds:
                    number, arguments = waiting.pop()
                    running[task.remote(*arguments)] = number
                ended: list[Any] = []
                while not ended:
                    ended, _ = ray.wait(list(running), num_returns=1, timeout=_SECONDS_BETWEEN_LOOKS)
                    if closed is not None and closed.is_set():
                        raise CancelledError
                yield running.pop(ended[0]), ended[0]
        finally:
            for reference in running:
                ray.cancel(reference, force=True)


def plan_slots(scale: Scale) -> TaskSlots:
    """The slots that `scale` asks for. Raises UserError if the cluster lacks the resources."""
    nodes = cluster.nodes()
    cpus = gpus = largest = 0.0
    for node in nodes:
        cpus += node.get("CPU", 0)
        gpus += node.get("GPU", 0)
        largest = max(largest, node.get("CPU", 0))
    if scale.gpu is True and not gpus:
        raise UserError("scale.gpu=true: the cluster has no GPU; use scale.gpu=auto")
    if scale.cpus_per_worker > largest:
        raise UserError(
            f"scale.cpus_per_worker={scale.cpus_per_worker:g}: no machine has more than {largest:g} "
            "logical CPUs; lower it"
        )
    if gpus and scale.gpu is not False:
        count = scale.parallel_trainings or int(gpus)
        gpu_share = 1 / math.ceil(count / gpus)
    else:
        # on a machine of its own Ray may have more logical CPUs than there are cores, for decoding
        cores = cpus
        if len(nodes) == 1:
            cores = min(cpus, usable_cpus())
        count, gpu_share = scale.parallel_trainings or max(1, int(cores // scale.cpus_per_worker)), 0.0
    cpu_share = min(scale.cpus_per_worker, cpus / count)
    requested = f"scale.cpus_per_worker={scale.cpus_per_worker:g}"
    cluster.check_fits(requested, 1, {"CPU": cpu_share, "GPU": gpu_share})
    threads = scale.threads
    if not threads and count > 1:
        threads = max(1, int(scale.cpus_per_worker))
    return TaskSlots(count, cpu_share, gpu_share, threads)


@contextmanager
def on_device(threads: int) -> Iterator[torch.device]:
    """In a Ray task: its GPU, or the CPU with so many threads (0: all cores)."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or usable_cpus())
    try:
        yield torch.device("cuda" if ray.get_gpu_ids() else "cpu")
    finally:
        torch.set_num_threads(before)
