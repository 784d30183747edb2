"""`--help` and a misspelt key are answered before Ray, torch and the like are imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ageray.commands import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
SLOW = ["ray", "torch", "torchvision", "kornia", "matplotlib", "scipy", "sklearn", "pandas", "optuna", "cv2"]
SLOW += ["pyarrow.dataset", "pyarrow.parquet"]

PROGRAM = """
import runpy, sys
command, slow, sys.argv = sys.argv[1], sys.argv[2].split(), sys.argv[2:]
try:
    runpy.run_module(command, run_name="__main__")
except SystemExit as end:
    print("exit", end.code)
print("imported", *(name for name in slow if name in sys.modules))
"""


def end_of(module: str, *words: str) -> tuple[list[str], str]:
    """The last two lines of a module in a process of its own, and what it says on stderr."""
    arguments = [sys.executable, "-c", PROGRAM, module, " ".join(SLOW), *words]
    ended = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    return ended.stdout.splitlines()[-2:], ended.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_slow(command: str) -> None:
    assert end_of(f"jobs.{command}", "--help") == (["exit 0", "imported"], "")


@pytest.mark.parametrize("word", ["--help", "--version"])
def test_the_console_command_imports_nothing_slow(word: str) -> None:
    lines, message = end_of("ageray", word)
    assert (lines[-1], message) == ("imported", "")


@pytest.mark.parametrize(
    ("command", "words", "key"),
    [
        ("prepare", ["data.sorce=photos"], "data.sorce"),
        ("train", ["configs/default.yaml", "scale.wrokers=2"], "scale.wrokers"),
        ("tune", ["configs/default.yaml", "train.sede=2"], "train.sede"),
        ("evaluate", ["zoo:default", "--out", "out", "data.shrads=faces"], "data.shrads"),
        ("evaluate", ["--protocol", "lopo", "--out", "out", "data.shrads=faces"], "data.shrads"),
        ("calibrate", ["zoo:default", "faces", "--out", "out", "data.shrads=faces"], "data.shrads"),
        ("score", ["photos", "--out", "out", "scale.score_wrokers=2"], "scale.score_wrokers"),
        ("serve", ["limits.imges=2"], "limits.imges"),
    ],
)
def test_a_misspelt_key_imports_nothing_slow(command: str, words: list[str], key: str) -> None:
    last_lines, message = end_of("ageray", command, *words)
    assert last_lines == ["exit 2", "imported"]
    assert message.startswith("error: ")
    assert key in message
