"""A scoring run on the terminal: a bar that moves or, in the log of a job, a line a minute."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn

from ageray.commands.terminal.progress import TerminalProgress, clock

Record = dict[str, Any]
"""A report of `ageray.score.progress`."""


class ScoreProgress(TerminalProgress):
    """Shows what `ageray.score.run.score` reports."""

    def __init__(self, console: Console | None = None, live: bool = True) -> None:
        super().__init__([BarColumn(), TextColumn("{task.description}")], console, live)

    def show(self, record: Record) -> None:
        """A report of the run."""
        self.print_line(line(record))
        self.move(description=line(record), completed=record["done"], total=record["total"])


def line(record: Record) -> str:
    """A report on one line."""
    if record["state"] == "finishing":
        return f"{record['done']:,} photos done; writing the result"
    photos, time_left = f"{record['done']:,}", "starting"
    if record["total"] is not None:
        photos += f"/{record['total']:,}"
    if record["seconds_left"] is not None:
        time_left = f"{clock(record['seconds_left'])} left"
    rate = f"{record['images_per_second']:,.1f} images/s"
    return f"{photos} photos  {rate}  {time_left}  {record['errors']:,} without a face"
