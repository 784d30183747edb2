"""The state of a scoring run on the terminal: a bar that moves or, in the log of a job, a line a minute."""

from __future__ import annotations

import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from ageray.score.progress import Report
from jobs.terminal.epochs import clock

_LINE_SECONDS = 60.0


class ScoreProgress:
    """Shows what `ageray.score.run.score` reports."""

    def __init__(self, console: Console | None = None, live: bool = True) -> None:
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._live = live
        self._bar = Progress(
            BarColumn(),
            TextColumn("{task.description}"),
            console=self._console,
            transient=True,
            disable=not (live and self._console.is_terminal),
        )
        self._task: TaskID | None = None
        self._printed = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def show(self, report: Report) -> None:
        """A report of the run."""
        now = time.monotonic()
        if not self._bar.disable:
            if self._task is None:
                self._task = self._bar.add_task("")
            self._bar.update(
                self._task, description=line(report), completed=report["done"], total=report["total"]
            )
        elif self._live and now - self._printed >= _LINE_SECONDS:
            self._printed = now
            self._console.print(line(report), markup=False)


def line(report: Report) -> str:
    """A report on one line."""
    if report["state"] == "finishing":
        return f"{report['done']:,} photos done; writing the result"
    total = f"/{report['total']:,}" if report["total"] is not None else ""
    left = f"{clock(report['seconds_left'])} left" if report["seconds_left"] is not None else "starting"
    return f"{report['done']:,}{total} photos  {report['images_per_second']:,.1f} images/s  {left}  {report['errors']:,} without a face"
