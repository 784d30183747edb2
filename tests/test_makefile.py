"""What `make` would do: the help, where a demo goes, that `make score` resumes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def make(*words: str) -> str:
    """The commands that make would run, with everything already set up."""
    old = ["-o", ".venv/.ready", "-o", ".venv/.ready-dev"]
    command = ["make", "-n", *old, *words]
    return subprocess.run(
        command, cwd=ROOT, env=_outside_make(), check=True, capture_output=True, text=True, timeout=60
    ).stdout.strip()


def _outside_make() -> dict[str, str]:
    """The environment without what a `make` around the tests adds: it would print its folders."""
    return {
        name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")
    }


def test_alone_it_explains_itself() -> None:
    text = make()
    for word in ("make score", "make test", "make setup", "CPU=1", "TORCH_INDEX", "activate"):
        assert word in text


@pytest.mark.parametrize(
    ("words", "command"),
    [
        ([], "--demo --out 'demo'"),
        (["IMAGES=my photos"], "'my photos' --out 'scores'"),
        (["IMAGES=photos", "OUT=ages", "FRESH=1"], "'photos' --out 'ages' --fresh"),
    ],
)
def test_scoring_resumes_and_a_demo_leaves_scores_alone(words: list[str], command: str) -> None:
    assert make("score", *words) == f".venv/bin/python -m ageray score {command}"


def test_without_cuda() -> None:
    words = ["make", "-n", "-B", "CPU=1", "setup"]
    asked = subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True, timeout=60).stdout
    assert "torch==2.14.1+cpu torchvision==0.29.1+cpu" in asked
    words.append("TORCH_INDEX=file:///wheels")
    named = subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True, timeout=60).stdout
    assert "--index-url 'file:///wheels' torch torchvision" in named
    assert "+cpu" not in named
