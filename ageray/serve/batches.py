"""Scoring jobs: each a process of its own (`python -m jobs.score`) on the service's cluster, with a record and a log in a local folder.

A process, not a job of Ray's job server: it needs no dashboard, and what it does is what the same command does in a shell.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import uuid
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ray
from pydantic import ValidationError
from ray import serve

from ageray import storage
from ageray.errors import UserError
from ageray.serve import process as serve_process
from ageray.serve.allowed_paths import below, first_escaping_link
from ageray.serve.errors import ApiError
from ageray.serve.schemas import Batch, BatchRequest, Progress
from ageray.serve.settings import Service

_BEAT = 0.5
_LOST = "the service ended while it ran; submit it again, and it goes on where it stopped"


@serve.deployment
class BatchJobs:
    """Keeps the jobs; there is one copy of it."""

    def __init__(self, settings: Service) -> None:
        self._settings, self._limits = settings, settings.batches
        self._folder = Path(self._limits.records).expanduser()
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._address = str(ray.get_runtime_context().gcs_address)
        self._batches = {
            batch.id: batch for batch in map(_read, sorted(self._folder.glob("*.json"))) if batch is not None
        }
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._stopping: set[str] = set()
        for batch in self._batches.values():
            if batch.state == "running":
                self._end(batch, "failed", _LOST)
        self._beat = asyncio.get_event_loop().create_task(self._go())

    async def submit(self, asked: BatchRequest) -> Batch:
        """Checks a job and puts it in the queue. Raises ApiError."""
        inputs = below(asked.input, self._limits.inputs, "input", itself=True)
        out = below(asked.out, self._limits.outputs, "out")
        stray = await asyncio.to_thread(first_escaping_link, inputs, self._limits.inputs)
        if stray is not None:
            raise ApiError(
                403, "forbidden", f"input: {Path(stray).name} in it is a link that leads elsewhere"
            )
        open_ = [batch for batch in self._batches.values() if batch.state in ("waiting", "running")]
        if any(batch.out == out for batch in open_):
            raise ApiError(409, "conflict", "out: another job is writing there")
        if len(open_) >= self._limits.waiting + self._limits.at_once:
            raise ApiError(503, "busy", "too many jobs are waiting; try again later", {"Retry-After": "60"})
        name = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:8]}"
        batch = Batch(
            **{**asked.model_dump(), "input": inputs, "out": out}, id=name, state="waiting", submitted=_now()
        )
        self._batches[name] = batch
        self._keep(batch)
        return batch

    async def every(self) -> list[Batch]:
        """All jobs, the newest first."""
        return [await self.one(name) for name in sorted(self._batches, reverse=True)]

    async def one(self, name: str) -> Batch:
        """A job with its progress. Raises ApiError (404)."""
        batch = self._batches.get(name)
        if batch is None:
            raise ApiError(404, "not_found", f"there is no batch {name[:60]!r}")
        if batch.state == "running":
            batch.progress = await asyncio.to_thread(_progress, batch.out) or batch.progress
        return batch

    async def cancel(self, name: str) -> Batch:
        """Takes a job out of the queue, or stops it. Raises ApiError (404; 409 if it has ended)."""
        batch = await self.one(name)
        if batch.state == "waiting":
            self._end(batch, "cancelled")
        elif batch.state == "running":
            self._stopping.add(name)
            await asyncio.to_thread(serve_process.stop, self._running[name])
            await self._look()
        else:
            raise ApiError(409, "conflict", f"the batch has ended already: {batch.state}")
        return batch

    def check_health(self) -> None:
        """Raises if the queue is no longer looked after."""
        if self._beat.done():
            self._beat.result()

    async def _go(self) -> None:
        while True:
            await self._look()
            waiting = [
                self._batches[name]
                for name in sorted(self._batches)
                if self._batches[name].state == "waiting"
            ]
            for batch in waiting[: self._limits.at_once - len(self._running)]:
                self._start(batch)
            await asyncio.sleep(_BEAT)

    def _start(self, batch: Batch) -> None:
        words = [batch.input, "--out", batch.out, "--model", self._settings.model, "--detect", batch.detect]
        words += (
            ["--posterior"] * batch.posterior
            + ["--fresh"] * batch.fresh
            + ["scale.progress=false", *self._limits.words]
        )
        self._running[batch.id] = serve_process.start(words, self._log(batch), self._address)
        batch.state, batch.started = "running", _now()
        self._keep(batch)

    async def _look(self) -> None:
        for name, process in list(self._running.items()):
            if process.poll() is None:
                continue
            batch = self._batches[name]
            del self._running[name]
            batch.progress = (
                await asyncio.to_thread(_progress, batch.out, process.returncode == 0) or batch.progress
            )
            if process.returncode == 0:
                self._end(batch, "done")
            elif name in self._stopping:
                self._end(batch, "cancelled")
            else:
                self._end(batch, "failed", serve_process.mistake(self._log(batch), process.returncode))

    def _end(self, batch: Batch, state: Any, message: str | None = None) -> None:
        batch.state, batch.ended, batch.message = state, _now(), message
        self._keep(batch)

    def _keep(self, batch: Batch) -> None:
        storage.write_text(str(self._folder / f"{batch.id}.json"), batch.model_dump_json() + "\n")

    def _log(self, batch: Batch) -> Path:
        return self._folder / f"{batch.id}.log"


def _read(file: Path) -> Batch | None:
    try:
        return Batch.model_validate_json(file.read_text())
    except (OSError, ValidationError):  # of another version
        return None


def _progress(out: str, ended: bool = False) -> Progress | None:
    """What the job has written: the summary once it has ended, else its reports, which older versions do not make."""
    if ended:
        done = _json(storage.join(out, "summary.json"))
        errors = sum((done.get("errors") or {}).values())
        figures = {
            "faces": done.get("faces", 0),
            "errors": errors,
            "images_per_second": done.get("images_per_second"),
        }
        return Progress(done=done["images"], total=done["images"], **figures) if "images" in done else None
    for folder in (storage.unfinished(out), out):
        found = _json(storage.join(folder, "progress.json"))
        if "done" in found:
            return Progress(**{name: found[name] for name in Progress.model_fields if name in found})
    return None


def _json(uri: str) -> dict[str, Any]:
    with suppress(UserError, ValueError):
        found = json.loads(storage.read_text(uri))
        return found if isinstance(found, dict) else {}
    return {}


def _now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
