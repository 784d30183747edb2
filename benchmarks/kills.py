"""One scoring run that is killed at random moments, and the same command again until it is done.
Its tables are those of a run that nobody disturbed, byte for byte.

    python benchmarks/kills.py [--places 20000] [--kills 8] [--seed 0]

Killed (SIGKILL) are, in turns and in random order: the driver; a worker process of Ray; the actor
that holds the model; and the driver with all processes below it. Reading, detection and network are
the stand-ins of `benchmarks/scale.py`, whose ages depend on nothing but the name, slowed down to
half a millisecond a photo.
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
from contextlib import suppress
from pathlib import Path

import psutil

SCALE = Path(__file__).with_name("scale.py")
ROOT = SCALE.parents[1]
KINDS = ("driver", "worker", "actor", "group")


class Run:
    """The command, in a process of its own with its own Ray."""

    def __init__(self, places: int, folder: Path, pause: float) -> None:
        words = [sys.executable, str(SCALE), "--one", "--places", str(places), "--folder", str(folder)]
        variables = os.environ | {"PYTHONPATH": str(ROOT), "AGERAY_SCALE_PAUSE": str(pause)}
        self.folder = folder
        self.process = subprocess.Popen(words, env=variables, stdout=subprocess.PIPE, text=True)

    def pieces(self) -> int:
        return len(list((self.folder / "out.unfinished" / "pieces").glob("*.parquet")))

    def is_over(self) -> bool:
        return self.process.poll() is not None

    def kill(self, kind: str) -> bool:
        """Kills a process of this kind; returns whether there was one."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        if kind == "group":
            for process in [psutil.Process(self.process.pid), *family]:
                kill(process)
        elif kind == "driver":
            kill(psutil.Process(self.process.pid))
        else:
            word = "StandInAges" if kind == "actor" else "ray::"
            names = {process: name_of(process) for process in family}
            matches = [process for process, name in names.items() if word in name and "Agent" not in name]
            if not matches:
                return False
            kill(random.choice(matches))
            return True
        self.process.communicate()
        for process in psutil.wait_procs(family, timeout=30)[1]:
            kill(process)
        return True

    def end(self) -> None:
        self.process.communicate()
        if self.process.returncode:
            raise SystemExit(f"the run ended with exit code {self.process.returncode}")


def kill(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(signal.SIGKILL)


def name_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def disturbed(places: int, kills: int, pause: float, folder: Path) -> list[str]:
    """Runs until done; the kinds of processes that were killed, in order."""
    order = [KINDS[number % len(KINDS)] for number in range(kills)]
    random.shuffle(order)
    done: list[str] = []
    run = Run(places, folder, pause)
    pieces = run.pieces()
    while order:
        if run.is_over():
            if run.process.returncode == 0:
                print(f"  the run ended before {len(order)} more kills", flush=True)
                break
            run, pieces = Run(places, folder, pause), run.pieces()  # a kill of Ray's own ended it
        if run.pieces() <= pieces:  # every disturbed stretch gets some work done
            time.sleep(0.1)
            continue
        time.sleep(random.uniform(0, 3))
        kind = order[-1]
        if run.is_over() or not run.kill(kind):
            continue
        done.append(order.pop())
        state = json.loads((folder / "out.unfinished" / "progress.json").read_text())
        print(f"  killed the {kind} with {state['done']:,} photos done", flush=True)
        if kind in ("driver", "group"):
            pieces = run.pieces()
            run = Run(places, folder, pause)
    while True:
        run.process.communicate()
        if run.process.returncode == 0:
            return done
        print(f"  ended with exit code {run.process.returncode}; again", flush=True)
        run = Run(places, folder, pause)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--places", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=8)
    parser.add_argument("--pause", type=float, default=0.002, help="seconds a photo")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        plain, killed = Path(folder, "input", "plain"), Path(folder, "input", "killed")
        Run(arguments.places, plain, 0.0).end()
        kinds = disturbed(arguments.places, arguments.kills, arguments.pause, killed)
        files = sorted(file.name for file in (plain / "out").glob("*.parquet"))
        assert files == sorted(file.name for file in (killed / "out").glob("*.parquet"))
        for name in files:
            same = (plain / "out" / name).read_bytes() == (killed / "out" / name).read_bytes()
            print(f"{name}: {'the same bytes' if same else 'DIFFERENT'}")
        print(f"{len(kinds)} kills: {', '.join(kinds)}")


if __name__ == "__main__":
    main()
