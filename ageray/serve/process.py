"""One scoring job as a process: its start, its end, and the reason of a failure."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import ageray
from ageray.serve import auth
from ageray.storage.lease import start_of

_GRACE = 15.0  # seconds between SIGINT and SIGKILL
_LOOK = 0.1  # seconds


# The shell outlives the job, and whoever started it, and writes down how the job ended.
_SCRIPT = 'trap : INT; "$@"; code=$?; echo $code > "$0.new" && mv "$0.new" "$0"; exit $code'
_UNKNOWN = -9


class Job:
    """A scoring job that runs or has run, by the files beside its log.

    `.pid` names its process, so that a service that was restarted finds it again; `.exit` has its
    exit code.
    """

    def __init__(self, log: Path, process: subprocess.Popen[bytes] | None = None) -> None:
        """process: of a job that this process has started."""
        self._exit, self._pid_file = log.with_suffix(".exit"), log.with_suffix(".pid")
        self._process = process
        self._pid, self._start = 0, ""
        with suppress(OSError, ValueError):
            pid, start = self._pid_file.read_text().split()
            self._pid, self._start = int(pid), start

    @property
    def returncode(self) -> int | None:
        """The exit code; None while the job runs, -9 if it was killed."""
        if self._process is not None:
            self._process.poll()  # so that the kernel forgets it
        with suppress(OSError, ValueError):
            return int(self._exit.read_text())
        if self._pid and start_of(self._pid) == self._start:
            return None
        with suppress(OSError, ValueError):  # it may have ended between the two looks
            return int(self._exit.read_text())
        if self._process is not None and self._process.returncode is not None:
            return self._process.returncode  # the disk had no space for the file
        return _UNKNOWN

    def stop(self, seconds: float = _GRACE) -> None:
        """Interrupts the job, and kills it if it still runs after `seconds`."""
        for number in (signal.SIGINT, signal.SIGKILL):
            if self.returncode is not None:
                return
            with suppress(ProcessLookupError):
                os.killpg(self._pid, number)
            end = time.monotonic() + seconds
            while self.returncode is None and time.monotonic() < end:
                time.sleep(_LOOK)


def start(words: list[str], log: Path, address: str) -> Job:
    """Starts `python -m ageray score` with these arguments on the cluster at `address`, in its own
    session.

    The output goes to `log`. Raises OSError if nothing can be written there.
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
    for name in (auth.VARIABLE, auth.DIGESTS):
        environment.pop(name, None)
    exit_file = log.with_suffix(".exit")
    exit_file.unlink(missing_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["/bin/sh", "-c", _SCRIPT, str(exit_file), sys.executable, "-m", "ageray", "score", *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment,
        )
    try:
        log.with_suffix(".pid").write_text(f"{process.pid} {start_of(process.pid)}")
    except OSError:  # after a restart the service would not find it
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    return Job(log, process)


def failure(log: Path, code: int) -> str:
    """Why a job failed: its last line `error: ...`, or the name of the log. Never a traceback."""
    with suppress(OSError):
        for line in reversed(log.read_text(errors="replace").splitlines()[-50:]):
            if line.startswith("error: "):
                return line.removeprefix("error: ")[:500]
    return f"ended with exit code {code}; the log on the server says more ({log.name})"
