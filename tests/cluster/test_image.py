"""The image builds where there is a builder; else its steps run in a fresh folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ageray

ROOT = Path(__file__).resolve().parents[2]
BUILDER = shutil.which("docker") or shutil.which("podman")


def builder() -> str:
    """The builder, if it answers: a client may be there without its daemon."""
    if BUILDER is None or subprocess.run([BUILDER, "info"], capture_output=True, timeout=60).returncode:
        pytest.skip("no docker and no podman that answers")
    return BUILDER


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_image_builds() -> None:
    base = "BASE=rayproject/ray:2.60.0-py311-cpu"
    words = [builder(), "build", "--build-arg", base, "-t", "ageray-test", "."]
    subprocess.run(words, cwd=ROOT, check=True)


@pytest.mark.slow
def test_the_steps_of_the_image_install_the_command(tmp_path: Path) -> None:
    """COPY and RUN with Python's own tools, without the dependencies, which are here already."""
    steps = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    [copy] = re.findall(r"^COPY .*?(\S+) (\S+)$", steps, re.MULTILINE)
    [run] = re.findall(r"^RUN (.*)$", steps, re.MULTILINE)
    assert copy == (".", "/tmp/ageray")
    source, target = tmp_path / "source", tmp_path / "packages"
    ignored = shutil.ignore_patterns(".git", ".venv", "tests", "build", "site", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, ignore=ignored)
    pip = f"{sys.executable} -m pip install --no-deps --no-index --no-build-isolation --target {target}"
    run = run.replace("pip install", pip).replace("/tmp/ageray", str(source))
    subprocess.run(["bash", "-c", run], check=True, capture_output=True, timeout=300)
    assert not source.exists()
    environment = os.environ | {"PYTHONPATH": str(target)}
    words = [sys.executable, "-m", "ageray", "--version"]
    ended = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.stdout == f"ageray {ageray.__version__}\n"
    assert list((target / "bin").iterdir()) == [target / "bin" / "ageray"]
