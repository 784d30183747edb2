"""A limit for the headers of requests, in the process of Ray Serve's HTTP proxy.

The proxy is uvicorn with httptools, which collects headers of any size, from anybody, before a key
is looked at. Serve's proxy calls a function of ours when it starts, which gives uvicorn's protocol
the limit.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

import ageray

MAX_HEADERS = 65_536
"""Bytes of a request before its body."""
HEADER_SECONDS = 20.0
"""In which the headers of a request have to come."""

_CALLBACK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
_REFUSAL = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\n"
    b"connection: close\r\ncontent-length: 80\r\n\r\n"
    + b'{"error": {"code": "too_large", "message": "the headers are over 64 KiB"}}'.ljust(80)
)


def prepare() -> None:
    """Has the proxy of a Ray that this process starts call `limit`."""
    os.environ.setdefault(_CALLBACK, f"{__name__}.limit")
    root = str(Path(ageray.__file__).parents[1])
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))


def limit() -> list[Any]:
    """What the proxy calls when it starts: limits the headers. Returns no further middleware."""
    limit_headers(HttpToolsProtocol)
    return []


def limit_headers(protocol: Any) -> None:
    """Gives a class of uvicorn's httptools protocol the limits MAX_HEADERS and HEADER_SECONDS."""
    if hasattr(protocol, "header_bytes"):
        return
    receive, begin = protocol.data_received, protocol.on_message_begin
    complete, lose = protocol.on_headers_complete, protocol.connection_lost

    def data_received(self: Any, data: bytes) -> None:
        receive(self, data)
        if self.header_timer is None:
            return
        self.header_bytes += len(data)
        if self.header_bytes > MAX_HEADERS:
            refuse(self)

    def on_message_begin(self: Any) -> None:
        self.header_bytes = 0
        self.header_timer = self.loop.call_later(HEADER_SECONDS, refuse, self)
        begin(self)

    def on_headers_complete(self: Any) -> None:
        stop_timer(self)
        complete(self)

    def connection_lost(self: Any, error: Exception | None) -> None:
        stop_timer(self)
        lose(self, error)

    def refuse(self: Any) -> None:
        stop_timer(self)
        if not self.transport.is_closing():
            self.transport.write(_REFUSAL)
            self.transport.close()

    def stop_timer(self: Any) -> None:
        if self.header_timer is not None:
            self.header_timer.cancel()
            self.header_timer = None

    protocol.header_bytes, protocol.header_timer = 0, None
    protocol.data_received, protocol.on_message_begin = data_received, on_message_begin
    protocol.on_headers_complete, protocol.connection_lost = on_headers_complete, connection_lost
