"""The rows of a search, with and without a terminal."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from ageray.commands.terminal import progress
from ageray.commands.terminal.progress import TimeLeft
from ageray.commands.terminal.trials import TuneProgress

PATHS = ["train.stages.0.optimizer.lr", "model.dropout"]
START: dict[str, Any] = {
    "kind": "start",
    "notes": ["one note"],
    "total": 4,
    "done": 1,
    "folds": 2,
    "threads": 1,
    "gpus": 0,
    "frozen_body": False,
}


def trial(number: int, score: float | None, state: str = "complete", reason: str = "") -> dict[str, Any]:
    values = {PATHS[0]: 0.00123456, PATHS[1]: None}
    ended = SimpleNamespace(
        number=number, values=values, score=score, epochs=[1, 2, 3], state=state, reason=reason
    )
    return {"kind": "trial", "trial": ended, "done": number + 1, "total": 4, "clock": 50.0}


def printed(*records: dict[str, Any], minutes: float = 0, terminal: bool = False, live: bool = True) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=160, highlight=False, soft_wrap=True)
    with TuneProgress(PATHS, minutes, console, live) as table:
        for record in records:
            table.show(record)
    return out.getvalue()


def test_a_row_a_trial_with_the_best_so_far() -> None:
    failed = trial(3, None, "failed", "out of memory")
    output = printed(START, trial(1, 5.5), trial(2, 6.0, "stopped"), failed)
    note, start, head, first, second, third = output.splitlines()
    assert (note, start) == ("note: one note", "4 trials, 2 at once, 1 core each; 1 were finished before")
    assert head.split() == [
        "trial",
        "optimizer.lr",
        "dropout",
        "epochs",
        "score",
        "best",
        "so",
        "far",
        "left",
    ]
    assert first.split()[:3] == ["1", "0.001235", "3"]  # the dropout is None
    assert "5.500     5.500 (trial 1)" in first
    assert "6.000     5.500 (trial 1)" in second
    assert second.endswith("stopped early")
    assert "failed" in third
    assert third.endswith("out of memory")


def test_a_budget_limits_the_time_left() -> None:
    assert printed(START, trial(1, 5.5), minutes=0.5).splitlines()[-1].endswith("0:00:00")


@pytest.mark.parametrize(
    ("terminal", "live", "bar"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_the_running_trials_stand_in_the_bar(terminal: bool, live: bool, bar: bool) -> None:
    epoch = {"kind": "epoch", "number": 2, "epoch": 1, "epochs": 3, "score": 7.25}
    output = printed(START, epoch, terminal=terminal, live=live)
    assert ("trial 2: 1/3 7.250" in output) is bar


def test_finalists_have_rows_of_their_own() -> None:
    finalists = {"kind": "finalists", "names": ["recipe", "trial 1"], "done": 0, "total": 6}
    finalist = {"kind": "finalist", "name": "recipe", "seed": 3, "score": 5.125, "done": 1, "total": 6}
    start, row = printed(finalists, finalist).splitlines()
    assert start == "finalists: recipe, trial 1; 6 trainings"
    assert row.split()[:6] == ["1/6", "recipe", "seed", "3", "score", "5.125"]


def test_time_left_counts_what_this_run_did(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    time_left = TimeLeft(done=10)
    now = 130.0
    assert time_left.seconds(done=13, total=20) == pytest.approx(70)  # 10 s each
    assert time_left.seconds(done=10, total=20) == pytest.approx(300)  # nothing done yet
