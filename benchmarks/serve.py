"""The service against the predictor in process, on the same cores in one run; then twice its
capacity for a minute. Loopback only.

    python benchmarks/serve.py [--requests 12] [--images 32] [--overload 60]

Drawn photos of 640 x 480. In process: decoding and detection in as many threads as cores, then
batches of ages. The service: that many images a request, two requests under way.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import requests

from ageray import bundle
from ageray.serve.app import start
from ageray.serve.ingress import find_faces
from ageray.serve.settings import Service
from ageray.serve.uploads import Photo
from ageray.stages.predict import AgeFaces
from ageray.synthetic import faces

Files = list[tuple[str, tuple[str, bytes]]]


def in_process(photos: list[Photo], model: str, rounds: int) -> float:
    """Images a second of the predictor's path; the first round warms up."""
    experiment, aged = bundle.load(model).experiment, AgeFaces(model, posterior=True)
    cv2.setNumThreads(1)
    threads = os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool:
        for turn in range(rounds + 1):
            if turn == 1:
                started = time.perf_counter()
            parts = [photos[number::threads] for number in range(threads)]
            for _, found in pool.map(
                lambda part: find_faces(part, experiment.align, experiment.data.detect, 50), parts
            ):
                aged(found)
    return rounds * len(photos) / (time.perf_counter() - started)


def ask(url: str, files: Files) -> tuple[int, float]:
    """Status and seconds of a request."""
    started = time.perf_counter()
    answer = requests.post(f"{url}/v1/score", files=files, timeout=180)
    if answer.status_code == 200:
        assert all(image["error"] is None for image in answer.json()["images"])
    elif answer.status_code == 503:
        time.sleep(float(answer.headers["Retry-After"]))
    return answer.status_code, time.perf_counter() - started


def resident() -> float:
    """MiB of all processes of this user that belong to Ray Serve."""
    total = 0
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            text = status.read_text()
        except OSError:
            continue
        if "ray::Serve" in text.split("\n", 1)[0] or "ray::Proxy" in text.split("\n", 1)[0]:
            total += int(text.split("VmRSS:")[1].split()[0])
    return total / 1024


def overload(url: str, files: Files, clients: int, seconds: float) -> tuple[Counter[int], list[float]]:
    """Statuses of `clients` that ask again and again, and memory every second quarter."""
    ends = time.monotonic() + seconds
    statuses: Counter[int] = Counter()

    def client(_: int) -> list[int]:
        found = []
        while time.monotonic() < ends:
            found.append(ask(url, files)[0])
        return found

    with ThreadPoolExecutor(clients) as pool:
        running = [pool.submit(client, number) for number in range(clients)]
        memory = []
        for _ in range(4):
            time.sleep(seconds / 4)
            memory.append(resident())
        for each in running:
            statuses.update(each.result())
    return statuses, memory


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="zoo:default", help="(default: %(default)s)")
    parser.add_argument("--requests", type=int, default=12, help="timed requests (default: %(default)s)")
    parser.add_argument("--images", type=int, default=32, help="images a request (default: %(default)s)")
    parser.add_argument("--overload", type=float, default=60, help="seconds of it (default: %(default)s)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        photos = [
            Photo(Path(file).name, Path(file).read_bytes())
            for file in faces.write_photos(folder, given.images)
        ]
    files: Files = [("images", (photo.name, photo.content)) for photo in photos]
    plain = in_process(photos, given.model, 4)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start(Service(model=given.model), "127.0.0.1", port)
    url = f"http://127.0.0.1:{port}"
    ask(url, files)
    with ThreadPoolExecutor(2) as pool:
        started = time.perf_counter()
        taken = [seconds for _, seconds in pool.map(lambda _: ask(url, files), range(given.requests))]
        served = given.requests * given.images / (time.perf_counter() - started)
    tail = statistics.quantiles(taken, n=100, method="inclusive")
    print(f"in process {plain:.1f} images/s, service {served:.1f} images/s: {served / plain:.2f}")
    print(f"a request of {given.images} images, two under way: p50 {tail[49]:.2f} s, p99 {tail[98]:.2f} s")
    limit = Service().limits.requests
    statuses, memory = overload(url, files, 2 * limit, given.overload)
    shown = ", ".join(f"{size:.0f}" for size in memory)
    print(f"{2 * limit} clients at {limit} places for {given.overload:.0f} s: {dict(statuses)}; MiB {shown}")


if __name__ == "__main__":
    main()
