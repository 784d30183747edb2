"""Commands where the terminal is odd, and words of the command line that look like settings."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ageray.commands import cli

PROGRAM = """
import sys
from ageray.commands import cli
def main(words):
    for number in range(9000):
        print("Bilder é", number)
    print("done", file=sys.stderr)
cli.run(main, [])
"""


def run(redirect: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    command = f"{sys.executable} -c '{PROGRAM}' {redirect}"
    return subprocess.run(["bash", "-c", command], capture_output=True, env={**os.environ, **variables})


def test_a_path_that_the_terminal_cannot_show_has_a_question_mark() -> None:
    result = run("", PYTHONIOENCODING="ascii")
    assert result.returncode == 0
    assert result.stdout.startswith(b"Bilder ? 0\n")
    assert result.stderr == b"done\n"


def test_a_job_does_not_end_when_nobody_reads(tmp_path: Path) -> None:
    result = run(f'| head -1; echo "${{PIPESTATUS[0]}}" > {tmp_path}/code')
    assert (tmp_path / "code").read_text() == "0\n"
    assert result.stderr == b"done\n"


def test_closed_streams() -> None:
    assert run("2>&-").returncode == 0
    assert run(">&- 2>&-").returncode == 0


def test_a_folder_of_a_partition_is_no_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.is_setting("date=2024-01-01")
    (tmp_path / "date=2024-01-01").mkdir()
    assert not cli.is_setting("date=2024-01-01")
    for path in ("./lr=0.1", "s3://b/dt=2024/model"):
        assert not cli.is_setting(path)
    assert cli.is_setting("data.shards=s3://b/dt=2024/shards")
