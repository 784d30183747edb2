"""Scoring jobs. Each is a process `ageray score` on the service's cluster, with a record
and a log in a local folder.

Processes are used instead of Ray's job server, because they need no dashboard and behave exactly
like the same command in a shell.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import ray
from ray import serve

from ageray import storage
from ageray.errors import UserError, one_line
from ageray.serve import metrics, process, records
from ageray.serve.allowed_paths import first_escaping_link, resolve_allowed
from ageray.serve.errors import ApiError
from ageray.serve.schemas import Batch, BatchRequest, Progress
from ageray.serve.settings import Service

_RESULTS = (".parquet", ".csv", ".jsonl", ".html", ".json")
_PART_BYTES = 4 * 2**20
_INTERVAL = 0.5  # seconds between two looks at the processes
_INTERRUPTED = "its process was ended; submit it again, and it goes on where it stopped"


@serve.deployment
class BatchJobs:
    """The queue of scoring jobs. There is one replica."""

    def __init__(self, settings: Service, owner: str) -> None:
        """owner: which service this is (`ageray.serve.records`)."""
        self._settings, self._limits = settings, settings.batches
        self._folder = records.open_folder(self._limits, owner)
        self._address = str(ray.get_runtime_context().gcs_address)
        self._batches = records.read(self._folder)
        self._processes: dict[str, process.Job] = {}
        self._cancelled: set[str] = set()
        self._unrecorded: set[str] = set()  # jobs whose state is not on disk yet
        self._total = metrics.Total()
        for batch in self._batches.values():
            if batch.state == "running":  # its process may have outlived the replica before this one
                self._processes[batch.id] = process.Job(self._log(batch))
        self._loop = asyncio.get_event_loop().create_task(self._run())

    async def submit(self, request: BatchRequest) -> Batch:
        """Checks a job and queues it. Raises ApiError."""
        inputs = resolve_allowed(request.input, self._limits.inputs, "input", itself=True)
        out = resolve_allowed(request.out, self._limits.outputs, "out")
        link = await asyncio.to_thread(first_escaping_link, inputs, self._limits.inputs)
        if link is not None:
            text = f"input: {Path(link).name} in it is a link that leads elsewhere"
            raise ApiError(403, "forbidden", text)
        if not await asyncio.to_thread(storage.exists, inputs):
            raise ApiError(404, "not_found", "input: there is nothing of this name")
        unfinished = self._in_state("waiting", "running")
        if any(batch.out == out for batch in unfinished):
            raise ApiError(409, "conflict", "out: another job is writing there")
        if len(unfinished) >= self._limits.waiting + self._limits.at_once:
            raise ApiError(503, "busy", "too many jobs are waiting; try again later", {"Retry-After": "60"})
        name = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:8]}"
        fields = {**request.model_dump(), "input": inputs, "out": out}
        batch = Batch(**fields, id=name, state="waiting", submitted=_now())
        try:
            self._write_record(batch)
        except UserError:
            text = "the service cannot record the job: no space is left, or its folder may not be written"
            raise ApiError(503, "no_space", text, {"Retry-After": "60"}) from None
        self._batches[name] = batch
        return batch

    async def list_batches(self) -> list[Batch]:
        """All jobs, the newest first."""
        return [await self.get(name) for name in sorted(self._batches, reverse=True)]

    async def get(self, name: str) -> Batch:
        """A job with its progress. Raises ApiError (404)."""
        batch = self._batches.get(name)
        if batch is None:
            raise ApiError(404, "not_found", f"there is no batch {name[:60]!r}")
        if batch.state == "running":
            batch.progress = await asyncio.to_thread(_progress, batch.out) or batch.progress
        return batch

    async def read_file(self, name: str, file: str, start: int) -> tuple[int, bytes]:
        """The size of a file of a finished job's result, and at most 4 MiB of it from `start` on.

        Raises ApiError (404) unless the job lists the file, and 403 if its folder lies below no
        output prefix of this service.
        """
        batch = await self.get(name)
        if file not in batch.files:
            raise ApiError(404, "not_found", f"batch {name[:60]} has no file {file[:60]!r}")
        folder = resolve_allowed(batch.out, self._limits.outputs, "out")
        uri = storage.join(folder, file)
        try:
            size = await asyncio.to_thread(storage.size, uri)
            return size, await asyncio.to_thread(storage.read_part, uri, start, _PART_BYTES)
        except UserError:
            raise ApiError(404, "not_found", f"{file}: is no longer there") from None

    async def metrics(self, replica: str, values: dict[str, float]) -> dict[str, float]:
        """Takes the counters of an ingress replica and returns the sums of all, with the jobs by
        state."""
        total = self._total.add(replica, values)
        for state in get_args(Batch.model_fields["state"].annotation):
            total[metrics.series("ageray_batches", state=state)] = float(len(self._in_state(state)))
        return total

    async def cancel(self, name: str) -> Batch:
        """Removes a job from the queue, or stops it. Raises ApiError: 404, or 409 if it has
        ended."""
        batch = await self.get(name)
        if batch.state == "waiting":
            self._end(batch, "cancelled")
        elif batch.state == "running":
            self._cancelled.add(name)
            await asyncio.to_thread(self._processes[name].stop)
            await self._collect_ended()
        else:
            raise ApiError(409, "conflict", f"the batch has ended already: {batch.state}")
        return batch

    def check_health(self) -> None:
        """Raises if the loop that runs the queue has ended."""
        if self._loop.done():
            self._loop.result()

    async def _run(self) -> None:
        while True:
            await self._collect_ended()
            for batch in self._in_state("waiting")[: self._limits.at_once - len(self._processes)]:
                self._start(batch)
            for name in list(self._unrecorded):
                self._record(self._batches[name])
            await asyncio.sleep(_INTERVAL)

    def _in_state(self, *states: str) -> list[Batch]:
        """The jobs in one of `states`, the oldest first."""
        batches = [self._batches[name] for name in sorted(self._batches)]
        return [batch for batch in batches if batch.state in states]

    def _start(self, batch: Batch) -> None:
        words = [batch.input, "--out", batch.out, "--model", self._settings.model, "--detect", batch.detect]
        if batch.posterior:
            words.append("--posterior")
        if batch.fresh:
            words.append("--fresh")
        words += ["scale.progress=false", *self._limits.overrides]
        batch.started = _now()
        try:
            self._processes[batch.id] = process.start(words, self._log(batch), self._address)
        except OSError as error:
            self._end(batch, "failed", f"cannot be started ({one_line(error)}); submit it again")
            return
        batch.state = "running"
        self._record(batch)

    async def _collect_ended(self) -> None:
        for name, job in list(self._processes.items()):
            code = job.returncode
            if code is None:
                continue
            batch = self._batches[name]
            del self._processes[name]
            succeeded = code == 0
            batch.progress = await asyncio.to_thread(_progress, batch.out, succeeded) or batch.progress
            if succeeded:
                batch.files = await asyncio.to_thread(_result_files, batch.out)
                self._end(batch, "done")
            elif name in self._cancelled:
                self._end(batch, "cancelled")
            elif code < 0:
                self._end(batch, "failed", _INTERRUPTED)
            else:
                self._end(batch, "failed", process.failure(self._log(batch), code))

    def _end(self, batch: Batch, state: Any, message: str | None = None) -> None:
        batch.state, batch.ended, batch.message = state, _now(), message
        self._record(batch)

    def _record(self, batch: Batch) -> None:
        """Writes the record of a job. While its folder cannot be written, the queue goes on, and
        this is tried again.
        """
        self._unrecorded.add(batch.id)
        with suppress(UserError):
            self._write_record(batch)
            self._unrecorded.remove(batch.id)

    def _write_record(self, batch: Batch) -> None:
        storage.write_text(str(self._folder / f"{batch.id}.json"), batch.model_dump_json() + "\n")

    def _log(self, batch: Batch) -> Path:
        return self._folder / f"{batch.id}.log"


def _result_files(out: str) -> list[str]:
    """Names of the files that a scoring run left in its folder, the page first."""
    names = []
    with suppress(UserError):
        for uri in storage.list_files(out, _RESULTS):
            names.append(uri.rpartition("/")[2])
    return sorted(names, key=lambda name: (not name.endswith(".html"), name))


def _progress(out: str, ended: bool = False) -> Progress | None:
    """The progress of a job: from its summary if it has ended, else from `progress.json`.

    None if there is no such file, as for a job that has just started.
    """
    if ended:
        summary: dict[str, Any] = {}
        for name in ("_summary.json", "summary.json"):  # the second in results of version 0.1
            summary = summary or _read_object(storage.join(out, name))
        if "images" not in summary:
            return None
        return Progress(
            done=summary["images"],
            total=summary["images"],
            faces=summary.get("faces", 0),
            errors=sum((summary.get("errors") or {}).values()),
            images_per_second=summary.get("images_per_second"),
        )
    for folder in (storage.unfinished(out), out):
        report = _read_object(storage.join(folder, "progress.json"))
        if "done" in report:
            return Progress(**{name: report[name] for name in Progress.model_fields if name in report})
    return None


def _read_object(uri: str) -> dict[str, Any]:
    """The JSON object in a file; empty if there is none."""
    with suppress(UserError, ValueError):
        content = json.loads(storage.read_text(uri))
        return content if isinstance(content, dict) else {}
    return {}


def _now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
