"""How the loop by which Ray Data schedules its stages is held to what is useful."""

from __future__ import annotations

import time
from typing import Any

from ray.data import Dataset
from ray.data._internal.execution import backpressure_policy as policies
from ray.data._internal.execution.execution_callback import ExecutionCallback

_REST_SECONDS = 0.02
_BLOCKS_A_CPU = 4


class SchedulerPause(ExecutionCallback):
    """Rests between two steps of the loop.

    While blocks wait for a slow consumer the loop does not block: it spins, takes most of a core from a 2-core machine, and where it runs
    inside a training worker, the interpreter lock too (measured: training at half its speed).
    """

    def on_execution_step(self, executor: object) -> None:
        """Called by Ray Data after each step."""
        time.sleep(_REST_SECONDS)


class ReadBackpressure(policies.BackpressurePolicy):
    """Starts no more tasks of a dataset's first stage while as many of its blocks wait as the logical CPUs there are take in four rounds.

    Ray Data starts the stage that holds the least first. Encoded photos are small, so it reads on and on, and what it has read takes its part of
    the object store from the canvases that the model waits for. Tasks that run are left to end: one that waits keeps its CPU, and those who
    are to take what it has read may need that.
    """

    def can_add_input(self, op: Any) -> bool:
        """Asked by Ray Data before it starts a task of a stage."""
        if any(before.input_dependencies for before in op.input_dependencies):
            return True  # not the first
        cpus = self._resource_manager.get_global_limits().cpu
        return bool(self._topology[op].output_queue.num_blocks < _BLOCKS_A_CPU * max(1.0, cpus))


def limit_read_ahead(dataset: Dataset) -> None:
    """Has the dataset, when it runs, read its photos only as fast as they are used."""
    dataset.context.set_config(
        policies.ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY,
        [*policies.ENABLED_BACKPRESSURE_POLICIES, ReadBackpressure],
    )
