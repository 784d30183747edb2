"""One input among two Ray clusters of this machine, and the table that a single job gives.

    python benchmarks/clusters.py [--input FOLDER] [--photos 300]

Two clusters are started, each with its own ports and folder. `ageray score --shard 1/2` runs on
one and `--shard 2/2` on the other, at the same time, into one OUT. The driver of the second is
killed (SIGKILL) when it has written something, and the same command is given again. Then one job
scores the same input on the first cluster. Exit code above 0 if the two tables differ.

The photos are those of a folder (else drawn ones), as six Parquet tables: a table is never divided
among shards.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ageray.synthetic import faces

ROOT = Path(__file__).resolve().parents[1]
TABLES = 6
ROUNDING = 1e-5  # the last digits depend on the faces that the network saw in one batch
_SUFFIXES = (".jpg", ".jpeg", ".png")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", type=Path, metavar="FOLDER")
    parser.add_argument("--photos", type=int, default=300)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ar") as name, ExitStack() as stack:
        folder = Path(name)
        write_tables(folder / "tables", arguments.input, arguments.photos)
        first, second = (stack.enter_context(cluster(folder / str(number))) for number in (1, 2))
        one = start(folder, first, "out", "--shard", "1/2")
        two = start(folder, second, "out", "--shard", "2/2")
        kill_at_work(two, folder / "out.shards" / "00002-of-00002.unfinished")
        again = start(folder, second, "out", "--shard", "2/2")
        for job in (one, again):
            wait(job)
        wait(start(folder, first, "single"))
        sys.exit(differences(folder / "out", folder / "single"))


def write_tables(folder: Path, source: Path | None, photos: int) -> None:
    """The first photos of `source`, or drawn ones, as Parquet tables with their bytes."""
    folder.mkdir()
    if source is None:
        source = folder.with_name("drawn")
        faces.write_photos(source, photos)
    files = sorted(file for file in source.rglob("*") if file.suffix.lower() in _SUFFIXES)[:photos]
    for number in range(TABLES):
        some = files[number::TABLES]
        table = pa.table({"key": [file.name for file in some], "image": [file.read_bytes() for file in some]})
        pq.write_table(table, folder / f"{number}.parquet")
    print(f"{len(files)} photos in {TABLES} tables", flush=True)


@contextmanager
def cluster(folder: Path) -> Iterator[str]:
    """A Ray cluster of its own on this machine; its address. Ends with the block."""
    port, client, agent = free_port(), free_port(), free_port()
    words = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block"]
    words += ["--node-ip-address=127.0.0.1", f"--port={port}", f"--ray-client-server-port={client}"]
    words += [f"--dashboard-agent-listen-port={agent}", "--min-worker-port=0", "--max-worker-port=0"]
    words += ["--include-dashboard=false", "--num-cpus=4", "--object-store-memory=300000000"]
    process = subprocess.Popen(
        [*words, f"--temp-dir={folder}", "--disable-usage-stats"],
        env=environment(None),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for_port(port, process)
        yield f"127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def start(folder: Path, address: str, out: str, *words: str) -> subprocess.Popen[bytes]:
    """`ageray score` on the cluster at `address`."""
    command = [sys.executable, "-m", "ageray", "score", str(folder / "tables"), "--out", str(folder / out)]
    settings = ["--model", "zoo:fast", "scale.progress=false", *words]
    return subprocess.Popen([*command, *settings], env=environment(address), stdout=subprocess.DEVNULL)


def kill_at_work(job: subprocess.Popen[bytes], unfinished: Path) -> None:
    """Kills the job when it has written a piece."""
    while job.poll() is None and not list(unfinished.glob("pieces/*.parquet")):
        time.sleep(0.05)
    if job.poll() is not None:
        raise SystemExit("shard 2/2 was done before it could be killed; give more --photos")
    job.kill()
    job.wait()
    print("killed the driver of shard 2/2", flush=True)


def wait(job: subprocess.Popen[bytes]) -> None:
    """Waits for the end of a job, which has to be good."""
    if job.wait():
        raise SystemExit(f"a job ended with exit code {job.returncode}")


def differences(divided: Path, single: Path) -> int:
    """The number of columns that differ; prints what does."""
    one, other = table(divided), table(single)
    print(f"rows: {one.num_rows} of two clusters, {other.num_rows} of one job")
    if one.schema != other.schema or one.num_rows != other.num_rows:
        return 1
    different = 0
    for name in one.column_names:
        if one.column(name).equals(other.column(name)):
            continue
        if not pa.types.is_floating(one.schema.field(name).type):
            different += 1
            print(f"{name}: DIFFERENT")
            continue
        largest = float(np.nanmax(np.abs(one.column(name).to_numpy() - other.column(name).to_numpy())))
        different += largest > ROUNDING
        print(f"{name}: differs by up to {largest:.1e}")
    ages = pc.count(one.column("age")).as_py()
    print(f"{ages} ages; {different} of {len(one.column_names)} columns differ by more than rounding")
    return different


def table(folder: Path) -> pa.Table:
    """A result, by key."""
    files = sorted(file for file in folder.glob("*.parquet") if file.name != "errors.parquet")
    return pa.concat_tables([pq.read_table(file) for file in files]).combine_chunks().sort_by("key")


def environment(address: str | None) -> dict[str, str]:
    variables = os.environ | {"PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"}
    variables.pop("RAY_ADDRESS", None)
    return variables if address is None else variables | {"RAY_ADDRESS": address}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    """Returns when the cluster answers at this port."""
    for _ in range(1200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None:
            break
        time.sleep(0.1)
    raise SystemExit("a cluster did not start")


if __name__ == "__main__":
    main()
