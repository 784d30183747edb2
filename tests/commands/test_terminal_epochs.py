"""The epoch table, with and without a terminal."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console

from ageray.commands.terminal import progress
from ageray.commands.terminal.epochs import EpochTable
from ageray.commands.terminal.progress import clock

Record = dict[str, Any]


def epoch(number: int, best: bool = False, **changes: Any) -> Record:
    figures = {"loss": 4.1234, "val_mae": 7.6543, "val_bias": -1.25, "images_s": 98.76, "seconds": 61.0}
    return {"kind": "epoch", "epoch": number, "epochs": 12, "best": best, **figures, **changes}


def step(number: int, **changes: Any) -> Record:
    """10 steps a second of 8 images each, 100 steps an epoch, 12 epochs."""
    record = {
        "kind": "step",
        "epoch": 2,
        "epochs": 12,
        "step": number,
        "steps": 100,
        "seconds": number / 10,
        "images_s": 80.0,
    }
    return record | changes


def printed(*records: Record, terminal: bool = False, live: bool = True) -> str:
    out = io.StringIO()
    with EpochTable(
        Console(file=out, force_terminal=terminal, width=120, highlight=False, soft_wrap=True), live
    ) as table:
        for record in records:
            table.show(record)
    return out.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00:00"), (59.4, "0:00:59"), (59.6, "0:01:00"), (3723, "1:02:03"), (90_000, "25:00:00")],
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


@pytest.mark.parametrize("terminal", [False, True])
def test_one_head_and_a_row_an_epoch_with_a_star_for_the_best(terminal: bool) -> None:
    output = printed(epoch(1, best=True), epoch(2), epoch(12, best=True, val_mae=5.0), terminal=terminal)
    rows = [
        re.sub(r"\x1b\S*", "", line) for line in output.splitlines() if "/12" in line
    ]  # without the terminal's control words
    assert output.count("val MAE") == 1
    assert output.index("val MAE") < output.index("1/12")
    assert [row.split() for row in rows] == [
        ["1/12", "4.1234", "7.654", "-1.250", "98.8", "61.0", "0:11:11", "*"],
        ["2/12", "4.1234", "7.654", "-1.250", "98.8", "61.0", "0:10:10"],
        ["12/12", "4.1234", "5.000", "-1.250", "98.8", "61.0", "0:00:00", "*"],
    ]


def test_columns_stand_below_their_heads() -> None:
    head, row = printed(epoch(3, best=True)).splitlines()
    assert len(row) == len(head) + len("  *")
    for name, figure in (("loss", "4.1234"), ("val MAE", "7.654"), ("images/s", "98.8"), ("left", "0:09:09")):
        assert head.index(name) + len(name) == row.index(figure) + len(figure)


def test_an_epoch_without_validation_faces_is_shown() -> None:
    assert "nan" in printed(epoch(1, best=True, val_mae=float("nan"), val_bias=float("nan")))


def test_the_faces_that_a_teacher_saw_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", -1.0)
    record = {"kind": "teacher", "images": 500, "total": 2000, "images_s": 50.0}
    assert printed(record) == "teacher  face 500/2000  50 images/s  0:00:30 left\n"
    assert "teacher" in printed(record, terminal=True)


def test_on_a_terminal_a_live_line_tells_rate_and_time_left() -> None:
    output = printed(step(50), terminal=True)
    # 2 epochs of 12 and 50 steps of 100 are done: 950 steps at a tenth of a second
    for text in ("epoch 3/12", "50/100", "80 images/s", "0:01:35 left"):
        assert text in output


def test_without_a_terminal_a_line_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    out = io.StringIO()
    with EpochTable(Console(file=out, force_terminal=False, width=120)) as table:
        for seconds in range(0, 150, 2):
            now = 1000.0 + seconds
            table.show(step(10 * seconds + 1, steps=2000))
    lines = out.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("epoch 3/12  step 621/2000  80 images/s  ")
    assert lines[0].endswith(" left")


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_that_is_switched_off_leaves_the_rows(
    terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", -1.0)
    output = printed(step(1), step(50), epoch(1), terminal=terminal, live=False)
    assert "images/s  " in output
    assert "step" not in output
    assert "epoch 3" not in output
