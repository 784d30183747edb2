"""The epoch table on the terminal: a row an epoch, a live line with images/s and time left below it."""

from __future__ import annotations

import time
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

_HEADER = f"{'epoch':>9}  {'loss':>8}  {'val MAE':>8}  {'val bias':>8}  {'images/s':>8}  {'seconds':>8}  {'left':>8}"


_LINE_SECONDS = 60.0


def clock(seconds: float) -> str:
    """Hours, minutes and seconds, e.g. 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


class EpochTable:
    """Shows what `ageray.train.run.train` reports. Without a terminal (the log of a job) the live line is printed once a minute."""

    def __init__(self, console: Console | None = None, live: bool = True) -> None:
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:.0f} images/s, {task.fields[left]} left"),
            console=self._console,
            transient=True,
            disable=not (live and self._console.is_terminal),
        )
        self._task: TaskID | None = None
        self._live = live
        self._printed = time.monotonic()
        self._rows = 0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def show(self, record: dict[str, Any]) -> None:
        """A `step`, an `epoch`, or a `note` record."""
        if record["kind"] == "step":
            self._step(record)
        elif record["kind"] == "note":
            self._console.print(f"note: {record['text']}", markup=False)
        else:
            self._epoch(record)

    def _step(self, record: dict[str, Any]) -> None:
        if self._task is None:
            self._task = self._progress.add_task("", rate=0.0, left="")
        done = record["epoch"] * record["steps"] + record["step"]
        images_a_step = record["images_s"] * record["seconds"] / max(1, record["step"])
        remaining = (
            (record["epochs"] * record["steps"] - done) * images_a_step / max(1e-9, record["images_s"])
        )
        name = f"epoch {record['epoch'] + 1}/{record['epochs']}"
        if self._progress.disable:
            self._line(
                f"{name}  step {record['step']}/{record['steps']}  {record['images_s']:.0f} images/s  {clock(remaining)} left"
            )
            return
        self._progress.update(
            self._task,
            description=name,
            completed=record["step"],
            total=record["steps"],
            rate=record["images_s"],
            left=clock(remaining),
        )

    def _line(self, text: str) -> None:
        now = time.monotonic()
        if self._live and now - self._printed > _LINE_SECONDS:
            self._printed = now
            self._console.print(text, markup=False)

    def _epoch(self, record: dict[str, Any]) -> None:
        if self._rows == 0:
            self._console.print(_HEADER)
        self._rows += 1
        left = clock(record["seconds"] * (record["epochs"] - record["epoch"]))
        epoch = f"{record['epoch']}/{record['epochs']}"
        row = f"{epoch:>9}  {record['loss']:>8.4f}  {record['val_mae']:>8.3f}  {record['val_bias']:>+8.3f}"
        row += f"  {record['images_s']:>8.1f}  {record['seconds']:>8.1f}  {left:>8}"
        self._console.print(row + ("  *" if record["best"] else ""), markup=False)
