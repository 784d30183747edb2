"""One scoring job as a process: its start, its end, and the reason of a failure."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import ageray

_GRACE = 15.0  # seconds between SIGINT and SIGKILL


def start(words: list[str], log: Path, address: str) -> subprocess.Popen[bytes]:
    """Starts `ageray score` with these arguments on the cluster at `address`, in its own
    session.

    The output goes to `log`.
    """
    environment = {}
    for name, value in os.environ.items():
        # with the other variables of a Ray worker the job would take itself for a worker
        if not name.startswith("RAY_") or name.startswith("RAY_AUTH"):
            environment[name] = value
    environment.pop("OMP_NUM_THREADS", None)
    root = str(Path(ageray.__file__).parents[1])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
    environment["RAY_ADDRESS"] = address
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "ageray", "score", *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment,
        )


def stop(process: subprocess.Popen[bytes], seconds: float = _GRACE) -> None:
    """Interrupts a job, and kills it if it still runs after `seconds`."""
    for number in (signal.SIGINT, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            return


def failure(log: Path, code: int) -> str:
    """Why a job failed: its last line `error: ...`, or the name of the log. Never a traceback."""
    with suppress(OSError):
        for line in reversed(log.read_text(errors="replace").splitlines()[-50:]):
            if line.startswith("error: "):
                return line.removeprefix("error: ")[:500]
    return f"ended with exit code {code}; the log on the server says more ({log.name})"
