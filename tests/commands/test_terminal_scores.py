"""The scoring job's line, with and without a terminal."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from ageray.commands.terminal import progress
from ageray.commands.terminal.scores import ScoreProgress, line

REPORT: dict[str, Any] = {
    "state": "running",
    "done": 1200,
    "total": 3600,
    "images_per_second": 40.0,
    "seconds_left": 60.0,
    "errors": 7,
}


def test_line() -> None:
    assert line(REPORT) == "1,200/3,600 photos  40.0 images/s  0:01:00 left  7 without a face"
    assert (
        line(REPORT | {"total": None, "seconds_left": None})
        == "1,200 photos  40.0 images/s  starting  7 without a face"
    )
    assert line(REPORT | {"state": "finishing"}) == "1,200 photos done; writing the result"


def test_a_line_a_minute_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    out = io.StringIO()
    console = Console(file=out, width=120, highlight=False, soft_wrap=True)
    with ScoreProgress(console) as bar:
        for now in range(0, 150):  # noqa: B007 - the clock
            bar.show(REPORT)
    assert out.getvalue().splitlines() == [line(REPORT)] * 2


def test_a_bar_on_a_terminal_and_nothing_if_not_wanted() -> None:
    for live, has_bar in ((True, True), (False, False)):
        out = io.StringIO()
        with ScoreProgress(Console(file=out, force_terminal=True, width=120), live) as bar:
            bar.show(REPORT)
            bar.show(REPORT | {"total": None})
        assert ("1,200" in out.getvalue()) is has_bar
