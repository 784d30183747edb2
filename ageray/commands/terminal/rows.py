"""A pass over many photos or faces on the terminal: how many are done, how fast, how long still."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn

from ageray.commands.terminal.progress import TerminalProgress, clock

Record = dict[str, Any]
"""what: the work, such as "photos looked at". done, total: so far, and in all."""


class RowProgress(TerminalProgress):
    """Shows records of `Record`'s form; speed is that since the first record of a kind of work, so
    without the start of Ray's processes."""

    def __init__(self, console: Console | None = None, live: bool = True) -> None:
        super().__init__([BarColumn(), TextColumn("{task.description}")], console, live)
        self._what = ""
        self._first = (0.0, 0)

    def show(self, record: Record) -> None:
        """A record of the work."""
        now = time.monotonic()
        if record["what"] != self._what:
            self._what, self._first = record["what"], (now, record["done"])
        text = line(record, now - self._first[0], record["done"] - self._first[1])
        self.print_line(text)
        self.move(description=text, completed=record["done"], total=record["total"])


def line(record: Record, seconds: float, rows: int) -> str:
    """A record on one line. rows: done in `seconds`."""
    text = f"{record['done']:,}/{record['total']:,} {record['what']}"
    if rows > 0 and seconds > 0:
        speed = rows / seconds
        text += f"  {speed:,.1f}/s  {clock((record['total'] - record['done']) / speed)} left"
    return text
