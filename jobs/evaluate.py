"""A model against a labelled set: MAE, CS, bias, by decade, beside what saying always the same age would give."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from ageray import bundle, cluster, config, evaluation
from ageray.errors import UserError
from ageray.experiment import Scale
from jobs import cli

_EPILOG = """\
MODEL is zoo:NAME, a bundle, or the folder of a training run. The set's data and protocol come from FILE.yaml and key=value; alignment and
decoding are the model's. Which faces are tested: `protocol.name` all tests every face, each other protocol the part
that it holds out. Notes tell what the split leaks.

DIR gets report.json (the figures), predictions.parquet (key, age, predicted, low, high) and split.parquet (key, part). A model whose ages come
from a gallery adds how many neighbours were of the face's own subject and, where genders are known, how often the nearest faces tell them.

examples:
  python -m jobs.evaluate zoo:default configs/data/fgnet.yaml --out results/fgnet
  python -m jobs.evaluate runs/baseline-utkface-1a2b3c4d configs/data/utkface.yaml --out results/utkface data.shards=shards/utkface

Runs on the cluster of RAY_ADDRESS, else on this machine. Exit 0: done; 2: a mistake in the command, the settings or the
data, told in one line; 1: anything else.
"""
_OWN = ("model", "loss", "align", "train")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m jobs.evaluate", description=__doc__, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("model", metavar="MODEL", help="zoo:NAME, a bundle or a run folder")
    made.add_argument("words", nargs="*", metavar="FILE.yaml | key=value", help="the set and the machine: data, protocol, scale")
    made.add_argument("--out", required=True, metavar="DIR", help="folder for the figures")
    return made


def main(words: Sequence[str]) -> None:
    """Evaluates and prints the figures. Raises UserError for mistakes in the settings or the data."""
    arguments = parser().parse_intermixed_args(words)
    loaded = bundle.load(arguments.model)
    paths, overrides = config.parse_arguments(arguments.words)
    # the machine is this one, not the one that trained
    experiment = config.load(paths, overrides, base=loaded.experiment.model_copy(update={"scale": Scale()}))
    for section in _OWN:
        if getattr(experiment, section) != getattr(loaded.experiment, section):
            raise UserError(f"{section}: belongs to the model and was fixed when it was trained; give only data, protocol and scale")
    cluster.connect(experiment.scale)
    show(evaluation.evaluate(arguments.model, experiment, arguments.out))
    print(f"written to {arguments.out}")


def show(report: dict[str, Any]) -> None:
    """Prints a report's figures."""
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 120  # a log has no edge to fold at
    for note in report["notes"]:
        console.print(f"note: {note}", markup=False)
    for warning in report["warnings"]:
        console.print(f"warning: {warning}", markup=False)
    if report["unusable"]:
        console.print(f"warning: {len(report['unusable'])} faces cannot be used; {evaluation.REPORT} lists them", markup=False)
    console.print(f"{report['model']['name']} on {report['data']['name']}, {report['images']:,} test faces", markup=False)
    overall = Table("", "MAE", "CS(3)", "CS(5)", "bias", "90 % interval covers", "width")
    interval = report["interval"]
    figures = [f"{report['mae']:.3f}", f"{report['cs3']:.3f}", f"{report['cs5']:.3f}", f"{report['bias']:+.3f}"]
    overall.add_row("model", *figures, f"{interval['coverage']:.3f}", f"{interval['mean_width']:.1f}")
    for name, label in (("training_median", "always the training median"), ("own_median", "always this set's median")):
        floor = report["constant"][name]
        if floor is not None:
            overall.add_row(f"{label}, {floor['age']:g}", f"{floor['mae']:.3f}", "", "", "", "", "")
    console.print(overall)
    _show_gallery(console, report)
    decades = Table("age", "faces", "MAE", "bias")
    for row in report["by_decade"]:
        decades.add_row(row["ages"], str(row["images"]), f"{row['mae']:.2f}", f"{row['bias']:+.2f}")
    console.print(decades)


def _show_gallery(console: Console, report: dict[str, Any]) -> None:
    if "gallery" in report:
        found = report["gallery"]
        own = f"{found['same_subject_share']:.1%} of them of the face's own subject, {found['same_subject_excluded']:,.0f} left out as such"
        console.print(f"{found['neighbours']:,.0f} neighbours in a gallery of {found['faces']:,} faces; {own}", markup=False)
        if found["without_neighbours"]:
            console.print(f"warning: {found['without_neighbours']} faces have no neighbour; their age is a guess", markup=False)
    if "gender" in report:
        found = report["gender"]
        console.print(f"gender by the nearest faces ({found['by']}): {found['accuracy']:.3f} of {found['faces']:,} right", markup=False)


if __name__ == "__main__":
    cli.run(main)
