"""ASGI middleware of every request: checks the key, the origin and the size of the body, and
adds security headers to the answer. It is plain ASGI, so that it can refuse a request before
reading its body."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ageray.serve.auth import is_loopback, is_valid
from ageray.serve.errors import ApiError

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


class RequestGuard:
    """Passes a request on to `app`, or refuses it."""

    def __init__(self, app: ASGIApp, keys: tuple[bytes, ...], body: int) -> None:
        """keys: digests of the API keys; empty if none is asked for. body: the most bytes of a
        body."""
        self._app, self._keys, self._body = app, keys, body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            self._check(scope)
        except ApiError as error:
            await error.response()(scope, receive, send_with_headers)
            return
        await self._app(scope, self._limited(receive), send_with_headers)

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
        self._check_length(headers.get("content-length"))

    def _check_key(self, scope: Scope, headers: Headers) -> None:
        if not scope["path"].startswith("/v1/"):
            return
        kind, _, token = headers.get("authorization", "").partition(" ")
        key = token.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
        if not is_valid(key, self._keys):
            text = "wrong API key"
            if not key:
                text = "an API key is needed: Authorization: Bearer KEY, or X-API-Key: KEY"
            raise ApiError(401, "unauthorized", text, {"WWW-Authenticate": "Bearer"})

    def _check_length(self, length: str | None) -> None:
        if length is None:
            return
        if not length.isdecimal():
            raise ApiError(400, "malformed", "Content-Length is not a number")
        if int(length) > self._body:
            raise self._too_large()

    def _too_large(self) -> ApiError:
        return ApiError(
            413, "too_large", f"the body is over {self._body / 2**20:g} MiB; send fewer or smaller images"
        )

    def _limited(self, receive: Receive) -> Receive:
        """`receive` that raises ApiError as soon as the body is larger than allowed."""
        size = 0

        async def receive_limited() -> Message:
            nonlocal size
            message: Message = await receive()
            size += len(message.get("body", b""))
            if size > self._body:
                raise self._too_large()
            return message

        return receive_limited
