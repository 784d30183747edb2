"""The console command: what it runs, what it says to words that are no command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ageray import __main__ as console
from ageray.commands import COMMANDS

ROOT = Path(__file__).resolve().parents[2]


def ended(monkeypatch: pytest.MonkeyPatch, *words: str) -> object:
    """The exit code of `ageray WORDS`, run here; 0 where it returns."""
    monkeypatch.setattr("sys.argv", ["ageray", *words])
    try:
        console.main()
    except SystemExit as end:
        return end.code
    return 0


@pytest.mark.parametrize("words", [[], ["--help"]])
def test_without_a_command_it_lists_them(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(monkeypatch, *words) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in COMMANDS)


def test_a_word_that_is_no_command_is_answered_with_the_nearest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(monkeypatch, "scroe", "photos") == 2
    assert capsys.readouterr().err == "error: scroe: no command of ageray; did you mean score?\n"
    assert ended(monkeypatch, "x", "photos") == 2
    assert "give one of prepare, train, " in capsys.readouterr().err


def test_a_command_gets_the_words_behind_its_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(monkeypatch, "score", "photos", "--out", "out", "scale.score_wrokers=2") == 2
    assert "scale.score_wrokers" in capsys.readouterr().err
    assert ended(monkeypatch, "score", "--help") == 0
    assert capsys.readouterr().out.startswith("usage: ageray score ")


IMPORTING = """\
import importlib, signal, sys
from ageray import __main__ as console
importlib.import_module = lambda name: signal.raise_signal(signal.{name})
sys.argv = ["ageray", "serve"]
console.main()
"""


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_while_modules_are_imported_is_answered(name: str, code: int) -> None:
    words = [sys.executable, "-c", IMPORTING.format(name=name)]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    run = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60)
    line = "interrupted: nothing was begun; give the same command again"
    assert (run.returncode, run.stdout, run.stderr.strip()) == (code, "", line)


SPLIT = {
    "prepare": ["data.name=a", "--fresh", "data.namme=b"],
    "train": ["data.name=a", "--fresh", "data.namme=b"],
    "tune": ["data.name=a", "--resume", "data.namme=b"],
    "evaluate": ["zoo:fast", "--out", "results", "data.namme=b"],
    "score": ["photos", "--out", "out", "scale.namme=b"],
    "calibrate": ["MODEL", "--out", "out", "data.namme=b"],
    "serve": ["gpu=false", "--port", "1", "namme=b"],
}
"""Settings on both sides of an option."""


@pytest.mark.parametrize("command", SPLIT)
def test_options_may_stand_between_settings(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(monkeypatch, command, *SPLIT[command]) == 2
    assert "namme: unknown key" in capsys.readouterr().err


def test_a_folder_jobs_where_it_is_called_does_not_stand_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    for name in ("__init__.py", "score.py", "cli.py"):
        (tmp_path / "jobs" / name).write_text("raise RuntimeError('of another project')\n")
    words = [sys.executable, "-m", "ageray", "score", "--help"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    run = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith("usage: ageray score ")
