"""Reports of evaluations on the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from ageray import evaluate


def show(report: dict[str, Any]) -> None:
    """One model's figures."""
    console = _console()
    _show_audit(console, report)
    for note in report["notes"]:
        console.print(f"note: {note}", markup=False)
    for warning in report["warnings"]:
        console.print(f"warning: {warning}", markup=False)
    if report["unusable"]:
        console.print(
            f"warning: {len(report['unusable'])} faces cannot be used; {evaluate.REPORT} lists them",
            markup=False,
        )
    console.print(
        f"{report['model']['name']} on {report['data']['name']}, {report['images']:,} test faces",
        markup=False,
    )
    _show_overall(console, report)
    _show_gallery(console, report)
    decades = Table("age", "faces", "MAE", "95 % interval", "bias")
    for row in report["estimates"]["by_age"]:
        decades.add_row(
            row["ages"],
            str(row["images"]),
            _number(row["mae"], ".2f"),
            _ends(row["mae"], ".2f"),
            _number(row["bias"], "+.2f"),
        )
    console.print(decades)


def show_comparison(comparison: dict[str, Any]) -> None:
    """Several models on the same faces."""
    console = _console()
    for warning in comparison["warnings"]:
        console.print(f"warning: {warning}", markup=False)
    console.print(f"{comparison['data']['name']}, {comparison['images']:,} test faces", markup=False)
    models = Table("model", "MAE", "95 % interval", "CS(5)", "bias", "90 % interval covers", "width")
    for row in comparison["models"]:
        figures = [
            _number(row[name], form)
            for name, form in (("cs5", ".3f"), ("bias", "+.3f"), ("coverage", ".3f"), ("width", ".1f"))
        ]
        models.add_row(row["name"], _number(row["mae"], ".3f"), _ends(row["mae"], ".3f"), *figures)
    console.print(models)
    pairs = Table("first", "second", "difference of MAE", "95 % interval", "p", "more than chance")
    for row in comparison["pairs"]:
        difference, p = row["difference"], f"{row['permutation_p']:.4f}"
        pairs.add_row(
            row["first"],
            row["second"],
            _number(difference, "+.3f"),
            _ends(difference, "+.3f"),
            p,
            "yes" if row["real"] else "no",
        )
    console.print(pairs)


def show_matrix(matrix: dict[str, Any]) -> None:
    """MAE of every model on every set; * marks a model's own set, of which its test part alone counts."""
    console = _console()
    table = Table("MAE", *matrix["sets"])
    for name, row in zip(matrix["models"], matrix["cells"], strict=True):
        table.add_row(name, *(f"{_number(cell['mae'], '.3f')}{'*' * cell['own']}" for cell in row))
    console.print(table)
    console.print("* trained on this set: the test part of the model's own split", markup=False)


def _console() -> Console:
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 140  # a log has no edge to fold at
    return console


def _show_audit(console: Console, report: dict[str, Any]) -> None:
    found = report["audit"]
    console.print("audit" if found["against"] is None else f"audit, against {found['against']}", markup=False)
    for line in found["lines"]:
        console.print(f"  {line}", markup=False)


def _show_overall(console: Console, report: dict[str, Any]) -> None:
    overall = Table("", "MAE", "95 % interval", "CS(3)", "CS(5)", "bias", "90 % interval covers", "width")
    interval, mae = report["interval"], report["estimates"]["overall"]["mae"]
    figures = [
        f"{report['mae']:.3f}",
        _ends(mae, ".3f"),
        f"{report['cs3']:.3f}",
        f"{report['cs5']:.3f}",
        f"{report['bias']:+.3f}",
    ]
    overall.add_row("model", *figures, f"{interval['coverage']:.3f}", f"{interval['mean_width']:.1f}")
    people = report["estimates"]["overall"]["mae_over_subjects"]
    if people is not None:
        overall.add_row(
            "mean over subjects", _number(people, ".3f"), _ends(people, ".3f"), "", "", "", "", ""
        )
    for name, label in (
        ("training_median", "always the training median"),
        ("own_median", "always this set's median"),
    ):
        floor = report["constant"][name]
        if floor is not None:
            overall.add_row(f"{label}, {floor['age']:g}", f"{floor['mae']:.3f}", "", "", "", "", "", "")
    console.print(overall)


def _show_gallery(console: Console, report: dict[str, Any]) -> None:
    if "gallery" in report:
        found = report["gallery"]
        own = f"{found['same_subject_share']:.1%} of them of the face's own subject, {found['same_subject_excluded']:,.0f} left out as such"
        console.print(
            f"{found['neighbours']:,.0f} neighbours in a gallery of {found['faces']:,} faces; {own}",
            markup=False,
        )
        if found["without_neighbours"]:
            console.print(
                f"warning: {found['without_neighbours']} faces have no neighbour; their age is a guess",
                markup=False,
            )
    if "gender" in report:
        found = report["gender"]
        console.print(
            f"gender by the nearest faces ({found['by']}): {found['accuracy']:.3f} of {found['faces']:,} right",
            markup=False,
        )


def _number(estimate: dict[str, Any], form: str) -> str:
    return "" if estimate["value"] is None else format(estimate["value"], form)


def _ends(estimate: dict[str, Any], form: str) -> str:
    return "" if estimate["low"] is None else f"{estimate['low']:{form}} to {estimate['high']:{form}}"
