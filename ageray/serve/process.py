"""One scoring job as a process: started, stopped, found again by a service that starts anew."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import ageray

_ENDS_IN = 15.0  # seconds from the polite signal to the other


def start(words: list[str], log: Path, address: str) -> subprocess.Popen[bytes]:
    """`python -m jobs.score` with these words on the cluster at `address`, in a session of its own."""
    # What Ray tells its own worker would make the job take itself for one.
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("RAY_") or name.startswith("RAY_AUTH")
    }
    kept.pop("OMP_NUM_THREADS", None)
    root = str(Path(ageray.__file__).parents[1])
    path = os.pathsep.join([root, *filter(None, [kept.get("PYTHONPATH")])])
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "jobs.score", *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=kept | {"RAY_ADDRESS": address, "PYTHONPATH": path},
        )


def stop(process: subprocess.Popen[bytes], seconds: float = _ENDS_IN) -> None:
    """Interrupts a job, and kills it if it does not end."""
    for how in (signal.SIGINT, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            return


def mistake(log: Path, code: int) -> str:
    """Why a job failed: its line for the user, or where to look. No traceback leaves the machine."""
    with suppress(OSError):
        lines = log.read_text(errors="replace").splitlines()[-50:]
        told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        if told:
            return told[-1][:500]
    return f"ended with exit code {code}; the log on the server says more ({log.name})"
