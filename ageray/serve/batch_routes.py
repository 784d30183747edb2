"""The routes of scoring jobs."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from ray.exceptions import RayTaskError

from ageray.serve import schemas
from ageray.serve.errors import ApiError
from ageray.serve.settings import Batches


def add(made: FastAPI, scribe: Any, settings: Batches) -> None:
    """Adds them; `scribe` is the handle of `scribe.BatchJobs`."""

    @made.post("/v1/batches", status_code=202)
    async def submit(asked: schemas.BatchRequest, request: Request) -> schemas.Batch:
        """Starts `jobs.score`, or has it wait for its turn."""
        if not request.headers.get("content-type", "").startswith(
            "application/json"
        ):  # a form of another site can send anything else
            raise ApiError(415, "unsupported", "send application/json")
        if not settings.inputs or not settings.outputs:
            raise ApiError(
                403,
                "no_batches",
                "this service has no prefixes for batches; start it with batches.inputs and batches.outputs",
            )
        found: schemas.Batch = await _ask(scribe.submit, asked)
        return found

    @made.get("/v1/batches")
    async def every() -> schemas.BatchList:
        """All jobs, the newest first."""
        found = await _ask(scribe.every)
        return schemas.BatchList(inputs=list(settings.inputs), outputs=list(settings.outputs), batches=found)

    @made.get("/v1/batches/{name}")
    async def one(name: str) -> schemas.Batch:
        """A job, and how far it is."""
        found: schemas.Batch = await _ask(scribe.one, name)
        return found

    @made.post("/v1/batches/{name}/cancel")
    async def cancel(name: str) -> schemas.Batch:
        """Stops a job; what it has scored stays for the same job to go on with."""
        found: schemas.Batch = await _ask(scribe.cancel, name)
        return found


async def _ask(method: Any, *values: Any) -> Any:
    try:
        return await method.remote(*values)
    except RayTaskError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, ApiError):
            raise cause from None
        raise
