"""The body of a request to its images. The body is a form or JSON; nothing is written to disk."""

from __future__ import annotations

import base64
import binascii
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from ageray.serve.errors import ApiError
from ageray.serve.settings import Limits

_NAME = 255  # most characters of an image's name in the answer


class Photo(NamedTuple):
    """One image of a request: its name and its file's bytes."""

    name: str
    content: bytes


class _Encoded(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str | None = None
    data: str


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")
    images: list[_Encoded | str]


async def read_photos(request: Request, limits: Limits) -> list[Photo]:
    """The images of a request.

    Raises ApiError: 400 for a malformed body, 413 for too many images, 415 for another content
    type.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        photos = await _multipart(request, limits)
    elif kind == "application/json":
        photos = _json(await request.body(), limits)
    else:
        raise ApiError(
            415, "unsupported", f"{kind or 'no content type'}: send multipart/form-data or application/json"
        )
    if not photos:
        raise ApiError(400, "malformed", "there is no image in the request")
    return photos


async def _multipart(request: Request, limits: Limits) -> list[Photo]:
    size = int(limits.body_mib * 2**20)
    parser = MultiPartParser(
        request.headers,
        request.stream(),
        max_files=limits.images + 1,
        max_fields=limits.images,
        max_part_size=size,
    )
    parser.spool_max_size = size + 1  # a larger part would go to a temporary file
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if "Too many" in error.message:
            raise _too_many(limits) from None
        raise ApiError(400, "malformed", error.message) from None
    try:
        files = [part for _, part in form.multi_items() if isinstance(part, UploadFile)]
        if len(files) > limits.images:
            raise _too_many(limits)
        return [Photo(_short(file.filename, number), await file.read()) for number, file in enumerate(files)]
    finally:
        await form.close()


def _json(body: bytes, limits: Limits) -> list[Photo]:
    try:
        images = _Body.model_validate_json(body).images
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"])) or "the body"
        text = f'{field}: {first["msg"]}; expected {{"images": [{{"name": "a.jpg", "data": "BASE64"}}]}}'
        raise ApiError(400, "malformed", text) from None
    if len(images) > limits.images:
        raise _too_many(limits)
    return [_decode(image, number) for number, image in enumerate(images)]


def _decode(image: _Encoded | str, number: int) -> Photo:
    if isinstance(image, str):
        image = _Encoded(data=image)
    try:
        return Photo(_short(image.name, number), base64.b64decode(image.data, validate=True))
    except (binascii.Error, ValueError):
        raise ApiError(400, "malformed", f"images.{number}: the data is not base64") from None


def _short(name: str | None, number: int) -> str:
    return (name or f"image-{number}")[:_NAME]


def _too_many(limits: Limits) -> ApiError:
    return ApiError(
        413, "too_large", f"more than {limits.images} images; send them in several requests, or as a batch"
    )
