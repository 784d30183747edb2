"""The routes: from HTTP to an Engine and back. Knows no Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Protocol

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from ageray.serve import batch_routes, schemas
from ageray.serve.errors import ApiError
from ageray.serve.middleware import RequestGuard
from ageray.serve.settings import Limits, Service
from ageray.serve.uploads import Photo, read_photos

_PAGE = Path(__file__).parent / "page"
_CODES = {404: "not_found", 405: "not_allowed", 422: "malformed"}
_BASE64 = {"type": "string", "format": "byte"}
_NAMED = {"type": "object", "required": ["data"], "properties": {"name": {"type": "string"}, "data": _BASE64}}
_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {"images": {"type": "array", "items": {"type": "string", "format": "binary"}}},
            }
        },
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["images"],
                "properties": {"images": {"type": "array", "items": {"anyOf": [_BASE64, _NAMED]}}},
            }
        },
    },
}


class Engine(Protocol):
    """What is behind the routes."""

    scribe: Any
    """Handle of `scribe.BatchJobs`."""

    def about(self) -> schemas.Model:
        """The model and the limits."""

    async def check(self) -> None:
        """Raises ApiError if the model does not answer."""

    async def score(self, photos: list[Photo]) -> list[schemas.Image]:
        """Images with faces, ages and posteriors."""


class ConcurrencyLimit:
    """Lets a number of requests in at once; the next is sent away with the time to come back, before its body is read."""

    def __init__(self, limits: Limits) -> None:
        self._limits, self._inside = limits, 0

    @contextmanager
    def __call__(self) -> Any:
        if self._inside >= self._limits.requests:
            wait = self._limits.retry_after_s
            raise ApiError(
                503, "busy", f"too many requests at once; try again in {wait} s", {"Retry-After": str(wait)}
            )
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1


def build(engine: Engine, settings: Service, keys: tuple[bytes, ...]) -> FastAPI:
    """The app of one door."""
    # The interactive pages of FastAPI load scripts from other hosts: none of them here.
    made = FastAPI(
        title="ageray",
        summary="AgeModel of the faces in photos",
        version="1",
        docs_url=None,
        redoc_url=None,
        responses=_troubles(),
    )
    _explain(made)
    about, turnstile = engine.about(), ConcurrencyLimit(settings.limits)
    who = schemas.ModelName(name=about.name, identity=about.identity)

    @made.post("/v1/score", response_model=schemas.Scores, openapi_extra={"requestBody": _BODY})
    async def score(
        request: Request, posterior: Annotated[bool, Query(description="add the posteriors")] = False
    ) -> Response:
        """AgeModel of every face in one or many images. An image that gives none has its own `error`; the others do not suffer."""
        with turnstile():
            try:
                async with asyncio.timeout(settings.limits.seconds):
                    images = await engine.score(await read_photos(request, settings.limits))
            except TimeoutError:
                raise ApiError(
                    504, "too_slow", f"not done within {settings.limits.seconds:g} s; send fewer images"
                ) from None
        hidden = None if posterior else {"images": {"__all__": {"faces": {"__all__": {"posterior"}}}}}
        text = schemas.Scores.model_construct(model=who, images=images).model_dump_json(exclude=hidden)
        return Response(text, media_type="application/json")

    @made.get("/v1/model")
    async def model() -> schemas.Model:
        """The model's card, what its posteriors mean, and the limits of this service."""
        return about

    @made.get("/healthz")
    async def health() -> schemas.Health:
        """Has the model answer for a blank face; needs no key."""
        await engine.check()
        return schemas.Health(status="ok", identity=about.identity)

    batch_routes.add(made, engine.scribe, settings.batches)
    made.mount("/", StaticFiles(directory=_PAGE, html=True))
    made.add_middleware(RequestGuard, keys=keys, body=int(settings.limits.body_mib * 2**20))
    return made


def _troubles() -> dict[int | str, dict[str, Any]]:
    return {status: {"model": schemas.ErrorBody} for status in (400, 401, 403, 404, 413, 415, 422, 503, 504)}


def _explain(made: FastAPI) -> None:
    """Every error is JSON of one form, and none has a traceback."""

    def on(kind: type[Exception], told: Callable[[Any], ApiError]) -> None:
        async def answer(_: Request, error: Exception) -> JSONResponse:
            return told(error).response()

        made.add_exception_handler(kind, answer)

    on(ApiError, lambda error: error)
    on(
        HTTPException,
        lambda error: ApiError(
            error.status_code, _CODES.get(error.status_code, "refused"), str(error.detail)
        ),
    )
    on(RequestValidationError, lambda error: ApiError(422, "malformed", _first(error)))
    on(Exception, lambda _: ApiError(500, "internal", "the service failed; its log says more"))


def _first(error: RequestValidationError) -> str:
    found = error.errors()[0]
    return f"{'.'.join(map(str, found['loc']))}: {found['msg']}"
