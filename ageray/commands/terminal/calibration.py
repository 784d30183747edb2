"""The figures of a calibration on the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from ageray.commands.terminal.progress import log_console

_WIDTH = 100

Record = dict[str, Any]


def show(report: Record) -> None:
    """The fit, and the figures before and after."""
    console = log_console(_WIDTH)
    for note in report["notes"]:
        console.print(f"note: {note}", markup=False)
    if report["unusable"]:
        console.print(f"note: {_count(report['unusable'], 'face')} cannot be used", markup=False)
    if report["trained"]:
        text = f"{_count(report['trained'], 'face')} that trained the model are left out"
        console.print(f"note: {text}", markup=False)
    _show_figures(console, f"{_size(report)} fitted; after: each person left out of the fit", report)
    if "test" in report:
        _show_figures(console, f"{_size(report['test'])} not fitted", report["test"])
    line = report["line"]
    moved = f"age = {line['slope']:g} * age before {line['years']:+.2f} years"
    if line == {"slope": 1.0, "years": 0.0}:
        moved = "ages stay as they were; a line would not lower the error of others"
    console.print(moved, markup=False)


def _show_figures(console: Console, title: str, report: Record) -> None:
    console.print(title, markup=False)
    table = Table("", "MAE", "95 % interval", "bias", "90 % interval covers", "95 % interval", "width")
    for name in ("before", "after"):
        figures = report[name]
        cells = [name, f"{figures['mae']['value']:.2f}", _ends(figures["mae"], ".2f")]
        cells += [f"{figures['bias']['value']:+.2f}", f"{figures['coverage']['value']:.3f}"]
        table.add_row(*cells, _ends(figures["coverage"], ".3f"), f"{figures['width']['value']:.1f}")
    console.print(table)


def _size(report: Record) -> str:
    return f"{_count(report['faces'], 'face')} of {_count(report['people'], 'person', 'people')}"


def _count(number: int, one: str, several: str = "") -> str:
    if number == 1:
        return f"1 {one}"
    return f"{number:,} {several or one + 's'}"


def _ends(estimate: Record, form: str) -> str:
    return "" if estimate["low"] is None else f"{estimate['low']:{form}} to {estimate['high']:{form}}"
