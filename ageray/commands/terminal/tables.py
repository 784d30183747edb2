"""Reports of evaluations on the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from ageray.commands.terminal.progress import log_console
from ageray.evaluate.files import REPORT
from ageray.evaluate.page.comparison import letter, seed_verdict, setting_text
from ageray.report.page import PAGE

_WIDTH = 140
_COMPARED_WIDTH = 100
_MOST_SETTINGS = 20
_FLOORS = {"training_median": "always the training median", "own_median": "always this set's median"}

Record = dict[str, Any]


def show(report: Record) -> None:
    """One model's figures."""
    console = log_console(_WIDTH)
    _show_audit(console, report["audit"])
    for note in report["notes"]:
        console.print(f"note: {note}", markup=False)
    _show_warnings(console, report["warnings"])
    if report["unusable"]:
        text = f"{len(report['unusable'])} faces cannot be used; {REPORT} lists them"
        _show_warnings(console, [text])
    data = f"{report['data']['name']}, {report['images']:,} test faces"
    console.print(f"{report['model']['name']} on {data}", markup=False)
    _show_overall(console, report)
    _show_age_checks(console, report["estimates"])
    if "people" in report:
        _show_people(console, report["people"])
    if "gallery" in report:
        _show_gallery(console, report["gallery"])
    if "gender" in report:
        gender = report["gender"]
        share = f"{gender['accuracy']:.3f} of {gender['faces']:,} right"
        console.print(f"gender by the nearest faces ({gender['by']}): {share}", markup=False)
    decades = Table("age", "faces", "MAE", "95 % interval", "bias")
    for row in report["estimates"]["by_age"]:
        mae, bias = _number(row["mae"], ".2f"), _number(row["bias"], "+.2f")
        decades.add_row(row["ages"], str(row["images"]), mae, _interval(row["mae"], ".2f"), bias)
    console.print(decades)


def show_comparison(comparison: Record) -> None:
    """Several models on the same faces."""
    console = log_console(_COMPARED_WIDTH)
    _show_warnings(console, comparison["warnings"])
    console.print(f"{comparison['data']['name']}, {comparison['images']:,} test faces", markup=False)
    models = Table("", "model", "MAE", "95 % interval", "CS(5)", "bias", "90 % interval covers", "width")
    letters = {}
    for number, row in enumerate(comparison["models"]):
        letters[row["name"]] = letter(number)
    for row in comparison["models"]:
        cells = [letters[row["name"]], row["name"], _number(row["mae"], ".3f"), _interval(row["mae"], ".3f")]
        cells += [_number(row["cs5"], ".3f"), _number(row["bias"], "+.3f")]
        cells += [_number(row["coverage"], ".3f"), _number(row["width"], ".1f")]
        models.add_row(*cells)
    console.print(models)
    pairs = Table("pair", "difference of MAE", "95 % interval", "p", "more than chance")
    for row in comparison["pairs"]:
        difference = row["difference"]
        pair = f"{letters[row['first']]} - {letters[row['second']]}"
        cells = [pair, _number(difference, "+.3f"), _interval(difference, "+.3f")]
        pairs.add_row(*cells, f"{row['permutation_p']:.4f}", "yes" if row["real"] else "no")
    console.print(pairs)
    for row in comparison["seeds"]:
        console.print(seed_verdict(row), markup=False)
    if comparison["settings"]:
        settings = Table("what differs", *letters.values())
        for row in comparison["settings"][:_MOST_SETTINGS]:
            settings.add_row(row["key"], *map(setting_text, row["values"]))
        console.print(settings)
    further = len(comparison["settings"]) - _MOST_SETTINGS
    if further > 0:
        console.print(f"and {further} settings more: see {PAGE}", markup=False)


def show_matrix(matrix: Record) -> None:
    """MAE of every model on every set. A star marks the set that a model was trained on."""
    console = log_console(_WIDTH)
    table = Table("MAE", *matrix["sets"])
    for name, row in zip(matrix["models"], matrix["cells"], strict=True):
        table.add_row(name, *(f"{_number(cell['mae'], '.3f')}{'*' * cell['own']}" for cell in row))
    console.print(table)
    console.print("* trained on this set: the test part of the model's own split", markup=False)


