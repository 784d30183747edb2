"""The service at its limit for a while, among clients that misbehave. Loopback only.

    python benchmarks/soak.py [--seconds 1800] [--requests 4]

Twice as many well-behaved clients as the service takes at once ask again and again. Beside them,
with another API key, one or two of each kind:

slow body       sends its body a byte a second, or stops in the midst of it
slow header     sends its headers a byte a second
gone            closes its connection in the midst of its body, or before its answer
too large       says a length beyond the limit, or sends more than it said
bomb            JSON of a million brackets or numbers, a form with a header without end
photos          damaged, cut short, or of a billion pixels by their header
not HTTP        random bytes

A further client asks for /healthz twice a second, each time on a new connection. Printed: statuses
by kind of client, the times of the health answers, and the memory of the service's processes. Exit
code 1 if there was a status of 500 and above other than 503 and 504, a health answer that was not
200 or took over 5 s, or memory in the last quarter 10 % above that of the second.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import socket
import statistics
import struct
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import requests
from PIL import Image

from ageray.serve import auth
from ageray.serve.app import start
from ageray.serve.settings import Limits, Service
from ageray.synthetic import faces

_BODY_MIB = 8
_KEY, _OTHER_KEY = "key-of-well-behaved-clients", "key-of-those-that-misbehave"
_HEADERS = (
    "POST /v1/score HTTP/1.1\r\nHost: localhost:{port}\r\nX-API-Key: {key}\r\n"
    "Content-Type: {kind}\r\nContent-Length: {size}\r\n"
)
_JSON = "application/json"
_FORM = "multipart/form-data; boundary=x"


class Clients:
    """Threads that ask until the end. `statuses` by kind of client; 0: no answer."""

    def __init__(self, port: int, seconds: float, photos: list[bytes]) -> None:
        self.port, self.url, self.photos = port, f"http://127.0.0.1:{port}", photos
        self.statuses: dict[str, Counter[int]] = defaultdict(Counter)
        self.health: list[float] = []
        self._end = time.monotonic() + seconds
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()

    def add(self, kind: str, ask: Callable[[], int], clients: int, pause: float) -> None:
        """Starts clients that ask, pause, and ask again."""

        def run() -> None:
            while time.monotonic() < self._end:
                status = 0
                with suppress(OSError, requests.RequestException):
                    status = ask()
                with self._lock:
                    self.statuses[kind][status] += 1
                time.sleep(pause * random.uniform(0.5, 1.5))

        for _ in range(clients):
            self._threads.append(threading.Thread(target=run, daemon=True))
            self._threads[-1].start()

    def join(self) -> None:
        """Waits for all threads."""
        for thread in self._threads:
            thread.join(60)

    # --- what they ask ---------------------------------------------------------------------------

    def score(self) -> int:
        """Two photos; after a 503 the pause that it asks for."""
        files = [("images", ("a.jpg", photo)) for photo in random.sample(self.photos, 2)]
        answer = self.post(_KEY, files=files)
        if answer.status_code == 200:
            assert all(image["error"] is None for image in answer.json()["images"])
        elif answer.status_code == 503:
            time.sleep(float(answer.headers["Retry-After"]))
        return answer.status_code

    def post(self, key: str, kind: str = "", **content: Any) -> requests.Response:
        """A request for scores."""
        headers = {"X-API-Key": key} | ({"Content-Type": kind} if kind else {})
        return requests.post(f"{self.url}/v1/score", headers=headers, timeout=180, **content)

    def ask_health(self) -> int:
        """Whether the service lives."""
        started = time.monotonic()
        status = requests.get(f"{self.url}/healthz", timeout=30).status_code
        self.health.append(time.monotonic() - started)
        return status

    def odd_photos(self) -> int:
        """Photos that cannot be decoded, or must not be."""
        photo = random.choice(self.photos)
        kinds = [photo[: len(photo) // 2], os.urandom(2000), b"", bomb(), random_damage(photo)]
        files = [("images", ("a.jpg", content)) for content in random.sample(kinds, 3)]
        return self.post(_OTHER_KEY, files=files).status_code

    def bomb(self) -> int:
        """A body that is costly to parse."""
        bodies = [
            (b"[" * 1_000_000, _JSON),
            (b'{"images": [' + b"1," * 1_000_000 + b"1]}", _JSON),
            (b'--x\r\nContent-Disposition: form-data; name="images"; filename="' + b"a" * 10**6, _FORM),
        ]
        body, kind = random.choice(bodies)
        return self.post(_OTHER_KEY, data=body, kind=kind).status_code

    def too_large(self) -> int:
        """A length beyond the limit; or more bytes than the limit, in chunks without a length."""
        if random.random() < 0.5:
            return self.raw(self.headers(10**12), wait=30)
        pieces = (bytes(2**20) for _ in range(_BODY_MIB + 2))
        return self.post(_OTHER_KEY, data=pieces, kind=_FORM).status_code

    def slow_body(self) -> int:
        """A byte a second for 15 s, or nothing more."""
        drops = [b"x"] * random.choice((0, 15))
        return self.raw(self.headers(100_000), *drops, wait=30, pause=1.0)

    def slow_header(self) -> int:
        """A byte a second."""
        return self.raw(*[bytes([byte]) for byte in self.headers(10)[:25]], wait=30, pause=1.0)

    def gone(self) -> int:
        """Closes the connection in the midst of the body, or before the answer."""
        form = b'--x\r\nContent-Disposition: form-data; name="images"; filename="a.jpg"\r\n\r\n'
        form += random.choice(self.photos) + b"\r\n--x--\r\n"
        sent = random.choice((form[: len(form) // 2], form))
        return self.raw(self.headers(len(form), _FORM), sent, wait=0)

    def not_http(self) -> int:
        """Random bytes."""
        return self.raw(os.urandom(random.randint(1, 5000)), wait=30)

    def headers(self, size: int, kind: str = _JSON) -> bytes:
        """The start of a request."""
        return (_HEADERS.format(port=self.port, key=_OTHER_KEY, kind=kind, size=size) + "\r\n").encode()

    def raw(self, *parts: bytes, wait: float, pause: float = 0.0) -> int:
        """Sends parts over a socket; the status of the answer, 0 without one."""
        with socket.create_connection(("127.0.0.1", self.port), 10) as connection:
            connection.settimeout(wait or 10)
            try:
                for part in parts:
                    connection.sendall(part)
                    time.sleep(pause)
                if not wait:
                    time.sleep(random.uniform(0, 1))
                    return 0
                answer = connection.recv(100)
            except ConnectionError:
                return 0
        return int(answer.split()[1]) if answer.startswith(b"HTTP/1.1 ") else 0


def bomb() -> bytes:
    """A PNG of 40,000 x 40,000 pixels by its header."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    end = struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + end


