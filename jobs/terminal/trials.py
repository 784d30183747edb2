"""A search on the terminal: a row a trial as it ends, and below them what runs, a bar and the time left."""

from __future__ import annotations

import time
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from jobs.terminal.epochs import clock

Record = dict[str, Any]


class TuneProgress:
    """Shows what `ageray.tune.search` reports. Without a terminal (the log of a job), or where `live` is off, there is no bar."""

    def __init__(
        self, paths: list[str], minutes: float, console: Console | None = None, live: bool = True
    ) -> None:
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[running]}{task.fields[left]} left"),
            console=self._console,
            transient=True,
            disable=not (live and self._console.is_terminal),
        )
        self._task = self._progress.add_task("trials", total=None, left="", running="")
        self._paths, self._minutes = paths, minutes
        self._names = [
            path.rpartition(".")[2] if path.count(".") < 2 else ".".join(path.split(".")[-2:])
            for path in paths
        ]
        self._best, self._running = (float("inf"), ""), dict[int, str]()
        self._started, self._before = time.monotonic(), 0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def show(self, record: Record) -> None:
        """A record of any kind."""
        {
            "start": self._start,
            "epoch": self._epoch,
            "trial": self._trial,
            "finalists": self._finalists,
            "finalist": self._finalist,
        }[record["kind"]](record)

    def _start(self, record: Record) -> None:
        for note in record["notes"]:
            self._console.print(f"note: {note}", markup=False)
        place = (
            f"{record['gpus']:.2g} of a GPU"
            if record["gpus"]
            else f"{record['threads'] or 'all'} core{'s' * (record['threads'] != 1)}"
        )
        text = f"{record['total']} trials, {record['folds']} at once, {place} each"
        if record["done"]:
            text += f"; {record['done']} were finished before"
        if record["frozen_body"]:
            text += "; the body is frozen: its features were computed once for all trials"
        self._console.print(text, markup=False)
        self._console.print(
            self._row("trial", self._names, "epochs", "score", "best so far", "left", ""), markup=False
        )
        self._before, self._started = record["done"], time.monotonic()
        self._progress.update(self._task, completed=record["done"], total=record["total"])

    def _epoch(self, record: Record) -> None:
        self._running[record["number"]] = (
            f"trial {record['number']}: {record['epoch']}/{record['epochs']} {record['score']:.3f}"
        )
        self._progress.update(
            self._task, running="; ".join(self._running.values()) + "; " if self._running else ""
        )

    def _trial(self, record: Record) -> None:
        trial = record["trial"]
        self._running.pop(trial.number, None)
        if trial.score is not None and trial.score < self._best[0]:
            self._best = trial.score, f" (trial {trial.number})"
        left = self._left(record)
        values = [
            "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
            for value in trial.values.values()
        ]
        score = "failed" if trial.score is None else f"{trial.score:.3f}"
        best = "" if self._best[0] == float("inf") else f"{self._best[0]:.3f}{self._best[1]}"
        why = trial.reason or {"stopped": "stopped early"}.get(trial.state, "")
        self._console.print(
            self._row(str(trial.number), values, str(len(trial.epochs)), score, best, left, why), markup=False
        )
        self._progress.update(self._task, completed=record["done"], total=record["total"], left=left)

    def _left(self, record: Record) -> str:
        """By the pace of this run, no more than the budget leaves."""
        ended = max(1, record["done"] - self._before)
        seconds = (time.monotonic() - self._started) / ended * (record["total"] - record["done"])
        return clock(
            max(0.0, min(seconds, 60 * self._minutes - record["clock"]) if self._minutes else seconds)
        )

    def _row(
        self, number: str, values: list[str], epochs: str, score: str, best: str, left: str, why: str
    ) -> str:
        widths = [max(8, len(name)) for name in self._names]
        cells = [f"{value:>{width}}" for value, width in zip(values, widths, strict=True)]
        return "  ".join(
            [f"{number:>5}", *cells, f"{epochs:>6}", f"{score:>8}", f"{best:>18}", f"{left:>8}", why]
        ).rstrip()

    def _finalists(self, record: Record) -> None:
        self._console.print(
            f"finalists: {', '.join(record['names'])}; {record['total']} trainings", markup=False
        )
        self._started, self._before = time.monotonic(), record["done"]
        self._progress.update(
            self._task,
            description="finalists",
            completed=record["done"],
            total=record["total"],
            running="",
            left="",
        )

    def _finalist(self, record: Record) -> None:
        seconds = (
            (time.monotonic() - self._started)
            / max(1, record["done"] - self._before)
            * (record["total"] - record["done"])
        )
        text = f"{record['done']:>4}/{record['total']}  {record['name']:<12}  seed {record['seed']:<3}  score {record['score']:.3f}"
        self._console.print(f"{text}  {clock(seconds):>8} left", markup=False)
        self._progress.update(
            self._task, completed=record["done"], total=record["total"], left=clock(seconds)
        )
