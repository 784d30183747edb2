"""The rows of folds, with and without a terminal."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from ageray.commands.terminal.folds import FoldProgress

Record = dict[str, Any]


def start(**changes: Any) -> Record:
    record = {
        "kind": "start",
        "done": 0,
        "total": 82,
        "frozen_body": False,
        "folds": 2,
        "cpus": 1.0,
        "gpus": 0.0,
        "threads": 1,
    }
    return record | changes


def fold(done: int, **changes: Any) -> Record:
    figures = {"images": 10, "mae": 5.0, "best_epoch": 3, "seconds": 61.25, "left": 3723.0}
    return {"kind": "fold", "done": done, "total": 82, "fold": "001", **figures, **changes}


def printed(*records: Record, terminal: bool = False, live: bool = True) -> str:
    out = io.StringIO()
    with FoldProgress(
        Console(file=out, force_terminal=terminal, width=140, highlight=False, soft_wrap=True), live
    ) as progress:
        for record in records:
            progress.show(record)
    return out.getvalue()


def test_a_row_a_fold_with_the_mean_over_all_faces_so_far() -> None:
    output = printed(start(), fold(1), fold(2, fold="002", images=30, mae=3.0, left=59.4))
    head, one, two = output.splitlines()[1:]
    assert output.startswith("82 folds, 2 at once, 1 core each\n")
    assert one.split() == ["1/82", "001", "10", "5.000", "5.000", "61.2", "1:02:03"]
    assert two.split() == ["2/82", "002", "30", "3.000", "3.500", "61.2", "0:00:59"]
    for name, figure in (("faces", "10"), ("MAE so far", "5.000"), ("seconds", "61.2"), ("left", "1:02:03")):
        assert head.rindex(name) + len(name) == one.rindex(figure) + len(figure)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"threads": 0, "folds": 1}, "82 folds, 1 at once, all cores each"),
        ({"gpus": 0.25, "folds": 4}, "82 folds, 4 at once, 0.25 of a GPU each"),
        ({"done": 7}, "1 core each; 7 were finished before"),
        ({"frozen_body": True}, "; the body is frozen: its features were computed once for all folds"),
    ],
)
def test_the_first_line_tells_the_shares_and_what_is_done(changes: Record, text: str) -> None:
    assert text in printed(start(**changes))


def test_a_fold_of_which_no_face_could_be_used() -> None:
    row = printed(start(), fold(1), fold(2, images=0, mae=None, left=None)).splitlines()[-1]
    assert row.split() == ["2/82", "001", "0", "nan", "5.000", "61.2"]


@pytest.mark.parametrize(
    ("terminal", "live", "bar"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_the_bar_is_for_terminals(terminal: bool, live: bool, bar: bool) -> None:
    output = printed(start(), fold(41), terminal=terminal, live=live)
    assert ("1:02:03 left" in output) is bar
    assert "41/82" in output
