"""The body of a request to its images. The body is a form or JSON; nothing is written to disk."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any, NamedTuple

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from ageray.serve.errors import ApiError
from ageray.serve.settings import Limits

_NAME = 255  # most characters of an image's name in the answer
_STRUCTURE = (b"{", b"}", b"[", b"]", b",", b":", b'"')
_TOKENS, _TOKENS_AN_IMAGE = 64, 600  # of JSON: an image has 13, and a name may have such characters
_PART_HEADER = 8192  # bytes of the headers of a part of a form


class Photo(NamedTuple):
    """One image of a request: its name and its file's bytes."""

    name: str
    content: bytes


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
    parser = _FormParser(
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


class _FormParser(MultiPartParser):
    """A parser of forms with a limit for the headers of a part, which otherwise have none."""

    _header_bytes = 0

    def on_part_begin(self) -> None:
        """A part has begun."""
        self._header_bytes = 0
        super().on_part_begin()

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        """A piece of a header's name."""
        self._count(end - start)
        super().on_header_field(data, start, end)

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        """A piece of a header's value."""
        self._count(end - start)
        super().on_header_value(data, start, end)

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > _PART_HEADER:
            raise MultiPartException(f"the headers of a part have more than {_PART_HEADER} bytes")


def _json(body: bytes, limits: Limits) -> list[Photo]:
    content = parse_json(body, _TOKENS + _TOKENS_AN_IMAGE * limits.images)
    if not isinstance(content, dict) or set(content) != {"images"} or not isinstance(content["images"], list):
        raise _malformed("the body")
    images = content["images"]
    if len(images) > limits.images:
        raise _too_many(limits)
    return [_decode(image, number) for number, image in enumerate(images)]


def parse_json(body: bytes, tokens: int) -> Any:
    """The JSON value in `body`.

    A megabyte of `[[],[],...]` would take a gigabyte as Python objects. So a body with more than
    `tokens` brackets, commas, colons and quotes is refused before it is parsed. Raises ApiError.
    """
    count = sum(map(body.count, _STRUCTURE))
    if count > tokens:
        text = f"the JSON has {count} brackets, commas, colons and quotes; {tokens} are allowed"
        raise ApiError(400, "malformed", text)
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "malformed", f"the body is no JSON ({type(error).__name__})") from None


def _decode(image: Any, number: int) -> Photo:
    if isinstance(image, str):
        image = {"data": image}
    if not isinstance(image, dict) or not set(image) <= {"name", "data"} or "data" not in image:
        raise _malformed(f"images.{number}")
    name, data = image.get("name"), image["data"]
    if not isinstance(data, str) or not isinstance(name, str | None):
        raise _malformed(f"images.{number}")
    try:
        return Photo(_short(name, number), base64.b64decode(data, validate=True))
    except (binascii.Error, ValueError):
        raise ApiError(400, "malformed", f"images.{number}: the data is not base64") from None


def _malformed(field: str) -> ApiError:
    expected = '{"images": [{"name": "a.jpg", "data": "BASE64"}]}'
    return ApiError(400, "malformed", f"{field}: expected {expected}, or the BASE64 text alone")


def _short(name: str | None, number: int) -> str:
    return (name or f"image-{number}")[:_NAME]


def _too_many(limits: Limits) -> ApiError:
    return ApiError(
        413, "too_large", f"more than {limits.images} images; send them in several requests, or as a batch"
    )
