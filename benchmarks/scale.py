"""How `jobs.score` grows: 10,000 places, then ten and a hundred times as many, so that what is
measured is the machinery alone.

    python benchmarks/scale.py [--places 10000,100000,1000000] [--input s3] [--posterior]

The places do not exist. A stand-in for reading, decoding and detection gives every photo one face
(one in 50 none) with a canvas of 1 kB; a stand-in for the network gives an age that follows from
the name. Everything else is the job's own: the listing, Ray Data, the pieces, the parts, the page.

--input manifest: a Parquet file of paths. csv: the same as CSV. s3: a flat bucket, listed over HTTP
from a server that makes up its answers (it counts the requests).

Each size runs in a process of its own. For each it prints seconds and CPU seconds (of the driver)
by stage, microseconds a place (also of CPU, of all processes after the first rows), and the largest
memory of the driver (RSS) and of the object store.
The growth exponent is the slope of log(seconds) over log(places): 1 is linear.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
BUCKET = "places"
PAUSE = "AGERAY_SCALE_PAUSE"
"""Variable with seconds that the stand-in for reading waits a photo (`benchmarks/kills.py`)."""

_PAGE = 1000  # keys of an answer, as S3 has them
_STAGES = ("list", "start", "first", "score", "finish")


def key(number: int) -> str:
    """The name of a place, 60 characters long."""
    return f"photos/{number // 10_000:08d}/a-name-of-some-length-{number:012d}.jpg"


# --- stand-ins -----------------------------------------------------------------------------------


def stand_in_faces(photos: pa.Table, **_: object) -> Iterator[pa.Table]:
    """`ageray.stages.detect.face_batches` without reading: one face, or none in 1 of 50."""
    from ageray import schema
    from ageray.stages.columns import DETECTED_SCHEMA
    from ageray.stages.detect import _carry

    time.sleep(float(os.environ.get(PAUSE, "0")) * photos.num_rows)
    images = photos.column("image").combine_chunks()
    has_face = pa.array(_numbers(images) % 50 != 0)
    count = photos.num_rows

    def of_faces(values: list[float], kind: pa.DataType) -> pa.Array:
        every = pa.FixedSizeListArray.from_arrays(pa.array(values * count, pa.float32()), len(values))
        return pc.if_else(has_face, every, pa.nulls(count, every.type)).cast(kind)

    points = of_faces([float(value) for value in range(10)], schema.POINTS)
    box = of_faces([10.0, 20.0, 110.0, 140.0], schema.BOX)
    nothing = pa.scalar(None, pa.string())
    columns = {
        "key": pc.binary_join_element_wise(images, pc.if_else(has_face, "0", "-1"), "#"),
        "image": images,
        "face": pc.if_else(has_face, 0, -1),
        "box": box,
        "landmarks": points,
        "detection": pc.if_else(has_face, 0.9, None),
        "error": pc.if_else(has_face, nothing, schema.NO_FACE),
        "canvas": pc.if_else(has_face, bytes(1024), pa.scalar(None, pa.binary())),
        "canvas_points": points,
        "canvas_box": box,
    }
    arrays = [columns[field.name].cast(field.type) for field in DETECTED_SCHEMA]
    yield _carry(photos, pa.table(arrays, schema=DETECTED_SCHEMA), np.ones(count, np.int32))


class StandInAges:
    """`ageray.stages.predict.AgeFaces` without a network: the age follows from the name."""

    def __init__(self, model: str, threads: int = 0, posterior: bool = False, **_: object) -> None:
        from ageray.stages.columns import scores_schema

        self._schema = scores_schema(posterior)

    def __call__(self, rows: pa.Table) -> pa.Table:
        from ageray import schema
        from ageray.stages.columns import CANVAS_SCHEMA

        table = rows.drop_columns(CANVAS_SCHEMA.names)
        further = [field for field in table.schema if field.name not in self._schema.names]
        has_face = table.column("error").is_null()
        ages = pc.if_else(has_face, pa.array(_numbers(table.column("image")) % 8000 / 100), None)
        for field in self._schema:
            if field.name in table.column_names:
                continue
            values = ages
            if field.name == schema.POSTERIOR.name:
                every = pa.array([[0.01] * 101] * table.num_rows, field.type)
                values = pc.if_else(has_face, every, pa.nulls(table.num_rows, field.type))
            table = table.append_column(field, values.cast(field.type))
        complete = pa.schema([*self._schema, *further])
        return table.select(complete.names).cast(complete)


def _numbers(images: pa.Array) -> NDArray[np.int64]:
    """A number for each name, as if drawn by chance (Knuth's multiplicative hash)."""
    places = pc.utf8_slice_codeunits(images, -16, -4).cast(pa.int64())
    return np.asarray(places.to_numpy(zero_copy_only=False) * 2_654_435_761 % 2**32, np.int64)


# --- places --------------------------------------------------------------------------------------


def write_manifest(file: Path, places: int) -> None:
    """A manifest of places, as Parquet or CSV."""
    schema = pa.schema([pa.field("image", pa.string())])
    tables = _tables(places, schema)
    if file.suffix == ".csv":
        with pyarrow.csv.CSVWriter(file, schema) as writer:
            for table in tables:
                writer.write_table(table)
        return
    with pq.ParquetWriter(file, schema) as parquet:
        for table in tables:
            parquet.write_table(table)


def _tables(places: int, schema: pa.Schema) -> Iterator[pa.Table]:
    for start in range(0, places, 100_000):
        numbers = range(start, min(places, start + 100_000))
        yield pa.table({"image": [f"/{BUCKET}/{key(number)}" for number in numbers]}, schema=schema)


class _Listing(BaseHTTPRequestHandler):
    """Answers S3's ListObjectsV2 and HEAD for `places` keys below `photos/`."""

    places = 0
    requests = 0
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def do_HEAD(self) -> None:
        type(self).requests += 1
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        type(self).requests += 1
        query = parse_qs(urlsplit(self.path).query)
        after = query.get("continuation-token", query.get("start-after", ["-1"]))[0]
        first = int(after) + 1
        count = max(0, min(int(query.get("max-keys", [_PAGE])[0]), _PAGE, self.places - first))
        lines = []
        for number in range(first, first + count):
            lines.append(
                f"<Contents><Key>{key(number)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
                f'<ETag>"0"</ETag><Size>200000</Size><StorageClass>STANDARD</StorageClass></Contents>'
            )
        more = first + count < self.places
        token = f"<NextContinuationToken>{first + count - 1}</NextContinuationToken>" if more else ""
        body = (
            '<?xml version="1.0" encoding="UTF-8"?>'
            '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>{BUCKET}</Name><Prefix>photos/</Prefix><KeyCount>{count}</KeyCount>"
            f"<MaxKeys>{_PAGE}</MaxKeys><IsTruncated>{str(more).lower()}</IsTruncated>{token}"
            f"{''.join(lines)}</ListBucketResult>"
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def serve_bucket(places: int) -> str:
    """Starts the server; the url of the folder."""
    _Listing.places = places
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Listing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_address[1]}",
        "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "none",
        "AWS_REGION": "us-east-1",
    }
    return f"s3://{BUCKET}/photos"


