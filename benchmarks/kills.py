"""One scoring run that is killed at random moments, and the same command again until it is done.
Its tables are those of a run that nobody disturbed, byte for byte.

    python benchmarks/kills.py --engine local [--input FOLDER] [--photos 1600] [--kills 20]
    python benchmarks/kills.py --engine ray [--photos 8000] [--kills 20]

local: `ageray score` with its pool of processes, on the photos of a folder (else on drawn ones),
under further names if they are too few; nothing is a stand-in.
ray: reading, detection and network are the stand-ins of `benchmarks/scale.py`, whose ages depend on
nothing but the name, slowed down to `--pause` seconds a photo. All else is the job's own.

Killed (SIGKILL) are, in turns and in random order: the driver; a worker process; the actor that
holds the model (the pool has none: the process from which workers are forked); and the driver with
all processes below it. A kill waits until the run has written a piece since it began.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil

SCALE = Path(__file__).with_name("scale.py")
ROOT = SCALE.parents[1]
KINDS = ("driver", "worker", "actor", "group")
_DRAWN = 100


class Command:
    """What is run and killed."""

    def __init__(self, engine: str, own: str | None, photos: int, folder: Path, pause: float) -> None:
        """own: a folder of photos, or None for drawn ones."""
        self.engine, self.photos, self.pause = engine, photos, pause
        self.input = folder / "photos"
        if engine == "local":
            link(self.input, Path(own) if own else draw(folder / "drawn"), photos)

    def words(self, folder: Path, pause: float) -> tuple[list[str], dict[str, str]]:
        """The command into `folder`, and its environment."""
        variables = os.environ | {"PYTHONPATH": str(ROOT), "AGERAY_SCALE_PAUSE": str(pause)}
        if self.engine == "ray":
            words = [str(SCALE), "--one", "--places", str(self.photos), "--folder", str(folder)]
            return [sys.executable, *words], variables
        variables.pop("RAY_ADDRESS", None)
        words = ["-m", "ageray", "score", str(self.input), "--out", str(folder / "out")]
        settings = ["scale.engine=local", "scale.score_workers=2", "scale.progress=false"]
        return [sys.executable, *words, *settings], variables


class Run:
    """The command, in a process of its own."""

    def __init__(self, command: Command, folder: Path, disturbed: bool = True) -> None:
        self.engine, self.folder = command.engine, folder
        folder.mkdir(parents=True, exist_ok=True)
        words, variables = command.words(folder, command.pause if disturbed else 0.0)
        self.process = subprocess.Popen(words, env=variables, stdout=subprocess.PIPE, text=True)

    def pieces(self) -> int:
        return len(list((self.folder / "out.unfinished" / "pieces").glob("*.parquet")))

    def is_over(self) -> bool:
        return self.process.poll() is not None

    def kill(self, kind: str) -> bool:
        """Kills a process of this kind; returns whether there was one."""
        driver = psutil.Process(self.process.pid)
        family = driver.children(recursive=True)
        if kind in ("worker", "actor"):
            matches = self._of_kind(kind, driver, family)
            if matches:
                kill(random.choice(matches))
            return bool(matches)
        for process in [driver, *family] if kind == "group" else [driver]:
            kill(process)
        self.process.communicate()
        for process in psutil.wait_procs(family, timeout=10)[1]:
            kill(process)
        return True

    def _of_kind(
        self, kind: str, driver: psutil.Process, family: list[psutil.Process]
    ) -> list[psutil.Process]:
        if self.engine == "local":
            servers = [process for process in driver.children() if "fork_server" in name_of(process)]
            return servers if kind == "actor" else [child for each in servers for child in each.children()]
        word = "StandInAges" if kind == "actor" else "ray::"
        names = {process: name_of(process) for process in family}
        return [process for process, name in names.items() if word in name and "Agent" not in name]

    def end(self) -> None:
        self.process.communicate()
        if self.process.returncode:
            raise SystemExit(f"the run ended with exit code {self.process.returncode}")


def draw(folder: Path) -> Path:
    """Some photos of one to three drawn faces."""
    from ageray.synthetic import faces

    faces.write_photos(folder, _DRAWN)
    return folder


def link(folder: Path, source: Path, photos: int) -> None:
    """A folder of so many links to the photos below `source`."""
    folder.mkdir(parents=True)
    files = sorted(file for file in source.rglob("*") if file.suffix.lower() in (".jpg", ".jpeg", ".png"))
    for number in range(photos):
        file = files[number % len(files)]
        (folder / f"{number:06d}-{file.name}").symlink_to(file.resolve())


def kill(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(signal.SIGKILL)


def name_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def disturbed(command: Command, kills: int, folder: Path) -> Counter[str]:
    """Runs until done; the kinds of processes that were killed, and how often."""
    order = [KINDS[number % len(KINDS)] for number in range(kills)]
    random.shuffle(order)
    killed = Counter[str]()
    run = Run(command, folder)
    pieces = run.pieces()
    while order:
        if run.is_over():
            if run.process.returncode == 0:
                print(f"  the run ended before {len(order)} more kills", flush=True)
                break
            print(f"  ended with exit code {run.process.returncode}; again", flush=True)
            run, pieces = Run(command, folder), run.pieces()  # a kill of Ray's own ended it
        if run.pieces() <= pieces:  # every disturbed stretch gets some work done
            time.sleep(0.05)
            continue
        time.sleep(random.uniform(0, 2))
        kind = order[-1]
        if run.is_over() or not run.kill(kind):
            continue
        killed[order.pop()] += 1
        pieces = run.pieces()
        state = json.loads((folder / "out.unfinished" / "progress.json").read_text())
        print(f"  killed the {kind} with {state['done']:,} photos done", flush=True)
        if kind in ("driver", "group"):
            run = Run(command, folder)
    while True:
        run.process.communicate()
        if run.process.returncode == 0:
            return killed
        print(f"  ended with exit code {run.process.returncode}; again", flush=True)
        run = Run(command, folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", choices=("local", "ray"), default="local")
    parser.add_argument("--input", metavar="FOLDER", help="photos for --engine local")
    parser.add_argument("--photos", type=int, help="1,600 or 8,000 if not given")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--pause", type=float, default=0.04, help="seconds a photo, of the stand-ins")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    photos = arguments.photos or (1600 if arguments.engine == "local" else 8000)
    with tempfile.TemporaryDirectory() as folder:
        command = Command(arguments.engine, arguments.input, photos, Path(folder), arguments.pause)
        plain, killed = Path(folder, "input", "plain"), Path(folder, "input", "killed")
        started = time.monotonic()
        Run(command, plain, disturbed=False).end()
        print(f"undisturbed: {time.monotonic() - started:.0f} s", flush=True)
        started = time.monotonic()
        kinds = disturbed(command, arguments.kills, killed)
        print(f"disturbed: {time.monotonic() - started:.0f} s", flush=True)
        files = sorted(file.name for file in (plain / "out").glob("*.parquet"))
        assert files == sorted(file.name for file in (killed / "out").glob("*.parquet"))
        different = 0
        for name in files:
            same = (plain / "out" / name).read_bytes() == (killed / "out" / name).read_bytes()
            different += not same
            print(f"{name}: {'the same bytes' if same else 'DIFFERENT'}")
        words = ", ".join(f"{count} of the {kind}" for kind, count in sorted(kinds.items()))
        print(f"{kinds.total()} kills: {words}")
    sys.exit(different > 0)


if __name__ == "__main__":
    main()
