"""How far a scoring run is: figures for the terminal, and `progress.json` for programs that watch
the run.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

import pyarrow as pa

from ageray import storage
from ageray.errors import UserError
from ageray.score.checkpoint import ScoreCheckpoint
from ageray.score.chunks import Counts

_HEARTBEAT_SECONDS = 1.0  # between two reports
_WINDOW = 60  # heartbeats over which speed is measured

Progress = dict[str, Any]
"""A report.

state: starting, running, finishing, interrupted or failed; message: why it failed.
done, total: photos. total is null until it is known; for tars it is an estimate until all are read.
faces; errors: photos without a face, for whatever reason; error_kinds: those by kind.
images_per_second: over the last minute. seconds: of all runs. seconds_left: null until it is known.
process, host, beat, updated: show that the run is alive.
"""


class ProgressReporter:
    """Counts chunks as they are done and reports once a second, from its own thread, inside a
    `with` block.
    """

    def __init__(
        self,
        checkpoint: ScoreCheckpoint,
        total: int | None,
        weight: int,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> None:
        """total, weight: of all photos, as `ageray.score.read.InputSummary` has them."""
        self._checkpoint, self._total, self._total_weight = checkpoint, total, weight
        self._on_progress = on_progress
        self._counts = checkpoint.counts.copy()
        self._started = time.monotonic()
        self._history = deque([self._sample()], maxlen=_WINDOW)
        self._beat = 0
        self._state, self._message = "starting", ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._heartbeat, daemon=True)

    def __enter__(self) -> Self:
        self._write()  # raises UserError if nothing can be written
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        if error is not None:
            self._state = "failed" if isinstance(error, Exception) else "interrupted"
            self._message = " ".join(str(error).split())[:500]
            with suppress(UserError):
                self._write()

    @property
    def seconds(self) -> float:
        """Time since the start of this run."""
        return time.monotonic() - self._started

    def set_state(self, state: str) -> None:
        """Sets the `state` of later reports."""
        self._state = state

    def add(self, chunk: pa.Table, again: bool = False) -> None:
        """Counts the rows of a whole chunk, or those of its photos that were unavailable before."""
        if again:
            self._counts.replace(chunk)
        else:
            self._counts.add(chunk)

    def add_counts(self, counts: Counts) -> None:
        """Adds the totals of whole chunks."""
        self._counts.merge(counts)

    def report(self) -> Progress:
        """The figures now."""
        counts = self._counts
        then, photos, weight = self._history[0]
        span = max(1e-6, time.monotonic() - then)
        weight_per_second = (counts.weight - weight) / span
        seconds_left = None
        if weight_per_second > 0:
            seconds_left = round((self._total_weight - counts.weight) / weight_per_second, 1)
        progress = {
            "state": self._state,
            "done": counts.photos,
            "total": self._estimated_total(),
            "faces": counts.faces,
            "errors": counts.errors.total(),
            "error_kinds": dict(counts.errors.most_common()),
            "images_per_second": round((counts.photos - photos) / span, 2),
            "seconds": round(self._checkpoint.seconds + self.seconds, 1),
            "seconds_left": seconds_left,
            "process": os.getpid(),
            "host": socket.gethostname(),
            "beat": self._beat,
            "updated": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        }
        if self._message:
            progress["message"] = self._message
        return progress

    def _estimated_total(self) -> int | None:
        counts = self._counts
        if self._total is not None or not counts.weight:
            return self._total
        if self._state == "finishing":
            return counts.photos
        return max(counts.photos, round(counts.photos * self._total_weight / counts.weight))

    def _sample(self) -> tuple[float, int, int]:
        return time.monotonic(), self._counts.photos, self._counts.weight

    def _heartbeat(self) -> None:
        while not self._stop.wait(_HEARTBEAT_SECONDS):
            self._history.append(self._sample())
            self._beat += 1
            # A report that cannot be written is no reason to end the run.
            with suppress(UserError):
                self._write()
            if self._on_progress is not None:
                self._on_progress(self.report())

    def _write(self) -> None:
        text = json.dumps(self.report(), ensure_ascii=False) + "\n"
        storage.write_text(self._checkpoint.files.progress, text)