# --- one size ------------------------------------------------------------------------------------


class Watch:
    """Largest memory of this process (RSS) and of Ray's object store, in MiB, looked at twice a
    second.
    """

    def __init__(self) -> None:
        self.driver = self.store = 0.0
        self.cpu_at_first = 0.0  # of all processes, when the first rows came
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._end.set()
        self._thread.join()

    def _look(self) -> None:
        import ray
        from ray._private.internal_api import get_memory_info_reply, get_state_from_address

        process, state = psutil.Process(), None
        while not self._end.wait(0.5):
            self.driver = max(self.driver, process.memory_info().rss / 2**20)
            if not ray.is_initialized():
                continue
            try:
                state = state or get_state_from_address(ray.get_runtime_context().gcs_address)
                stats = get_memory_info_reply(state).store_stats
            except Exception:  # Ray starts or ends
                continue
            used = stats.object_store_bytes_used + stats.spilled_bytes_total
            self.store = max(self.store, used / 2**20)


def family_cpu() -> float:
    """CPU seconds so far of this process and all below it, Ray's own too."""
    me = psutil.Process()
    seconds = 0.0
    for process in [me, *me.children(recursive=True)]:
        with suppress(psutil.Error):
            times = process.cpu_times()
            seconds += times.user + times.system
            if process != me:
                seconds += times.children_user + times.children_system
    return seconds


