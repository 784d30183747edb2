"""How far a scoring run is: figures for a terminal and, as `progress.json`, for whoever watches from elsewhere."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc

from ageray import storage
from ageray.errors import UserError
from ageray.score import chunks
from ageray.score.checkpoint import PROGRESS, ScoreCheckpoint, read_json

_BEAT = 1.0  # seconds between two reports
_WINDOW = 60  # beats over which the pace is taken
_PATIENCE = 6.0  # seconds without a sign of life after which a run elsewhere counts as dead
_ALIVE = ("starting", "running", "finishing")

Report = dict[str, Any]
"""state (starting, running, finishing, interrupted, failed), done and total photos (null: not known yet; of tars an estimate until all is
done), faces, errors (photos without a face, whatever the reason), error_kinds, images_per_second (of the last minute), seconds (of all runs),
seconds_left (null: not known yet); process, host, beat and updated tell that the run is alive; message, if it failed."""


class ProgressReporter:
    """Counts rows as they come, and reports every second from a thread of its own until it is left."""

    def __init__(
        self,
        ledger: ScoreCheckpoint,
        total: int | None,
        weight: int,
        watch: Callable[[Report], None] | None = None,
    ) -> None:
        """total, weight: of all photos, as `opening.InputSummary` has them. watch: gets every report."""
        self._ledger, self._total, self._all, self._watch = ledger, total, weight, watch
        self._done, self._faces, self._weight = ledger.photos, ledger.faces, ledger.weight
        self._errors = Counter(ledger.errors)
        self._started = time.monotonic()
        self._pace = deque([(self._started, self._done, self._weight)], maxlen=_WINDOW)
        self._beat = 0
        self._state, self._message = "starting", ""
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._write()  # raises UserError where nothing can be written
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()
        if error is not None:
            self._state = "failed" if isinstance(error, Exception) else "interrupted"
            self._message = " ".join(str(error).split())[:500]
            with suppress(UserError):
                self._write()

    @property
    def seconds(self) -> float:
        """Of this run so far."""
        return time.monotonic() - self._started

    def turn(self, state: str) -> None:
        """The run goes over to another state."""
        self._state = state

    def add(self, lot: pa.Table) -> None:
        """Counts the rows of a lot."""
        first = chunks.first_rows(lot)
        self._done += first.num_rows
        self._weight += pc.sum(first.column("weight")).as_py()
        self._faces += lot.column("age").drop_null().length() if lot.num_rows else 0
        self._errors.update(reason.split(":")[0] for reason in first.column("error").drop_null().to_pylist())

    def report(self) -> Report:
        """The figures now."""
        now = time.monotonic()
        then, done, weight = self._pace[0]
        span = max(1e-6, now - then)
        pace = (self._weight - weight) / span
        return {
            "state": self._state,
            "done": self._done,
            "total": self._expected(),
            "faces": self._faces,
            "errors": self._errors.total(),
            "error_kinds": dict(self._errors.most_common()),
            "images_per_second": round((self._done - done) / span, 2),
            "seconds": round(self._ledger.seconds + self.seconds, 1),
            "seconds_left": round((self._all - self._weight) / pace, 1) if pace > 0 else None,
            "process": os.getpid(),
            "host": socket.gethostname(),
            "beat": self._beat,
            "updated": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
            **({"message": self._message} if self._message else {}),
        }

    def _expected(self) -> int | None:
        if self._total is not None or not self._weight:
            return self._total
        return (
            self._done
            if self._state == "finishing"
            else max(self._done, round(self._done * self._all / self._weight))
        )

    def _run(self) -> None:
        while not self._end.wait(_BEAT):
            self._pace.append((time.monotonic(), self._done, self._weight))
            self._beat += 1
            # Where a piece of the result cannot be written, the run ends; a report that cannot is no reason to.
            with suppress(UserError):
                self._write()
            if self._watch is not None:
                self._watch(self.report())

    def _write(self) -> None:
        storage.write_text(
            storage.join(self._ledger.folder, PROGRESS), json.dumps(self.report(), ensure_ascii=False) + "\n"
        )


def check_single_writer(ledger: ScoreCheckpoint) -> None:
    """Raises UserError if another run writes to the same folder: one that says so and goes on saying so."""
    place = storage.join(ledger.folder, PROGRESS)
    found = read_json(place)
    if found is None or found.get("state") not in _ALIVE:
        return
    if found.get("host") == socket.gethostname() and not _lives(found.get("process")):
        return
    waited = 0.0
    while waited < _PATIENCE:
        time.sleep(_BEAT / 2)
        waited += _BEAT / 2
        later = read_json(place) or {}
        if later.get("beat") != found.get("beat") and later.get("state") in _ALIVE:
            where = f"process {found.get('process')} on {found.get('host')}"
            raise UserError(
                f"{ledger.folder}: another run is writing there ({where}); wait until it is done, or stop it"
            )


def _lives(process: Any) -> bool:
    if not isinstance(process, int) or process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