def _show_warnings(console: Console, warnings: list[str]) -> None:
    for warning in warnings:
        console.print(f"warning: {warning}", markup=False)


def _show_audit(console: Console, audit: Record) -> None:
    title = "audit"
    if audit["against"] is not None:
        title += f", against {audit['against']}"
    console.print(title, markup=False)
    for line in audit["lines"]:
        console.print(f"  {line}", markup=False)


def _show_overall(console: Console, report: Record) -> None:
    table = Table("", "MAE", "95 % interval", "CS(3)", "CS(5)", "bias", "90 % interval covers", "width")
    overall, interval = report["estimates"]["overall"], report["interval"]
    cells = ["model", f"{report['mae']:.3f}", _interval(overall["mae"], ".3f")]
    cells += [f"{report['cs3']:.3f}", f"{report['cs5']:.3f}", f"{report['bias']:+.3f}"]
    table.add_row(*cells, f"{interval['coverage']:.3f}", f"{interval['mean_width']:.1f}")
    plain = report.get("plain")
    if plain is not None:
        shares = {row["years"]: row["share"] for row in plain["cs"]}
        cells = ["before calibration", _number(plain["mae"], ".3f"), _interval(plain["mae"], ".3f")]
        cells += [_number(shares[3], ".3f"), _number(shares[5], ".3f"), _number(plain["bias"], "+.3f")]
        table.add_row(*cells)
    people = overall["mae_over_subjects"]
    if people is not None:
        table.add_row("mean over subjects", _number(people, ".3f"), _interval(people, ".3f"))
    for name, label in _FLOORS.items():
        floor = report["constant"][name]
        if floor is not None:
            table.add_row(f"{label}, {floor['age']:g}", f"{floor['mae']:.3f}")
    console.print(table)


def _show_age_checks(console: Console, estimates: Record) -> None:
    checks = estimates.get("age_checks")
    if not checks:
        return
    table = Table(
        "age check", "passes from", "false adults", "95 % interval", "false minors", "95 % interval"
    )
    for check in checks:
        for row in check["thresholds"]:
            cells = [f"over {check['limit']}", f"{row['threshold']:g}"]
            for rate in (row["false_adult"], row["false_minor"]):
                cells += [_number(rate, ".3f"), _interval(rate, ".3f")]
            table.add_row(*cells)
    console.print(table)
    young = _number(estimates["young_adults"]["mae"], ".3f")
    if young:
        console.print(f"MAE over ages 18 to 30, the mean over sexes and years: {young}", markup=False)


def _show_people(console: Console, people: Record) -> None:
    console.print(f"{people['people']:,} people with several photos, means over people", markup=False)
    for name, which in (("one", "one photo"), ("all", "all photos")):
        mae, share, width = (people[f"{figure}_{name}"] for figure in ("mae", "coverage", "width"))
        text = f"{which}: MAE {mae:.2f}, interval covers {share:.3f}, {width:.1f} years wide"
        console.print(f"  {text}", markup=False)


def _show_gallery(console: Console, gallery: Record) -> None:
    size = f"{gallery['neighbours']:,.0f} neighbours in a gallery of {gallery['faces']:,} faces"
    same = f"{gallery['same_subject_share']:.1%} of them of the face's own subject"
    excluded = f"{gallery['same_subject_excluded']:,.0f} left out as such"
    console.print(f"{size}; {same}, {excluded}", markup=False)
    if gallery["without_neighbours"]:
        text = f"{gallery['without_neighbours']} faces have no neighbour; their age is a guess"
        _show_warnings(console, [text])


def _number(estimate: Record, form: str) -> str:
    return "" if estimate["value"] is None else format(estimate["value"], form)


def _interval(estimate: Record, form: str) -> str:
    return "" if estimate["low"] is None else f"{estimate['low']:{form}} to {estimate['high']:{form}}"
