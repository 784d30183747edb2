"""The routes: HTTP to an Engine and back."""

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
from starlette.responses import JSONResponse, PlainTextResponse, Response

from ageray.serve import batch_routes, pages, schemas
from ageray.serve.errors import ApiError
from ageray.serve.metrics import CONTENT_TYPE, Metrics, text
from ageray.serve.middleware import RequestMiddleware
from ageray.serve.settings import Limits, Service
from ageray.serve.traffic import Traffic
from ageray.serve.uploads import Photo, read_photos

_PAGE = Path(__file__).parent / "page"
_CODES = {404: "not_found", 405: "not_allowed", 422: "malformed"}
_BASE64 = {"type": "string", "format": "byte"}
_NAMED_IMAGE = {
    "type": "object",
    "required": ["data"],
    "properties": {"name": {"type": "string"}, "data": _BASE64},
}
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
                "properties": {"images": {"type": "array", "items": {"anyOf": [_BASE64, _NAMED_IMAGE]}}},
            }
        },
    },
}


class Engine(Protocol):
    """What the routes call; `ingress.Ingress` is one."""

    batch_jobs: Any
    """Serve handle of `batches.BatchJobs`."""

    traffic: Traffic
    """The requests in flight."""
    metrics: Metrics
    """The counters of this replica."""

    def about(self) -> schemas.Model:
        """The answer to `GET /v1/model`."""

    async def check(self) -> None:
        """Raises ApiError if the model does not answer."""

    async def score(self, photos: list[Photo]) -> list[schemas.Image]:
        """The images of the answer, with faces, ages and posteriors."""

    async def all_metrics(self) -> dict[str, float]:
        """The sums of the counters of all replicas."""


class ConcurrencyLimit:
    """Admits `limits.requests` concurrent requests. The next gets 503 and Retry-After; its
    body is not read."""

    def __init__(self, limits: Limits) -> None:
        self._limits, self._active = limits, 0

    @contextmanager
    def __call__(self) -> Any:
        if self._active >= self._limits.requests:
            wait = self._limits.retry_after_s
            raise ApiError(
                503, "busy", f"too many requests at once; try again in {wait} s", {"Retry-After": str(wait)}
            )
        self._active += 1
        try:
            yield
        finally:
            self._active -= 1


def build(engine: Engine, settings: Service, keys: tuple[bytes, ...]) -> FastAPI:
    """The FastAPI application of one ingress replica. keys: digests of the API keys."""
    # no interactive pages of FastAPI: they load scripts from other hosts
    app = FastAPI(
        title="ageray",
        summary="Ages of the faces in photos",
        version="1",
        docs_url=None,
        redoc_url=None,
        responses=_error_answers(),
    )
    _handle_errors(app)
    about, limit, metrics = engine.about(), ConcurrencyLimit(settings.limits), engine.metrics
    model_name = schemas.ModelName(name=about.name, identity=about.identity)

    @app.post("/v1/score", response_model=schemas.Scores, openapi_extra={"requestBody": _BODY})
    async def score(
        request: Request, posterior: Annotated[bool, Query(description="add the posteriors")] = False
    ) -> Response:
        """Ages of every face in one or many images. An image without a face has its own
        `error`."""
        with limit():
            try:
                async with asyncio.timeout(settings.limits.seconds):
                    images = await engine.score(await read_photos(request, settings.limits))
                    _count(metrics, images)
            except TimeoutError:
                raise ApiError(
                    504, "too_slow", f"not done within {settings.limits.seconds:g} s; send fewer images"
                ) from None
        exclude: Any = None if posterior else {"images": {"__all__": {"faces": {"__all__": {"posterior"}}}}}
        scores = schemas.Scores.model_construct(model=model_name, images=images)
        text = scores.model_dump_json(exclude=exclude)
        return Response(text, media_type="application/json")

    @app.get("/v1/model")
    async def model() -> schemas.Model:
        """The model's card, the ages of its posterior's bins, and the limits of this service."""
        return about

    @app.get("/healthz")
    async def health() -> schemas.Health:
        """Runs the model on a blank face. Needs no key."""
        await engine.check()
        return schemas.Health(status="ok", identity=about.identity)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def prometheus() -> Response:
        """Counters in Prometheus' text format, of all replicas together."""
        return Response(text(await engine.all_metrics()), media_type=CONTENT_TYPE)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return _page(pages.docs_page(app.openapi(), bool(keys)))

    @app.get("/model", include_in_schema=False)
    async def card() -> Response:
        from ageray.report.card import card_page  # it draws, which takes a second to import

        return _page(await asyncio.to_thread(card_page, about.name, about.identity, about.card))

    batch_routes.add(app, engine.batch_jobs, settings.batches)
    app.mount("/", StaticFiles(directory=_PAGE, html=True))
    body = int(settings.limits.body_mib * 2**20)
    app.add_middleware(RequestMiddleware, keys=keys, body=body, traffic=engine.traffic, metrics=metrics)
    return app


def _page(html: str) -> Response:
    return Response(html, media_type="text/html", headers={"Content-Security-Policy": pages.POLICY})


def _count(metrics: Metrics, images: list[schemas.Image]) -> None:
    """Counts the images of an answer, their faces and their errors."""
    metrics.add("ageray_images_total", len(images))
    for image in images:
        ages = [face for face in image.faces if face.age is not None]
        metrics.add("ageray_faces_total", len(ages))
        for error in (image.error, *(face.error for face in image.faces)):
            if error is not None:
                metrics.add("ageray_image_errors_total", kind=error.partition(":")[0])


def _error_answers() -> dict[int | str, dict[str, Any]]:
    statuses = (400, 401, 403, 404, 408, 413, 415, 422, 503, 504)
    return {status: {"model": schemas.ErrorBody} for status in statuses}


def _handle_errors(app: FastAPI) -> None:
    """Every error becomes JSON of the form `ErrorBody`, without a traceback."""

    def on(kind: type[Exception], translate: Callable[[Any], ApiError]) -> None:
        async def answer(_: Request, error: Exception) -> JSONResponse:
            return translate(error).response()

        app.add_exception_handler(kind, answer)

    on(ApiError, lambda error: error)
    on(HTTPException, _translate_http)
    on(RequestValidationError, _translate_validation)
    on(Exception, lambda _: ApiError(500, "internal", "the service failed; its log says more"))


def _translate_http(error: HTTPException) -> ApiError:
    return ApiError(error.status_code, _CODES.get(error.status_code, "refused"), str(error.detail))


def _translate_validation(error: RequestValidationError) -> ApiError:
    first = error.errors()[0]
    return ApiError(422, "malformed", f"{'.'.join(map(str, first['loc']))}: {first['msg']}")