def random_damage(photo: bytes) -> bytes:
    """The photo with 20 bytes changed."""
    content = bytearray(photo)
    for _ in range(20):
        content[random.randrange(len(content))] = random.randrange(256)
    return bytes(content)


def memory() -> float:
    """MiB of the processes of Ray Serve below this one, without the pages that they share."""
    total = 0
    for process in psutil.Process().children(recursive=True):
        try:
            if "ray::Serve" in " ".join(process.cmdline()) or "ray::Proxy" in " ".join(process.cmdline()):
                total += process.memory_full_info().uss
        except psutil.Error:
            continue
    return total / 2**20


def draw_photos(count: int) -> list[bytes]:
    """Small photos with a face."""
    photos = []
    with tempfile.TemporaryDirectory() as folder:
        for file in map(Path, faces.write_photos(folder, count)):
            content = io.BytesIO()
            Image.open(file).resize((320, 240)).save(content, "JPEG", quality=90)  # type: ignore[no-untyped-call]
            photos.append(content.getvalue())
    return photos


def report(clients: Clients, sizes: list[float]) -> bool:
    """Prints what came of it; whether all is as it should be."""
    strange = 0
    for kind, statuses in clients.statuses.items():
        print(f"{kind:<12} {json.dumps(dict(sorted(statuses.items())))}")
        strange += sum(n for status, n in statuses.items() if status >= 500 and status not in (503, 504))
    times = sorted(clients.health)
    p99 = times[int(0.99 * (len(times) - 1))]
    print(
        f"health: {len(times)} answers, median {statistics.median(times):.3f} s, "
        f"99 % below {p99:.3f} s, longest {times[-1]:.3f} s"
    )
    quarter = len(sizes) // 4
    second = statistics.mean(sizes[quarter : 2 * quarter])
    last = statistics.mean(sizes[3 * quarter :])
    print(f"memory: {second:.0f} MiB in the second quarter, {last:.0f} in the last, most {max(sizes):.0f}")
    alive = set(clients.statuses["health"]) == {200} and times[-1] < 5
    print(f"statuses of 500 and above, without 503 and 504: {strange}")
    return not strange and alive and last < 1.1 * second


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="zoo:fast", help="(default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--requests", type=int, default=4, help="limits.requests (default: %(default)s)")
    arguments = parser.parse_args()
    photos = draw_photos(8)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ[auth.VARIABLE] = f"{_KEY},{_OTHER_KEY}"
    limits = Limits(requests=arguments.requests, body_mib=_BODY_MIB, seconds=60)
    start(Service(model=arguments.model, limits=limits), "127.0.0.1", port)
    clients = Clients(port, arguments.seconds, photos)
    assert clients.score() == 200
    clients.add("well-behaved", clients.score, 2 * arguments.requests, 0.0)
    for kind, ask, count, pause in (
        ("health", clients.ask_health, 1, 0.5),
        ("slow body", clients.slow_body, 2, 0.0),
        ("slow header", clients.slow_header, 2, 0.0),
        ("gone", clients.gone, 2, 0.2),
        ("too large", clients.too_large, 1, 1.0),
        ("bomb", clients.bomb, 1, 1.0),
        ("photos", clients.odd_photos, 1, 1.0),
        ("not HTTP", clients.not_http, 1, 0.5),
    ):
        clients.add(kind, ask, count, pause)
    sizes = []
    ends = time.monotonic() + arguments.seconds
    while time.monotonic() < ends:
        time.sleep(max(2.0, arguments.seconds / 40))
        sizes.append(memory())
    clients.join()
    good = report(clients, sizes)
    print("as it should be" if good else "NOT as it should be")
    sys.exit(not good)


if __name__ == "__main__":
    main()
