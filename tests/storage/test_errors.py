"""Stores that are away for a while: what passes, what lasts, and how long is waited."""

from __future__ import annotations

import asyncio
import errno
import gc
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import fsspec.asyn
import pytest
from aiohttp import ClientConnectionResetError

from ageray import storage
from ageray.errors import StoreError, UserError
from ageray.storage import errors as store_errors
from ageray.storage import stores


class Moody(BaseHTTPRequestHandler):
    """Answers with the status in the path; `/flaky` with 503 the first two times."""

    asked = 0
    lines: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        status = 200
        Moody.lines.append(f"{self.command} {self.path}")
        if self.path.startswith(("/long", "/cut")):
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(b"0123456789" * (10_000 if self.path == "/long" else 10))
            return
        if self.path.startswith("/flaky"):
            Moody.asked += 1
            status = 503 if Moody.asked <= 2 else 200
        elif self.path[1:].isdecimal():
            status = int(self.path[1:])
        self.send_response(status)
        self.send_header("Content-Length", "0" if self.command == "HEAD" else "5")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(b"bytes")

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def web() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Moody)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_errors, "_FIRST_PAUSE", 0.05)
    monkeypatch.setattr(store_errors, "_gave_up", {})


def test_a_server_that_is_busy_twice_is_asked_again(web: str) -> None:
    assert storage.read_bytes(f"{web}/flaky") == b"bytes"
    assert Moody.asked == 3


@pytest.mark.parametrize(
    ("status", "kind", "text"),
    [
        (404, UserError, "not found"),
        (403, UserError, "access denied"),
        (451, UserError, "status 451"),
        (500, StoreError, "does not answer.*500"),
        (503, StoreError, "does not answer.*503.*same command again"),
        (429, StoreError, "does not answer.*429"),
    ],
)
def test_what_lasts_is_not_asked_again(status: int, kind: type[UserError], text: str, web: str) -> None:
    with pytest.raises(kind, match=text) as caught:
        storage.read_bytes(f"{web}/{status}")
    assert type(caught.value) is kind


@pytest.mark.parametrize("limit", [10, 70_000, 100_000, 200_000])
def test_a_photo_of_the_web_takes_one_request(limit: int, web: str) -> None:
    Moody.lines.clear()
    assert storage.read_bytes(f"{web}/long", limit) == (b"0123456789" * 10_000)[:limit]
    assert Moody.lines == ["GET /long"]
    with pytest.raises(UserError, match="not found"):
        storage.read_bytes(f"{web}/404", limit)


def test_an_answer_that_breaks_off_is_asked_for_again(web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(store_errors.PATIENCE, "0.3")
    Moody.lines.clear()
    with pytest.raises(StoreError, match="does not answer"):
        storage.read_bytes(f"{web}/cut", 100_000)
    assert len(Moody.lines) > 1


@pytest.mark.parametrize("limit", [None, 10])
def test_a_refused_connection_is_not_a_missing_file(limit: int | None) -> None:
    with pytest.raises(StoreError, match="does not answer"):
        storage.read_bytes("http://127.0.0.1:9/photo.jpg", limit)
    with pytest.raises(StoreError, match="does not answer"):
        storage.exists("http://127.0.0.1:9/photo.jpg")


def test_a_dead_store_costs_its_patience_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(store_errors.PATIENCE, "0.5")
    seconds = []
    for _ in range(4):
        started = time.monotonic()
        with pytest.raises(StoreError):
            storage.read_bytes("http://127.0.0.1:9/photo.jpg")
        seconds.append(time.monotonic() - started)
    assert seconds[0] >= 0.4
    assert sum(seconds[1:]) < 0.4


@pytest.mark.parametrize(
    ("error", "passing"),
    [
        (TimeoutError(), True),
        (ConnectionResetError(), True),
        (OSError(errno.ESTALE, "stale"), True),
        (OSError(errno.EBUSY, "slow down"), True),
        (OSError("When reading: AWS Error NETWORK_CONNECTION during GetObject: curlCode: 7"), True),
        (OSError(errno.EIO, "bad block"), False),
        (OSError(errno.ENOSPC, "full"), False),
        (FileNotFoundError("x"), False),
        (PermissionError("x"), False),
        (ValueError("x"), False),
        (KeyError("ours"), False),
    ],
)
def test_what_may_pass(error: Exception, passing: bool) -> None:
    assert store_errors.is_passing(error) is passing


def test_a_full_disk_says_so() -> None:
    def write() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match="/out: no space is left there; free some and give the same command"):
        store_errors.repeat("/out", write)


@pytest.mark.parametrize(("error", "told"), [(ClientConnectionResetError(), False), (KeyError("x"), True)])
def test_a_task_that_nobody_awaits(
    error: Exception, told: bool, web: str, caplog: pytest.LogCaptureFixture
) -> None:
    """aiohttp leaves tasks behind whose connection broke; a mistake of ours is still told."""
    stores.fsspec_store(web)
    loop = fsspec.asyn.get_loop()

    async def broken() -> None:
        raise error

    async def leave() -> None:
        task = asyncio.ensure_future(broken())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        del task
        gc.collect()

    asyncio.run_coroutine_threadsafe(leave(), loop).result(10)
    assert ("never retrieved" in caplog.text) == told
