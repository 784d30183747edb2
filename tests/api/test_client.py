"""The client against a server that is busy, gone, or refuses."""

from __future__ import annotations

import json
import pickle
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

import ageray
from ageray.api import client as module

Answers = list[tuple[int, dict[str, str], Any]]


class Server:
    """Answers requests with a list of answers, one after the other, and remembers the requests."""

    def __init__(self, answers: Answers) -> None:
        requests: list[tuple[str, str, bytes]] = []
        self.requests = requests

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                requests.append((self.path, self.headers.get("Authorization", ""), body))
                status, headers, content = answers.pop(0)
                text = json.dumps(content).encode()
                self.send_response(status)
                for name, value in (headers | {"Content-Length": str(len(text))}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text)

            do_POST = do_GET

            def log_message(self, *_: Any) -> None:
                return

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the client would have waited."""
    seconds: list[float] = []
    monkeypatch.setattr(module.time, "sleep", seconds.append)
    return seconds


@pytest.fixture
def serve() -> Iterator[Any]:
    servers: list[Server] = []

    def start(*answers: tuple[int, dict[str, str], Any]) -> Server:
        servers.append(Server(list(answers)))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


BUSY = {"error": {"code": "busy", "message": "too many requests at once"}}
IMAGE = {"name": "photo 0", "faces": [], "error": "no face found"}


def test_a_busy_service_is_asked_again(serve: Any, waits: list[float]) -> None:
    server = serve((503, {"Retry-After": "2"}, BUSY), (502, {}, {}), (200, {}, {"images": [IMAGE]}))
    assert ageray.Client(server.url, "a-key").ages(b"content") == IMAGE
    assert waits[0] == 2
    assert 0.7 <= waits[1] <= 1.3
    assert {request[:2] for request in server.requests} == {("/v1/score", "Bearer a-key")}
    assert all(b"content" in body for _, _, body in server.requests)


def test_it_gives_up_after_its_retries(serve: Any, waits: list[float]) -> None:
    server = serve(*[(503, {}, BUSY)] * 3)
    with pytest.raises(ageray.ServiceError, match="too many requests at once") as caught:
        ageray.Client(server.url, retries=2).model()
    assert (caught.value.status, caught.value.code, len(waits)) == (503, "busy", 2)


def test_a_refusal_is_final(serve: Any, waits: list[float]) -> None:
    server = serve(
        (401, {}, {"error": {"code": "unauthorized", "message": "wrong API key"}}), (404, {}, "text")
    )
    client = ageray.Client(server.url)
    with pytest.raises(ageray.ServiceError, match="^wrong API key$") as caught:
        client.model()
    assert pickle.loads(pickle.dumps(caught.value)).status == 401
    with pytest.raises(ageray.ServiceError, match="answered 404"):
        client.job("none")
    assert waits == []


def test_a_service_that_is_not_there(waits: list[float]) -> None:
    with pytest.raises(ageray.ServiceError, match=r"http://127\.0\.0\.1:9: cannot be reached"):
        ageray.Client("http://127.0.0.1:9", retries=1).model()
    assert len(waits) == 1


def test_the_key_of_the_environment(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGERAY_API_KEY", "of-the-environment")
    server = serve((200, {}, {"name": "x"}))
    ageray.Client(server.url).model()
    assert server.requests[0][1] == "Bearer of-the-environment"


def test_a_list_is_sent_in_requests_of_the_services_size(serve: Any) -> None:
    limits = {"limits": {"images": 2}}
    server = serve((200, {}, limits), *[(200, {}, {"images": [IMAGE] * 2})] * 2)
    assert len(ageray.Client(server.url).ages([b"a", b"b", b"c", b"d"])) == 4
    assert [path for path, _, _ in server.requests] == ["/v1/model", "/v1/score", "/v1/score"]


def test_waiting_for_a_job(serve: Any, waits: list[float]) -> None:
    job = {"id": "x", "out": "/out", "message": None}
    states = [{**job, "state": state} for state in ("waiting", "running", "done")]
    server = serve(*[(200, {}, state) for state in states])
    assert ageray.Client(server.url).wait("x")["state"] == "done"
    assert len(waits) == 2
    failed = serve((200, {}, {**job, "state": "failed", "message": "no photos"}))
    with pytest.raises(ageray.ServiceError, match="/out: failed: no photos"):
        ageray.Client(failed.url).wait("x")
    slow = serve((200, {}, states[1]))
    with pytest.raises(TimeoutError, match="is running after 0 s"):
        ageray.Client(slow.url).wait("x", seconds=0)


def test_a_photo_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ageray.UserError, match=r"missing\.jpg: cannot be read: No such file"):
        ageray.Client("http://127.0.0.1:9").ages(tmp_path / "missing.jpg")
