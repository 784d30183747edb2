"""Clients that send too much, too slowly, or too often; without a cluster."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import signal
import socket
import threading
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from ageray import storage
from ageray.errors import UserError
from ageray.serve import auth, batches, middleware, process, proxy, traffic
from ageray.serve.errors import ApiError
from ageray.serve.metrics import Metrics
from ageray.serve.middleware import RequestMiddleware
from ageray.serve.schemas import BatchRequest
from ageray.serve.settings import Batches, Limits
from ageray.serve.settings import Service as Settings
from ageray.serve.traffic import Traffic
from ageray.serve.uploads import read_photos

KEY = "a-key-of-the-tests-0123456789"
LIMITS = Limits(body_mib=1, images=6)

Receive = Callable[[], Awaitable[dict[str, Any]]]


async def _score(request: Request) -> JSONResponse:
    try:
        photos = await read_photos(request, LIMITS)
    except ApiError as error:
        return error.response()
    return JSONResponse({"images": len(photos)})


async def _batches(request: Request) -> JSONResponse:
    return JSONResponse({"bytes": len(await request.body())})


async def _health(request: Request) -> JSONResponse:
    return JSONResponse({"status": "ok"})


class Service:
    """The middleware before a small application."""

    def __init__(self, bodies: int = 20) -> None:
        routes = [
            Route("/v1/score", _score, methods=["POST"]),
            Route("/v1/batches", _batches, methods=["POST"]),
            Route("/healthz", _health),
        ]
        self.traffic = Traffic(bodies)
        self.app = RequestMiddleware(Starlette(routes=routes), (), 2**20, self.traffic, Metrics())

    async def ask(self, path: str, receive: Receive, **headers: str) -> tuple[int, dict[str, str], Any]:
        """Status, headers and JSON of the answer."""
        method = "GET" if path == "/healthz" else "POST"
        given = {"host": "localhost", "content_type": "application/json"} | headers
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "scheme": "http",
            "http_version": "1.1",
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
            "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in given.items()],
        }
        messages: list[Any] = []

        async def send(message: Any) -> None:
            messages.append(message)

        await self.app(scope, receive, send)
        start = messages[0]
        own = {name.decode(): value.decode() for name, value in start["headers"]}
        body = b"".join(message.get("body", b"") for message in messages[1:])
        return start["status"], own, json.loads(body)

    async def post(self, path: str, body: bytes, **headers: str) -> tuple[int, dict[str, str], Any]:
        return await self.ask(path, whole(body), **headers)


def whole(body: bytes) -> Receive:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


async def never() -> dict[str, Any]:
    """A client that sends nothing more."""
    await asyncio.sleep(600)
    raise AssertionError


BOMBS = {
    "numbers": b'{"images": [' + b"1," * 500_000 + b"1]}",
    "texts": b'{"images": [' + b'"",' * 300_000 + b'""]}',
    "objects": b'{"images": [' + b"{}," * 300_000 + b"{}]}",
    "keys": b"{" + b",".join(b'"%06d":1' % number for number in range(90_000)) + b"}",
    "depth": b"[" * 1_000_000,
    "few but deep": b"[" * 3000,
}


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("path", ["/v1/score", "/v1/batches"])
def test_json_that_would_fill_the_memory(name: str, path: str) -> None:
    started = time.process_time()
    tracemalloc.start()
    status, _, body = asyncio.run(Service().post(path, BOMBS[name]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    if path == "/v1/score":
        assert (status, body["error"]["code"]) == (400, "malformed")
    else:
        assert status == (200 if len(BOMBS[name]) < 65_536 else 413)
    assert time.process_time() - started < 1
    assert peak < 20 * 2**20


def test_json_with_odd_names_is_read() -> None:
    names = ['a{,}[]:".jpg' * 20] * 6
    body = json.dumps({"images": [{"name": name, "data": "YWJj"} for name in names]}).encode()
    assert asyncio.run(Service().post("/v1/score", body))[::2] == (200, {"images": 6})


def test_form_whose_part_has_a_header_without_end() -> None:
    start = b'--x\r\nContent-Disposition: form-data; name="images"; filename="'
    body = start + b"a" * 500_000 + b'"\r\n\r\nx\r\n--x--\r\n'
    kind = {"content_type": "multipart/form-data; boundary=x"}
    started = time.process_time()
    status, _, answer = asyncio.run(Service().post("/v1/score", body, **kind))
    assert (status, answer["error"]["code"]) == (400, "malformed")
    assert time.process_time() - started < 1


def test_slow_bodies_leave_room_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred that never end: others are answered meanwhile, and then all are refused."""
    monkeypatch.setattr(middleware, "_SMALL_SECONDS", 1.0)
    monkeypatch.setattr(middleware, "_SILENCE", 1.0)

    async def run() -> None:
        service = Service()
        slow = [
            asyncio.create_task(service.ask(path, never))
            for path in ("/v1/batches", "/v1/score")
            for _ in range(50)
        ]
        await asyncio.sleep(0.1)
        assert sum(task.done() for task in slow) == 80  # more than 20 at once are refused
        started = time.monotonic()
        assert (await service.ask("/healthz", whole(b"")))[0] == 200
        assert time.monotonic() - started < 0.5
        statuses = [answer[0] for answer in await asyncio.gather(*slow)]
        assert sorted(set(statuses)) == [408, 503]
        assert statuses.count(408) == 20
        assert (await service.post("/v1/batches", b"{}"))[0] == 200

    asyncio.run(run())


