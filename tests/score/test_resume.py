"""The scoring job killed for good, and the same command again: one row for every face, and nothing
scored twice but what was under way.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ageray import cluster
from ageray.experiment import Scale
from ageray.score.run import score
from ageray.synthetic import faces

ROOT = Path(__file__).resolve().parents[2]
FACES = 600  # the first piece comes after two seconds, when most of them are still to be scored
PATIENCE = 400.0  # seconds, on a machine with other things to do


class Job:
    """`ageray score` as a process of its own, with its own Ray."""

    def __init__(self, shards: Path, out: Path) -> None:
        words = [
            sys.executable,
            "-m",
            "ageray",
            "score",
            str(shards),
            "--out",
            str(out),
            "--model",
            "zoo:default",
        ]
        settings = [
            "scale.progress=false",
            "scale.score_batch=16",
            "scale.object_store_mib=256",
            "scale.threads=1",
            "scale.gpu=false",
            "scale.engine=ray",
        ]
        self.draft = out.with_name(out.name + ".unfinished")
        self.process = subprocess.Popen(
            [*words, *settings],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )

    def wait_for(self, what: Callable[[], bool]) -> None:
        """Until it is so. The job must not end before."""
        until = time.monotonic() + PATIENCE
        while not what():
            assert self.process.poll() is None, "the job ended too early to be disturbed"
            assert time.monotonic() < until
            time.sleep(0.02)

    def pieces(self) -> set[str]:
        return {file.name for file in self.draft.glob("pieces/*.parquet")}

    def kill(self) -> None:
        """SIGKILL to the driver; its Ray goes with it."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()
        gone, left = psutil.wait_procs(family, timeout=10)
        assert len(gone) > 3  # Ray's agents take their time
        for process in left:
            process.kill()

    def kill_the_model(self) -> None:
        """SIGKILL to an actor that holds the model."""
        actors: list[psutil.Process] = []

        def an_actor() -> bool:
            actors[:] = models(self.process.pid)
            return bool(actors)

        self.wait_for(an_actor)
        actors[0].kill()

    def end(self) -> str:
        """What it printed, once it is done."""
        output, _ = self.process.communicate(timeout=PATIENCE)
        assert self.process.returncode == 0
        return str(output)


def _holds_the_model(process: psutil.Process) -> bool:
    try:
        return "AgeFaces" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # gone since, or a zombie
        return False


def models(driver: int) -> list[psutil.Process]:
    """The actors of a driver's Ray that hold the model."""
    return list(filter(_holds_the_model, psutil.Process(driver).children(recursive=True)))


class Killer(threading.Thread):
    """Kills the next actor of this process's Ray that holds the model, within a `with` block.

    `variables` are those of the actor's process.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._before = {process.pid for process in models(os.getpid())}
        self._left = threading.Event()
        self.variables: dict[str, str] = {}

    def run(self) -> None:
        while not self._left.wait(0.02):
            for process in models(os.getpid()):
                if process.pid not in self._before:
                    self.variables = process.environ()
                    process.kill()
                    return

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._left.set()
        self.join()


def progress(job: Job) -> dict[str, float]:
    return dict(json.loads((job.draft / "progress.json").read_text()))


def check(out: Path, shards: Path) -> None:
    keys = sorted(
        key
        for file in shards.iterdir()
        for key in pq.read_table(file, columns=["key"]).column("key").to_pylist()
    )
    rows = pa.concat_tables([pq.read_table(file) for file in out.glob("*.parquet")])
    assert sorted(rows.column("key").to_pylist()) == keys
    assert rows.column("age").null_count == rows.column("error").drop_null().length() == 0
    assert not out.with_name(out.name + ".unfinished").exists()
    assert json.loads((out / "_summary.json").read_text())["faces"] == len(keys)


@pytest.mark.slow  # in the default run test_local kills a command, and test_run a model
def test_killed_driver_and_killed_model(
    ray_local: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards, out = tmp_path / "shards", tmp_path / "out"
    faces.write_faces_table(shards, FACES, size=96, shards=2)
    first = Job(shards, out)
    first.wait_for(lambda: bool(first.pieces()))
    first.kill()
    before = progress(first)
    assert not out.exists()
    assert (before["state"], before["total"]) == ("running", FACES)
    scale = Scale(engine="ray", score_batch=16, threads=1, gpu=False, progress=False)
    with Killer() as killer:
        score(str(shards), str(out), "zoo:default", scale)
    assert cluster.environment().items() <= killer.variables.items()  # it keeps the memory that it frees
    output = capsys.readouterr().out
    assert " photos that are done" in output
    done = int(output.split("goes on after ")[1].split()[0])
    assert 0 < done < FACES
    check(out, shards)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_five_thousand_faces_three_killed_drivers_and_a_killed_model(tmp_path: Path) -> None:
    shards, out = tmp_path / "shards", tmp_path / "out"
    faces.write_faces_table(shards, 5000, size=96, shards=5)
    draw = random.Random()
    for _ in range(3):
        job = Job(shards, out)
        before, more = job.pieces(), draw.randint(1, 8)
        job.wait_for(lambda job=job, before=before, more=more: len(job.pieces() - before) >= more)  # type: ignore[misc]
        time.sleep(draw.uniform(0, 3))
        job.kill()
        print(f"killed with {progress(job)['done']} of 5,000 reported done")
    job = Job(shards, out)
    before = job.pieces()
    job.wait_for(lambda: len(job.pieces() - before) >= 2)
    job.kill_the_model()
    output = job.end()
    assert int(output.split("goes on after ")[1].split()[0].replace(",", "")) > 0
    check(out, shards)