def run_one(places: int, kind: str, posterior: bool, folder: Path) -> dict[str, Any]:
    """Scores `places` places; seconds by stage, and memory."""
    if kind == "s3":
        location = serve_bucket(places)
    else:
        file = folder.parent / ("places.csv" if kind == "csv" else "places.parquet")
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            write_manifest(file, places)
        location = str(file)
    from ageray import cluster
    from ageray.experiment import Scale
    from ageray.score import pipeline, run

    assert hasattr(pipeline, "face_batches")
    pipeline.face_batches, pipeline.AgeFaces = stand_in_faces, StandInAges  # type: ignore[assignment,misc]
    stages: dict[str, tuple[float, float]] = {}
    run._prepare = _timed(stages, "list", run._prepare)
    cluster.connect = _timed(stages, "start", cluster.connect)
    watch = Watch()
    pipeline.results = _after_the_first(stages, watch, pipeline.results)
    run._finish = _timed(stages, "finish", run._finish)
    started = time.perf_counter()
    scale = Scale(engine="ray", gpu=False, progress=False, object_store_mib=512, local_cpus=4)
    summary = run.score(location, str(folder / "out"), "zoo:default", scale, posterior=posterior)
    seconds = time.perf_counter() - started
    cpu = family_cpu() - watch.cpu_at_first
    watch.stop()
    assert summary["images"] == places, summary
    assert list(summary["errors"]) == ["no face found"], summary
    assert summary["faces"] + summary["errors"]["no face found"] == places, summary
    return {
        "places": places,
        "seconds": seconds,
        "stages": {name: stages.get(name, (0.0, 0.0)) for name in _STAGES},
        "driver": watch.driver,
        "store": watch.store,
        "cpu": cpu,
        "requests": _Listing.requests,
        "bytes": sum(file.stat().st_size for file in (folder / "out").iterdir()),
    }


def _timed(
    stages: dict[str, tuple[float, float]], name: str, function: Callable[..., Any]
) -> Callable[..., Any]:
    """The function; `stages` gets its seconds and CPU seconds of this process."""

    def run(*arguments: Any, **options: Any) -> Any:
        with _clock(stages, name):
            return function(*arguments, **options)

    return run


def _after_the_first(
    stages: dict[str, tuple[float, float]], watch: Watch, results: Callable[..., Iterator[Any]]
) -> Callable[..., Iterator[Any]]:
    """`pipeline.results`; the time until its first rows, which no number of places changes, apart
    from the rest.
    """

    def run(*arguments: Any, **options: Any) -> Iterator[Any]:
        rows = results(*arguments, **options)
        with _clock(stages, "first"):
            first = next(rows)
        watch.cpu_at_first = family_cpu()
        with _clock(stages, "score"):
            yield first
            yield from rows

    return run


@contextmanager
def _clock(stages: dict[str, tuple[float, float]], name: str) -> Iterator[None]:
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    stages[name] = (time.perf_counter() - wall, time.process_time() - cpu)


# --- all sizes -----------------------------------------------------------------------------------


def show(figures: list[dict[str, Any]]) -> None:
    """The table of all sizes."""
    for figure in figures:
        places, stages = figure["places"], figure["stages"]
        work = sum(stages[name][0] for name in ("list", "score", "finish"))
        memory = f"driver {figure['driver']:.0f} MiB, object store {figure['store']:.0f} MiB"
        print(f"{places:>9,} places: {figure['seconds']:.1f} s; without the start ", end="")
        print(f"{1e6 * work / places:.1f} us a place, {1e6 * figure['cpu'] / places:.1f} of CPU; ", end="")
        print(f"{memory}; ", end="")
        print(f"{figure['requests']:,} requests to the store, result {figure['bytes'] / 2**20:.0f} MiB")
        for name in _STAGES:
            wall, cpu = stages[name]
            print(f"{'':>12}{name:<8}{wall:9.2f} s  driver CPU {cpu:8.2f} s", end="")
            print(f"  {1e6 * wall / places:8.1f} us a place")
    for one, other in itertools.pairwise(figures):
        ratio = math.log(other["places"] / one["places"])
        words = []
        for name in ("list", "score", "finish"):
            slope = math.log(max(other["stages"][name][0], 1e-3) / max(one["stages"][name][0], 1e-3)) / ratio
            words.append(f"{name} {slope:.2f}")
        print(f"growth exponent {one['places']:,} to {other['places']:,}: {', '.join(words)}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--places", default="10000,100000,1000000")
    parser.add_argument("--input", choices=("manifest", "csv", "s3"), default="manifest")
    parser.add_argument("--posterior", action="store_true", help="101 further numbers a row")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(arguments.folder or temporary + "/run")
            figure = run_one(int(arguments.places), arguments.input, arguments.posterior, folder)
        print("FIGURE " + json.dumps(figure), flush=True)
        return
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; reading, detection and network: stand-ins")
    figures = []
    for places in arguments.places.split(","):
        words = [sys.executable, __file__, "--one", "--places", places, "--input", arguments.input]
        words += ["--posterior"] * arguments.posterior
        ran = subprocess.run(
            words, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True, check=True
        )
        line = next(line for line in ran.stdout.splitlines() if line.startswith("FIGURE "))
        figures.append(json.loads(line.removeprefix("FIGURE ")))
        show(figures[-1:])
    print()
    show(figures)


if __name__ == "__main__":
    main()
