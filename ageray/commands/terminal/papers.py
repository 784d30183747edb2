"""A paper's table on the terminal: what will run, progress, and the table itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.table import Table

from ageray.commands.terminal.progress import TerminalProgress, clock, log_console
from ageray.evaluate.table.page import texts

if TYPE_CHECKING:
    from ageray.config.paper_table import TablePlan
    from ageray.evaluate.table import Estimate

_WIDTH = 150
Record = dict[str, Any]


class TableProgress(TerminalProgress):
    """Shows what `ageray.evaluate.table.run_table` reports."""

    def __init__(self, console: Console | None = None, live: bool = True) -> None:
        columns = [TextColumn("cells"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}")]
        super().__init__(columns, console, live, left="")

    def show(self, record: Record) -> None:
        """A record of kind `note`, `start`, `fold` or `cell`."""
        prefix = f"{record['cell']}: " if "cell" in record else ""
        if record["kind"] == "note":
            self.print(f"{prefix}{record['text']}")
        elif record["kind"] == "fold":
            mae = "no usable face" if record["mae"] is None else f"MAE {record['mae']:.3f}"
            self.print(f"{prefix}fold {record['fold']}, {record['done']} of {record['total']}: {mae}")
        elif record["kind"] == "cell":
            left = _left(record)
            done = f"{record['done']} of {record['total']} cells"
            self.print(f"{prefix}done; {done} in {clock(record['seconds'])}{', ' if left else ''}{left}")
            self.move(completed=record["done"], total=record["total"], left=left)
        if record["kind"] in ("note", "fold") and _left(record):
            self.move(left=_left(record))


def _left(record: Record) -> str:
    """The time left of the table, '' while nothing is known of it."""
    left = record.get("table_left")
    return "" if left is None else f"{clock(left)} left"


def show_plan(plan: TablePlan, estimates: Sequence[Estimate], parallel: int) -> None:
    """What every cell will run, and for how long by the speed measured."""
    console = log_console(_WIDTH)
    console.print(plan.table.title, markup=False)
    table = Table("cell", "train, val, test", "folds", "epochs", "steps", "faces in all", "time")
    total = 0.0
    for each in estimates:
        parts = ", ".join(f"{each.parts[name]:,}" for name in ("train", "val", "test"))
        cost = f"{each.cost.trained + each.cost.tested:,}"
        seconds = "" if each.seconds is None else clock(each.seconds)
        if each.shared:
            cost, seconds = "", f"with {each.shared}"
        total += each.seconds or 0.0
        table.add_row(each.cell, parts, str(each.folds), str(each.epochs), f"{each.steps:,}", cost, seconds)
    console.print(table)
    for cell in plan.cells:
        if cell.missing:
            console.print(f"not run: {cell.name}: {cell.missing}", markup=False)
    trainings = sum(each.cost.trainings for each in estimates)
    if total:
        at_once = f", {parallel} at once: {clock(total / parallel)}" if parallel > 1 else ""
        text = f"{trainings:,} trainings, about {clock(total)} with their tests on one device{at_once}"
        console.print(text, markup=False)


def show_table(table: Record) -> None:
    """The paper's figures beside ours."""
    console = log_console(_WIDTH)
    console.print(table["title"], markup=False)
    shown = Table("", *table["columns"])
    for row in table["rows"]:
        cells = []
        for cell, metric in zip(row["cells"], table["metrics"], strict=True):
            cells.append("" if cell is None else _text(texts(cell, metric)))
        shown.add_row(row["name"], *cells)
    console.print(shown)
    console.print("paper / ours before calibration (95 % interval); difference to the control", markup=False)


def _text(cell: Record) -> str:
    text = f"{cell['paper']} / {cell['ours']}"
    if cell["interval"]:
        text += f" ({cell['interval']})"
    if cell["difference"]:
        text += f"; {cell['difference']}"
    if cell["missing"]:
        text += f" (not run: {cell['missing']})"
    return text
