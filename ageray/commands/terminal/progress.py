"""What every command's progress shares: rows that stay, and below them a bar that moves."""

from __future__ import annotations

import time
from typing import Any, Self

from rich.console import Console
from rich.progress import Progress, ProgressColumn, TaskID

LINE_SECONDS = 60.0
"""Pause between two lines of a log that has no bar."""


def clock(seconds: float) -> str:
    """Hours, minutes and seconds, e.g. 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def log_console(width: int | None = None) -> Console:
    """A console for standard output. width: of tables where there is no terminal, whose lines would
    be folded.
    """
    console = Console(highlight=False, soft_wrap=True)
    if width is not None and not console.is_terminal:
        console.width = width
    return console


class TerminalProgress:
    """Prints rows and, on a terminal, a bar below them, inside a `with` block.

    There is no bar without a terminal (in the log of a job), or if `live` is off.
    """

    def __init__(
        self, columns: list[ProgressColumn], console: Console | None, live: bool, **fields: Any
    ) -> None:
        """columns: of the bar. fields: what they show at first, beside `description`, `completed`
        and `total`.
        """
        self._console = console or log_console()
        self._live = live
        hidden = not (live and self._console.is_terminal)
        self._bar = Progress(*columns, console=self._console, transient=True, disable=hidden)
        self._fields: dict[str, Any] = {"description": "", **fields}
        self._task: TaskID | None = None
        self._printed = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def print(self, text: str) -> None:
        """Prints a row."""
        self._console.print(text, markup=False)

    def move(self, **fields: Any) -> None:
        """Changes what the bar shows. The bar appears with the first call."""
        if self._task is None:
            self._task = self._bar.add_task(total=None, **self._fields)
        self._bar.update(self._task, **fields)

    def print_line(self, text: str) -> None:
        """Prints a row, at most once in LINE_SECONDS; nothing if there is a bar."""
        now = time.monotonic()
        if self._bar.disable and self._live and now - self._printed > LINE_SECONDS:
            self._printed = now
            self.print(text)


class TimeLeft:
    """Time left by the speed of this run. `done` counts what earlier runs did too."""

    def __init__(self, done: int = 0) -> None:
        self._started, self._done_before = time.monotonic(), done

    def seconds(self, done: int, total: int) -> float:
        """Seconds until `total`, if the rest takes as long as what this run has done."""
        each = (time.monotonic() - self._started) / max(1, done - self._done_before)
        return each * (total - done)


def describe_start(record: dict[str, Any], what: str) -> str:
    """The first line of many trainings (`what`: folds or trials): how many, on what, and what is
    done already.
    """
    device = f"{record['threads'] or 'all'} core{'s' * (record['threads'] != 1)}"
    if record["gpus"]:
        device = f"{record['gpus']:.2g} of a GPU"
    text = f"{record['total']} {what}, {record['folds']} at once, {device} each"
    if record["done"]:
        text += f"; {record['done']} were finished before"
    if record["frozen_body"]:
        text += f"; the body is frozen: its features were computed once for all {what}"
    return text
