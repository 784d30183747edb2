"""Lines of Ray's own on standard error, and how a command ends that a signal interrupts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ageray.commands.quiet import filtered
from ageray.commands.terminal.rows import RowProgress, line

ROOT = Path(__file__).resolve().parents[2]
OF_RAY = (
    b"[2026-11-30 03:09:40,732 E 29621 29621] core_worker.cc:2465: Actor with class name: 'MapWorker(x)' "
    b"has constructor arguments in the object store and max_restarts > 0.\n"
)
RAYLET = b"(raylet) [2026-11-30 03:09:40,732 W 29621 29621] (raylet) node_manager.cc:1: x\n"
FATAL = OF_RAY.replace(b" E ", b" C ")

PROGRAM = """
import os, sys, time
from ageray.commands import cli
INTERRUPTED = "half is kept; to go on: {command}"
sys.modules["ageray.commands.stub"] = sys.modules["__main__"]
def main(words):
    os.write(2, %r)
    print("own line", file=sys.stderr)
    print("ready", flush=True)
    if words == ["exit"]:
        sys.exit(15)
    if words == ["wait"]:
        time.sleep(60)
main.__module__ = "ageray.commands.stub"
cli.run(main)
"""


def started(*words: str) -> subprocess.Popen[str]:
    program = PROGRAM % (OF_RAY,)
    pipe = subprocess.PIPE
    arguments = [sys.executable, "-c", program, *words]
    process = subprocess.Popen(arguments, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_only_lines_of_ray_are_left_out() -> None:
    assert filtered(OF_RAY + b"own\n" + RAYLET + b"error: x\n" + FATAL) == (b"own\nerror: x\n" + FATAL, b"")
    assert filtered(b"50 %\r60 %") == (b"50 %\r60 %", b"")  # a bar that moves is passed on at once


def test_a_line_in_two_parts_is_recognised() -> None:
    text, waiting = filtered(b"own\n" + OF_RAY[:30])
    assert text == b"own\n"
    assert filtered(waiting + OF_RAY[30:]) == (b"", b"")
    assert filtered(filtered(b"[not")[1] + b" Ray's]\n") == (b"[not Ray's]\n", b"")


def test_a_command_shows_its_own_lines_alone() -> None:
    process = started()
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "own line\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_command_with_one_line(number: int, code: int) -> None:
    process = started("wait")
    time.sleep(0.2)
    os.kill(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert errors.splitlines()[-1] == "interrupted: half is kept; to go on: ageray stub wait"
    assert "Traceback" not in errors


def test_rays_own_answer_to_sigterm_is_told_alike() -> None:
    process = started("exit")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert errors.splitlines()[-1] == "interrupted: half is kept; to go on: ageray stub exit"


def test_speed_is_that_since_the_first_record(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        line({"what": "photos looked at", "done": 10, "total": 1200}, 0.0, 0) == "10/1,200 photos looked at"
    )
    text = line({"what": "photos looked at", "done": 210, "total": 1210}, 20.0, 200)
    assert text == "210/1,210 photos looked at  10.0/s  0:01:40 left"
    with RowProgress(live=False) as progress:
        progress.show({"what": "faces written", "done": 1, "total": 2})
    assert capsys.readouterr().out == ""
