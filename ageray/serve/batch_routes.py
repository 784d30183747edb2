"""The routes of scoring jobs, `/v1/batches`."""

from __future__ import annotations

import mimetypes
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from ray.exceptions import RayTaskError
from starlette.responses import Response, StreamingResponse

from ageray.serve import schemas
from ageray.serve.errors import ApiError
from ageray.serve.pages import POLICY
from ageray.serve.settings import Batches


def add(app: FastAPI, batch_jobs: Any, settings: Batches) -> None:
    """Adds the routes to `app`. `batch_jobs` is the Serve handle of `batches.BatchJobs`."""

    @app.post("/v1/batches", status_code=202)
    async def submit(batch: schemas.BatchRequest, request: Request) -> schemas.Batch:
        """Starts `ageray score`, or queues it."""
        # a form on another site can send any other content type without asking first
        if not request.headers.get("content-type", "").startswith("application/json"):
            raise ApiError(415, "unsupported", "send application/json")
        if not settings.inputs or not settings.outputs:
            raise ApiError(
                403,
                "no_batches",
                "this service has no prefixes for batches; start it with batches.inputs and batches.outputs",
            )
        return await _call(batch_jobs.submit, batch)  # type: ignore[no-any-return]

    @app.get("/v1/batches")
    async def list_batches() -> schemas.BatchList:
        """All jobs, the newest first."""
        batches = await _call(batch_jobs.list_batches)
        return schemas.BatchList(
            inputs=list(settings.inputs), outputs=list(settings.outputs), batches=batches
        )

    @app.get("/v1/batches/{name}")
    async def get(name: str) -> schemas.Batch:
        """A job with its progress."""
        return await _call(batch_jobs.get, name)  # type: ignore[no-any-return]

    @app.get("/v1/batches/{name}/files/{file}", response_class=StreamingResponse)
    async def download(name: str, file: str) -> Response:
        """A file of a finished job's result, as the job's `files` name it."""
        size, first = await _call(batch_jobs.read_file, name, file, 0)

        async def parts() -> AsyncIterator[bytes]:
            part, sent = first, 0
            while part:
                yield part
                sent += len(part)
                if sent >= size:
                    return
                _, part = await _call(batch_jobs.read_file, name, file, sent)

        headers = {"Content-Security-Policy": f"sandbox; {POLICY}", "Content-Length": str(size)}
        if not file.endswith(".html"):
            headers["Content-Disposition"] = f'attachment; filename="{file}"'
        kind = mimetypes.guess_type(file)[0] or "application/octet-stream"
        return StreamingResponse(parts(), media_type=kind, headers=headers)

    @app.post("/v1/batches/{name}/cancel")
    async def cancel(name: str) -> schemas.Batch:
        """Stops a job. The photos that it has scored stay: the same job submitted again skips
        them."""
        return await _call(batch_jobs.cancel, name)  # type: ignore[no-any-return]


async def _call(method: Any, *arguments: Any) -> Any:
    try:
        return await method.remote(*arguments)
    except RayTaskError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, ApiError):
            raise cause from None
        raise
