"""Folds on the terminal: a row a fold as it ends, and below them a bar with the time left."""

from __future__ import annotations

from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from jobs.terminal.epochs import clock

_HEADER = (
    f"{'folds':>9}  {'fold':<12}  {'faces':>6}  {'MAE':>7}  {'MAE so far':>10}  {'seconds':>8}  {'left':>8}"
)


class FoldProgress:
    """Shows what `ageray.evaluate.folds.run_folds` reports. `MAE so far` is over all faces of the folds that this run trained. Without a terminal
    (the log of a job), or where `live` is off, there is no bar."""

    def __init__(self, console: Console | None = None, live: bool = True) -> None:
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._progress = Progress(
            TextColumn("folds"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]} left"),
            console=self._console,
            transient=True,
            disable=not (live and self._console.is_terminal),
        )
        self._task = self._progress.add_task("", total=None, left="")
        self._faces, self._error = 0, 0.0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def show(self, record: dict[str, Any]) -> None:
        """A `start` or a `fold` record."""
        if record["kind"] == "start":
            self._start(record)
        else:
            self._fold(record)

    def _start(self, record: dict[str, Any]) -> None:
        self._progress.update(self._task, completed=record["done"], total=record["total"])
        place = (
            f"{record['gpus']:.2g} of a GPU"
            if record["gpus"]
            else f"{record['threads'] or 'all'} core{'s' * (record['threads'] != 1)}"
        )
        text = f"{record['total']} folds, {record['folds']} at once, {place} each"
        if record["done"]:
            text += f"; {record['done']} were finished before"
        if record["frozen_body"]:
            text += "; the body is frozen: its features were computed once for all folds"
        self._console.print(text, markup=False)
        self._console.print(_HEADER, markup=False)

    def _fold(self, record: dict[str, Any]) -> None:
        if record["images"]:
            self._faces += record["images"]
            self._error += record["images"] * record["mae"]
        so_far = self._error / self._faces if self._faces else float("nan")
        mae = float("nan") if record["mae"] is None else record["mae"]
        left = "" if record["left"] is None else clock(record["left"])
        row = f"{record['done']:>4}/{record['total']:<4}  {record['fold'][:12]:<12}  {record['images']:>6}  {mae:>7.3f}  {so_far:>10.3f}"
        self._console.print(f"{row}  {record['seconds']:>8.1f}  {left:>8}", markup=False)
        self._progress.update(self._task, completed=record["done"], left=left)
