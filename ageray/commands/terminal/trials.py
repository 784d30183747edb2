"""A search on the terminal: a row a trial as it ends, and below them the running trials, a bar and
the time left.
"""

from __future__ import annotations

import math
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.table import Table

from ageray.commands.terminal.progress import TerminalProgress, TimeLeft, clock, describe_start, log_console
from ageray.tune.page import value_text, verdict

Record = dict[str, Any]


class TuneProgress(TerminalProgress):
    """Shows what `ageray.tune.search` reports.

    paths: of the settings that are searched; the rows have a column for each. minutes: the budget,
    0 for none.
    """

    def __init__(
        self, paths: list[str], minutes: float, console: Console | None = None, live: bool = True
    ) -> None:
        figures = TextColumn("{task.fields[running]}{task.fields[left]} left")
        columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), figures]
        super().__init__(columns, console, live, running="", left="")
        self._minutes = minutes
        self._names = list(map(_short_name, paths))
        self._best, self._best_trial = math.inf, ""
        self._running: dict[int, str] = {}
        self._time_left = TimeLeft()

    def show(self, record: Record) -> None:
        """A record of kind `start`, `epoch`, `trial`, `finalists` or `finalist`."""
        methods = {
            "start": self._start,
            "epoch": self._epoch,
            "trial": self._trial,
            "finalists": self._finalists,
            "finalist": self._finalist,
        }
        methods[record["kind"]](record)

    def _start(self, record: Record) -> None:
        for note in record["notes"]:
            self.print(f"note: {note}")
        self.print(describe_start(record, "trials"))
        self.print(self._row("trial", self._names, "epochs", "score", "best so far", "left", ""))
        self._time_left = TimeLeft(record["done"])
        self.move(description="trials", completed=record["done"], total=record["total"])

    def _epoch(self, record: Record) -> None:
        number, epoch = record["number"], f"{record['epoch']}/{record['epochs']}"
        self._running[number] = f"trial {number}: {epoch} {record['score']:.3f}; "
        self.move(running="".join(self._running.values()))

    def _trial(self, record: Record) -> None:
        trial = record["trial"]
        self._running.pop(trial.number, None)
        score = best = ""
        if trial.score is None:
            score = "failed"
        else:
            score = f"{trial.score:.3f}"
            if trial.score < self._best:
                self._best, self._best_trial = trial.score, f" (trial {trial.number})"
        if self._best < math.inf:
            best = f"{self._best:.3f}{self._best_trial}"
        seconds = self._time_left.seconds(record["done"], record["total"])
        if self._minutes:
            seconds = min(seconds, 60 * self._minutes - record["clock"])
        time_left = clock(max(0.0, seconds))
        why = trial.reason
        if not why and trial.state == "stopped":
            why = "stopped early"
        values = list(map(_value_text, trial.values.values()))
        self.print(self._row(str(trial.number), values, str(len(trial.epochs)), score, best, time_left, why))
        self.move(completed=record["done"], total=record["total"], left=time_left)

    def _row(
        self, number: str, values: list[str], epochs: str, score: str, best: str, time_left: str, why: str
    ) -> str:
        cells = [f"{number:>5}"]
        for name, value in zip(self._names, values, strict=True):
            cells.append(f"{value:>{max(8, len(name))}}")
        cells += [f"{epochs:>6}", f"{score:>8}", f"{best:>18}", f"{time_left:>8}", why]
        return "  ".join(cells).rstrip()

    def _finalists(self, record: Record) -> None:
        self.print(f"finalists: {', '.join(record['names'])}; {record['total']} trainings")
        self._time_left = TimeLeft(record["done"])
        counts = {"completed": record["done"], "total": record["total"]}
        self.move(description="finalists", running="", left="", **counts)

    def _finalist(self, record: Record) -> None:
        time_left = clock(self._time_left.seconds(record["done"], record["total"]))
        row = f"{record['done']:>4}/{record['total']}  {record['name']:<12}  seed {record['seed']:<3}"
        self.print(f"{row}  score {record['score']:.3f}  {time_left:>8} left")
        self.move(completed=record["done"], total=record["total"], left=time_left)


def _short_name(path: str) -> str:
    """The last key of a path, or its last two if it has more than two."""
    keys = path.split(".")
    return keys[-1] if len(keys) < 3 else ".".join(keys[-2:])


def _value_text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def show_search(report: Record) -> None:
    """The end of a search: the finalists and their differences from the recipe, and whether the
    winner is better.
    """
    console = log_console(160)
    head = ["validation", "test MAE", "95 % of the difference", "p", "real"]
    table = Table("", *report["space"], *head)
    comparisons = {row["first"]: row for row in report["comparisons"]}
    for row in report["finalists"]:
        cells = [row["name"], *map(value_text, row["values"].values())]
        cells += [f"{row['score']:.3f}", f"{row['test_mae']:.3f} ± {row['deviation']:.3f}"]
        if row["name"] in comparisons:
            comparison = comparisons[row["name"]]
            difference = comparison["difference"]
            cells.append(f"{difference['low']:+.3f} to {difference['high']:+.3f}")
            cells += [f"{comparison['p']:.4f}", "yes" if comparison["real"] else "no"]
        table.add_row(*cells)
    console.print(table)
    console.print(verdict(report), markup=False)
