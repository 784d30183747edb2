"""Folds on the terminal: a row a fold as it ends, and below them a bar with the time left."""

from __future__ import annotations

import math
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn

from ageray.commands.terminal.progress import TerminalProgress, clock, describe_start

_HEADER = (
    f"{'folds':>9}  {'fold':<12}  {'faces':>6}  {'MAE':>7}  {'MAE so far':>10}  {'seconds':>8}  {'left':>8}"
)


class FoldProgress(TerminalProgress):
    """Shows what `ageray.evaluate.folds.run_folds` reports.

    `MAE so far` is over all faces of the folds that this run trained.
    """

    def __init__(self, console: Console | None = None, live: bool = True) -> None:
        time_left = TextColumn("{task.fields[left]} left")
        super().__init__(
            [TextColumn("folds"), BarColumn(), MofNCompleteColumn(), time_left], console, live, left=""
        )
        self._faces, self._error = 0, 0.0

    def show(self, record: dict[str, Any]) -> None:
        """A record of kind `start`, `fold` or `note`."""
        if record["kind"] == "note":
            self.print(record["text"])
        elif record["kind"] == "start":
            self.move(completed=record["done"], total=record["total"])
            self.print(describe_start(record, "folds"))
            self.print(_HEADER)
        else:
            self._fold(record)

    def _fold(self, record: dict[str, Any]) -> None:
        mae = mae_so_far = math.nan
        if record["images"]:
            mae = record["mae"]
            self._faces += record["images"]
            self._error += record["images"] * mae
        if self._faces:
            mae_so_far = self._error / self._faces
        time_left = ""
        if record["left"] is not None:
            time_left = clock(record["left"])
        row = f"{record['done']:>4}/{record['total']:<4}  {record['fold'][:12]:<12}  {record['images']:>6}"
        row += f"  {mae:>7.3f}  {mae_so_far:>10.3f}  {record['seconds']:>8.1f}  {time_left:>8}"
        self.print(row)
        self.move(completed=record["done"], left=time_left)
