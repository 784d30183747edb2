"""Training on the terminal: a row an epoch, and below them the step, images per second and the time
left.
"""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn

from ageray.commands.terminal.progress import TerminalProgress, clock

_HEADER = (
    f"{'epoch':>9}  {'loss':>8}  {'val MAE':>8}  {'val bias':>8}  "
    f"{'images/s':>8}  {'seconds':>8}  {'left':>8}"
)


class EpochTable(TerminalProgress):
    """Shows what `ageray.train.run.train` reports. In a log the step is printed once a minute."""

    def __init__(self, console: Console | None = None, live: bool = True) -> None:
        figures = TextColumn("{task.fields[rate]:.0f} images/s, {task.fields[left]} left")
        columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), figures]
        super().__init__(columns, console, live, rate=0.0, left="")
        self._has_header = False

    def show(self, record: dict[str, Any]) -> None:
        """A record of kind `step`, `teacher`, `epoch` or `note`."""
        if record["kind"] == "step":
            self._step(record)
        elif record["kind"] == "teacher":
            self._teacher(record)
        elif record["kind"] == "note":
            self.print(f"note: {record['text']}")
        else:
            self._epoch(record)

    def _step(self, record: dict[str, Any]) -> None:
        done = record["epoch"] * record["steps"] + record["step"]
        seconds_a_step = record["seconds"] / max(1, record["step"])
        time_left = clock((record["epochs"] * record["steps"] - done) * seconds_a_step)
        epoch, rate = f"epoch {record['epoch'] + 1}/{record['epochs']}", record["images_s"]
        step = f"step {record['step']}/{record['steps']}"
        self.print_line(f"{epoch}  {step}  {rate:.0f} images/s  {time_left} left")
        self.move(
            description=epoch, completed=record["step"], total=record["steps"], rate=rate, left=time_left
        )

    def _teacher(self, record: dict[str, Any]) -> None:
        done, total, rate = record["images"], record["total"], record["images_s"]
        time_left = clock((total - done) / max(rate, 1e-9))
        self.print_line(f"teacher  face {done}/{total}  {rate:.0f} images/s  {time_left} left")
        self.move(description="teacher", completed=done, total=total, rate=rate, left=time_left)

    def _epoch(self, record: dict[str, Any]) -> None:
        if not self._has_header:
            self.print(_HEADER)
            self._has_header = True
        time_left = clock(record["seconds"] * (record["epochs"] - record["epoch"]))
        epoch = f"{record['epoch']}/{record['epochs']}"
        row = f"{epoch:>9}  {record['loss']:>8.4f}  {record['val_mae']:>8.3f}  {record['val_bias']:>+8.3f}"
        row += f"  {record['images_s']:>8.1f}  {record['seconds']:>8.1f}  {time_left:>8}"
        self.print(row + "  *" * bool(record["best"]))
