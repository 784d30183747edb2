"""Scoring without Ray: the two stages, in a pool of processes on this machine.

Each process does both stages for a few photos at a time, on one core, and holds the model. So no
canvas leaves its process. The driver reads the inputs, gives out tasks and collects rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pyarrow as pa

from ageray import bundle
from ageray.experiment import Align, Detect, Scale
from ageray.machine.cpus import usable_cpus
from ageray.machine.pool import Outcome, Pool
from ageray.score import chunks
from ageray.score.checkpoint import ScoreCheckpoint
from ageray.score.inputs import Inputs
from ageray.score.read import InputSummary, read_segments, segment_table
from ageray.stages.columns import Search

_MODULES = ("ageray.stages.both", "ageray.models.build", "safetensors.torch")
"""What the processes need. They import it while the driver lists the input."""

_TASKS_A_PROCESS = 4
"""Least number of tasks of each process. With fewer, some processes have nothing to do while others
compute the last tasks."""


def start() -> Pool:
    """The pool for a LocalEngine, whose processes begin to import what they need."""
    return Pool(_MODULES)


class LocalEngine:
    """Scores the photos of one run."""

    def __init__(
        self,
        pool: Pool,
        scale: Scale,
        inputs: Inputs,
        summary: InputSummary,
        model: str,
        align: Align,
        detect: Detect,
        search: Search,
        posterior: bool,
    ) -> None:
        """pool: made by `start`. The other arguments are those of `ageray.score.run.score`."""
        self._pool, self._inputs, self._summary = pool, inputs, summary
        self._processes = scale.score_workers or scale.local_cpus or usable_cpus()
        self._photos = scale.decode_batch
        if summary.photos is not None:
            self._processes = min(self._processes, summary.photos)
            share = -(-summary.photos // (self._processes * _TASKS_A_PROCESS))
            self._photos = min(self._photos, share)
        self._threads = scale.threads or 1
        self._make = partial(
            make_stages,
            bundle.model_for_workers(model),
            align,
            detect,
            search,
            posterior,
            self._threads,
            scale.faces_a_batch(False),
        )

    @property
    def workers(self) -> dict[str, Any]:
        """What computes, for the summary."""
        return {"actors": self._processes, "cpus": 1.0, "gpus": 0, "threads": self._threads}

    def describe(self) -> str:
        """What computes, in words."""
        several = self._processes > 1
        processes = f"{self._processes} process{'es' * several} on a core{' each' * several}"
        return f"{processes}, {self._photos} photo{'s' * (self._photos > 1)} a task"

    def tables(self, checkpoint: ScoreCheckpoint) -> Iterator[pa.Table]:
        """Rows of scores with their chunks, of the chunks that are not done, in any order.

        If a process dies (by a fault in a decoder, or for lack of memory), its task is tried again
        as a whole: the network sees the same batches, so the result is the same in every digit
        however often processes are killed from outside. If a process dies on it again, each photo
        is tried alone. A photo on which one dies once more becomes a row that says so.
        """
        for outcome in self._pool.run(self._make, self._tasks(checkpoint), self._processes):
            if not outcome.died:
                yield outcome.value
            else:
                self._after_death(outcome)

    def _after_death(self, outcome: Outcome) -> None:
        photos, deaths = outcome.task
        if deaths == 0 or photos.num_rows == 1:
            self._pool.retry((photos, deaths + 1))
            return
        for number in range(photos.num_rows):
            self._pool.retry((photos.slice(number, 1), deaths))

    def _tasks(self, checkpoint: ScoreCheckpoint) -> Iterator[tuple[pa.Table, int]]:
        """A few photos each, and how often a process died on them: 0."""
        for chunk in self._chunks(checkpoint):
            for start in range(0, chunk.num_rows, self._photos):
                yield chunk.slice(start, self._photos), 0

    def _chunks(self, checkpoint: ScoreCheckpoint) -> Iterator[pa.Table]:
        """The photos of the chunks that are not done, as `find_faces` takes them."""
        done = checkpoint.done_positions()
        if self._summary.places is not None:
            yield from list(checkpoint.photos_again(self._summary.places.segments()))
            for number, uris in enumerate(self._summary.places.segments()):
                yield from chunks.cut(uris, number, set(done.get(number, ())))
            return
        finished = checkpoint.finished_segments()
        for segment in self._summary.segments:
            if segment.number not in finished:
                rest = segment._replace(done=done.get(segment.number, ()))
                yield from read_segments(segment_table(rest), self._inputs.columns)


def make_stages(*arguments: Any) -> Any:
    """`ageray.stages.both.Stages` with these arguments. The driver does not import it."""
    from ageray.stages.both import Stages

    return Stages(*arguments)