def test_slow_bodies_of_one_client_do_not_stop_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic, "SLOW", 0.05)

    async def run() -> None:
        service = Service()
        slow = [asyncio.create_task(service.ask("/v1/batches", never)) for _ in range(4)]
        await asyncio.sleep(0.1)
        status, headers, body = await service.post("/v1/batches", b"{}")
        assert (status, body["error"]["code"], headers["retry-after"]) == (503, "busy", "5")
        assert (await service.post("/v1/batches", b"{}", x_api_key=KEY))[0] == 200
        for task in slow:
            task.cancel()

    asyncio.run(run())


def test_an_ending_service_answers_what_it_has_begun() -> None:
    async def run() -> None:
        service = Service()
        release = asyncio.Event()

        async def late() -> dict[str, Any]:
            await release.wait()
            return {"type": "http.request", "body": b"{}", "more_body": False}

        begun = asyncio.create_task(service.ask("/v1/batches", late))
        await asyncio.sleep(0.05)
        drained = asyncio.create_task(service.traffic.drain(5))
        await asyncio.sleep(0.05)
        status, headers, body = await service.ask("/healthz", whole(b""))
        assert (status, body["error"]["code"], headers["connection"]) == (503, "stopping", "close")
        assert not drained.done()
        release.set()
        assert (await begun)[0] == 200
        assert await drained == 0
        assert await service.traffic.drain(0) == 0

    asyncio.run(run())


def test_log_lines_have_the_requests_id_and_name_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    service = Service()
    service.traffic.draining = True
    with caplog.at_level(logging.WARNING, "ageray.serve"):
        asyncio.run(service.post("/v1/batches/of-somebody", b"{}", x_request_id="abc-2"))
    expected = {"request": "abc-2", "method": "POST", "route": "other", "status": 503}
    assert json.loads(caplog.records[-1].message) == expected


# --- the proxy's headers --------------------------------------------------------------------------


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, int]]:
    """A server as Serve's proxy is one."""

    class Protocol(proxy.HttpToolsProtocol):
        """Changed for these tests alone."""

    monkeypatch.setattr(proxy, "HEADER_SECONDS", 1.0)
    proxy.limit_headers(Protocol)
    app = Starlette(routes=[Route("/healthz", _health), Route("/v1/batches", _batches, methods=["POST"])])
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, http=Protocol, log_config=None, lifespan="off"))
        server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield listener.getsockname()
        server.should_exit = True
        thread.join(10)


def exchange(address: tuple[str, int], *parts: bytes) -> bytes:
    """What a server sends until it closes."""
    answer = b""
    with socket.create_connection(address, 10) as connection:
        connection.settimeout(10)
        try:
            for part in parts:
                connection.sendall(part)
            while piece := connection.recv(65_536):
                answer += piece
        except ConnectionError:  # closed while we still send
            return answer or b"closed"
    return answer


def test_headers_have_a_limit_in_size_and_time(limited: tuple[str, int]) -> None:
    start = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    assert b"200 OK" in exchange(limited, start + b"X: " + b"a" * 30_000 + b"\r\n\r\n")
    for more in (b"X: " + b"a" * 2_000_000, b"X: a\r\n" * 500_000):
        answer = exchange(limited, start, more, b"\r\n\r\n")
        assert b"431" in answer or answer == b"closed"
    started = time.monotonic()
    assert b"431" in exchange(limited, start)
    assert 0.5 < time.monotonic() - started < 5
    post = (
        b"POST /v1/batches HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 500000\r\n\r\n"
    )
    assert b'{"bytes":500000}' in exchange(limited, post + bytes(300_000), bytes(200_000))
    two = start.replace(b"Connection: close\r\n", b"") + b"\r\n"
    assert exchange(limited, two, start + b"\r\n").count(b"200 OK") == 2


# --- keys -----------------------------------------------------------------------------------------


