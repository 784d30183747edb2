"""ASGI middleware of every request: checks the key, the origin, the size and the speed of the
body; adds security headers to the answer, and logs failures with the request's id.

It is plain ASGI, so that it can refuse a request before reading its body.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
import uuid
from contextlib import ExitStack
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ageray.serve.auth import is_loopback, is_valid
from ageray.serve.errors import ApiError
from ageray.serve.metrics import Metrics
from ageray.serve.traffic import Traffic

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


_LARGE = "/v1/score"  # the one path whose body is large
_SMALL_BODY = 65_536  # bytes of any other body
_SMALL_SECONDS = 10.0  # in which a small body has to come
_SILENCE = 10.0  # seconds between two pieces of a large body
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LOG = logging.getLogger("ageray.serve")


class RequestMiddleware:
    """Passes a request on to `app`, or refuses it."""

    def __init__(
        self, app: ASGIApp, keys: tuple[bytes, ...], body: int, traffic: Traffic, metrics: Metrics
    ) -> None:
        """keys: digests of the API keys; empty if none is asked for. body: the most bytes of the
        body of a request that scores. metrics: counts the requests."""
        self._app, self._keys, self._body = app, keys, body
        self._traffic, self._metrics = traffic, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        with self._metrics.request() as outcome:
            await self._answer(scope, receive, send, outcome)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, outcome: list[str]) -> None:
        """Handles one request. outcome: gets the route and the status of its answer."""
        request = _request_id(Headers(scope=scope))
        answered = False

        async def send_with_headers(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                answered = True
                outcome[:] = [_route_of(scope), str(message["status"])]
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                if message["status"] >= 500:
                    _log(request, scope, message["status"])
            await send(message)

        try:
            self._check(scope)
            with self._traffic.request():
                await self._pass_on(scope, receive, send_with_headers)
        except ApiError as error:
            if not answered:
                await error.response()(scope, receive, send_with_headers)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, self._limited(receive, _SMALL_BODY), send)
            return
        client = _client(scope)
        if scope["path"] != _LARGE:
            with self._traffic.body(client):
                body = await self._small_body(receive)
            await self._app(scope, _replayed(body, receive), send)
            return
        with ExitStack() as stack:
            stack.enter_context(self._traffic.body(client))
            await self._app(scope, self._limited(receive, self._body, stack), send)

    async def _small_body(self, receive: Receive) -> bytes:
        """A whole body. Raises ApiError: 413, or 408 if it comes too slowly."""
        receive_limited = self._limited(receive, _SMALL_BODY)
        parts = []
        try:
            async with asyncio.timeout(_SMALL_SECONDS):
                while True:
                    message = await receive_limited()
                    parts.append(message.get("body", b""))
                    if message["type"] == "http.disconnect" or not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            raise _too_slow() from None

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if origin is not None and scope["method"] not in ("GET", "HEAD") and urlsplit(origin).netloc != host:
            raise ApiError(403, "other_origin", "another site's page may not ask here")
        if self._keys:
            self._check_key(scope, headers)
        elif not is_loopback((scope.get("client") or ("",))[0]) or not is_loopback(host):
            raise ApiError(
                403,
                "no_keys",
                "this service has no API keys and so answers its own machine alone, as localhost",
            )
        self._check_length(headers.get("content-length"), scope)

    def _check_key(self, scope: Scope, headers: Headers) -> None:
        if not scope["path"].startswith("/v1/") and scope["path"] != "/metrics":
            return
        key = _key(headers)
        if not is_valid(key, self._keys):
            text = "wrong API key"
            if not key:
                text = "an API key is needed: Authorization: Bearer KEY, or X-API-Key: KEY"
            raise ApiError(401, "unauthorized", text, {"WWW-Authenticate": "Bearer"})

    def _check_length(self, length: str | None, scope: Scope) -> None:
        if length is None:
            return
        if not length.isdecimal():
            raise ApiError(400, "malformed", "Content-Length is not a number")
        if len(length) > 18 or int(length) > (self._body if scope["path"] == _LARGE else _SMALL_BODY):
            raise _too_large(self._body if scope["path"] == _LARGE else _SMALL_BODY)

    def _limited(self, receive: Receive, most: int, stack: ExitStack | None = None) -> Receive:
        """`receive` that raises ApiError as soon as the body is larger than `most`, or pauses for
        too long. stack: is closed when the whole body has come.
        """
        size, is_whole = 0, False

        async def receive_limited() -> Message:
            nonlocal size, is_whole
            if is_whole:
                return await receive()  # waits for the client to go away
            try:
                async with asyncio.timeout(_SILENCE):
                    message: Message = await receive()
            except TimeoutError:
                raise _too_slow() from None
            size += len(message.get("body", b""))
            if size > most:
                raise _too_large(most)
            is_whole = not message.get("more_body")
            if is_whole and stack is not None:
                stack.close()
            return message

        return receive_limited


def _replayed(body: bytes, receive: Receive) -> Receive:
    """`receive` that gives a body that was read already."""
    is_given = False

    async def receive_again() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again


def _request_id(headers: Headers) -> str:
    """The id that Serve's proxy passes on, and adds to the answer: the client's or a new one."""
    own = headers.get("x-request-id", "")
    return own if _ID.fullmatch(own) else uuid.uuid4().hex


def _client(scope: Scope) -> str:
    """Who asks: behind a proxy all have its address, so keys tell them apart."""
    key = _key(Headers(scope=scope))
    if key:
        return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
    return str((scope.get("client") or ("",))[0])


def _key(headers: Headers) -> str:
    kind, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")


def _log(request: str, scope: Scope, status: int) -> None:
    """One line of JSON for an answer of 500 and above, without names of files or of clients."""
    route = scope["path"] if scope["path"] in (_LARGE, "/healthz", "/v1/batches") else "other"
    record = {"request": request, "method": scope["method"], "route": route, "status": status}
    _LOG.warning(json.dumps(record))


def _too_large(most: int) -> ApiError:
    size = f"{most / 2**20:g} MiB"
    return ApiError(413, "too_large", f"the body is over {size}; send fewer or smaller images")


def _too_slow() -> ApiError:
    return ApiError(408, "too_slow", "the body comes too slowly; send it again", {"Connection": "close"})


def _route_of(scope: Scope) -> str:
    """The route's path as it is declared, so that names of jobs make no series of their own."""
    route = getattr(scope.get("route"), "path", "")
    return str(route) or "other"
