"""Limits on how fast Ray Data schedules its stages."""

from __future__ import annotations

import time
from typing import Any

from ray.data import Dataset
from ray.data._internal.execution import backpressure_policy as policies
from ray.data._internal.execution.execution_callback import ExecutionCallback

_PAUSE_SECONDS = 0.02
_BLOCKS_PER_CPU = 4


class SchedulerPause(ExecutionCallback):
    """Pauses 20 ms between two steps of the scheduling loop.

    While blocks wait for a slow consumer, the loop does not block but spins. It takes most of a
    core of a 2-core machine. Inside a training worker it also takes the interpreter lock (measured:
    training at half its speed).
    """

    def on_execution_step(self, executor: object) -> None:
        """Ray Data calls this after each step."""
        time.sleep(_PAUSE_SECONDS)


class ReadBackpressure(policies.BackpressurePolicy):
    """Pauses the read stage while more than four of its output blocks per CPU are queued.

    Ray Data starts the stage that holds the least memory first. Encoded photos are small, so it
    would read without end, and what it has read would take the object store from the canvases that
    the model waits for. Running tasks are not stopped: a stopped task would keep its CPU, which
    later stages may need.
    """

    def can_add_input(self, op: Any) -> bool:
        """Ray Data asks this before it starts a task of a stage."""
        is_read_stage = not any(source.input_dependencies for source in op.input_dependencies)
        if not is_read_stage:
            return True
        cpus = self._resource_manager.get_global_limits().cpu
        return bool(self._topology[op].output_queue.num_blocks < _BLOCKS_PER_CPU * max(1.0, cpus))


def limit_read_ahead(dataset: Dataset) -> None:
    """Makes the dataset read its photos only as fast as they are used."""
    dataset.context.set_config(
        policies.ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY,
        [*policies.ENABLED_BACKPRESSURE_POLICIES, ReadBackpressure],
    )