def test_keys_stay_in_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(auth.VARIABLE, KEY)
    (digest,) = auth.take_digests()
    assert auth.VARIABLE not in os.environ
    assert auth.is_valid(KEY, (digest,))
    monkeypatch.setenv(auth.DIGESTS, digest.hex())
    assert auth.digests() == (digest,)
    auth.check_host("0.0.0.0")
    monkeypatch.setenv(auth.DIGESTS, KEY)
    with pytest.raises(UserError, match="digest 1 is not SHA-256 in hex"):
        auth.digests()


# --- jobs that outlive who started them ---------------------------------------------------------


def test_a_job_is_found_again_and_its_end_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "a.log"
    monkeypatch.setattr(process.sys, "executable", "/bin/sleep")
    monkeypatch.setattr(process, "_SCRIPT", process._SCRIPT.replace('"$@"', "sleep 1; (exit 3)"))
    first = process.start([], log, "127.0.0.1:1")
    again = process.Job(log)
    assert first.returncode is None
    assert again.returncode is None
    end = time.monotonic() + 30
    while again.returncode is None and time.monotonic() < end:
        time.sleep(0.05)
    assert again.returncode == first.returncode == 3
    assert process.Job(log).returncode == 3


def test_a_job_that_was_killed_or_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "a.log"
    monkeypatch.setattr(process, "_SCRIPT", process._SCRIPT.replace('"$@"', "sleep 600"))
    killed = process.start([], log, "127.0.0.1:1")
    os.killpg(killed._pid, signal.SIGKILL)
    end = time.monotonic() + 30
    while process.Job(log).returncode is None and time.monotonic() < end:
        time.sleep(0.05)
    assert process.Job(log).returncode == -9
    stopped = process.start([], log, "127.0.0.1:1")
    time.sleep(0.3)
    started = time.monotonic()
    stopped.stop()
    assert time.monotonic() - started < 5
    assert stopped.returncode == 130


# --- a full disk --------------------------------------------------------------------------------


def test_a_full_disk_loses_no_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that cannot be recorded is refused; one that runs is recorded when there is space."""
    monkeypatch.setattr(
        batches.ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="127.0.0.1:1")
    )
    monkeypatch.setattr(process, "_SCRIPT", process._SCRIPT.replace('"$@"', "sleep 1; (exit 3)"))
    (tmp_path / "photos").mkdir()
    request = BatchRequest(input=str(tmp_path / "photos"), out=str(tmp_path / "out"))
    folder = tmp_path / "records"
    limits = Batches(inputs=(str(tmp_path),), outputs=(str(tmp_path),), records=str(folder))
    write, full = storage.write_text, [True]

    def write_if_there_is_space(uri: str, text: str) -> None:
        if full[0]:
            raise UserError(f"{uri}: no space is left there")
        write(uri, text)

    def state(name: str) -> str:
        return str(json.loads((folder / "service" / f"{name}.json").read_text())["state"])

    async def run() -> None:
        jobs = batches.BatchJobs.func_or_class(Settings(batches=limits), "service")
        with pytest.raises(ApiError) as refusal:
            await jobs.submit(request)
        assert (refusal.value.status, refusal.value.code) == (503, "no_space")
        assert await jobs.list_batches() == []
        full[0] = False
        name = (await jobs.submit(request)).id
        full[0] = True
        while (await jobs.get(name)).state == "waiting":
            await asyncio.sleep(0.05)
        assert state(name) == "waiting"
        monkeypatch.setattr(process.Path, "read_text", no_exit_file)
        while (await jobs.get(name)).state == "running":
            await asyncio.sleep(0.05)
        job = await jobs.get(name)
        assert (job.state, job.message[:24]) == ("failed", "ended with exit code 3; ")
        full[0] = False
        while state(name) != "failed":
            await asyncio.sleep(0.05)
        jobs.check_health()
        monkeypatch.setattr(process, "start", no_space)
        name = (await jobs.submit(request)).id
        while (await jobs.get(name)).state == "waiting":
            await asyncio.sleep(0.05)
        assert "cannot be started ([Errno 28] No space" in (await jobs.get(name)).message
        jobs.check_health()
        jobs._loop.cancel()

    read = Path.read_text

    def no_exit_file(self: Path, *arguments: Any, **options: Any) -> str:
        if self.suffix == ".exit":
            raise FileNotFoundError
        return read(self, *arguments, **options)

    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage, "write_text", write_if_there_is_space)
    asyncio.run(asyncio.wait_for(run(), 60))


def test_a_job_whose_process_cannot_be_named_is_not_left_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_SCRIPT", process._SCRIPT.replace('"$@"', f"sleep 2; touch {tmp_path}/ran"))
    (tmp_path / "a.pid").mkdir()  # cannot be written
    with pytest.raises(OSError, match="a.pid"):
        process.start([], tmp_path / "a.log", "127.0.0.1:1")
    time.sleep(2.5)
    assert not (tmp_path / "ran").exists()
