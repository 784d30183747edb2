"""Photos to face shards: reads a set, finds the faces, drops what would spoil training, and says
what it dropped.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ageray import config, storage
from ageray.commands import cli
from ageray.prepare.layouts.catalog import help_text

_EPILOG = f"""\
layouts (data.layout; auto, the default, recognises them):
{help_text()}

what is dropped, each listed with its reason in prepare.json beside the shards:
  malformed name, bad row    the name or row does not say what it should
  unreadable, undecodable    the file is missing, damaged, or no photo
  filtered, not in a list    data.filters leaves it out; no list of the set names it
  no face, no points         nothing to align by
  duplicate copy             the same bytes as another file with the same age (one is kept)
  conflicting ages           the same bytes as another file with another age (none is kept)
  near duplicate             nearly the same picture as another; only with data.near_duplicates=drop
  near duplicate, other age  the same, with another age (none is kept)

examples:
  ageray prepare configs/data/utkface.yaml data.source=DIR data.shards=shards/utkface
  ageray prepare data.source=s3://bucket/faces.csv data.name=mine \\
      data.shards=s3://bucket/shards
  ageray prepare configs/data/fgnet.yaml data.source=DIR data.shards=shards/fgnet \\
      data.landmarks=detect --fresh

docs/prepare.md has the columns of a manifest and more. Runs on the cluster of RAY_ADDRESS, else on
this machine. Exit 0: done; 2: a mistake in the command or the data, told in one line; 1: anything
else.
"""

INTERRUPTED = "no shard is kept; again: {command}"
"""What is told after SIGINT or SIGTERM."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = cli.new_parser("prepare", __doc__, _EPILOG)
    parser.add_argument(
        "words",
        nargs="*",
        metavar="FILE.yaml | key=value",
        help="settings; later ones win. Needs data.source, data.shards",
    )
    parser.add_argument("--fresh", action="store_true", help="rewrite shards that an earlier run finished")
    return parser


def main(words: Sequence[str]) -> None:
    """Prepares, prints a summary. Raises UserError for mistakes in the settings or the source."""
    arguments = parser().parse_intermixed_args(words)
    experiment = config.load(*config.parse_arguments(arguments.words))

    from ageray.commands.terminal.rows import RowProgress
    from ageray.prepare import run

    source = run.check(experiment, arguments.fresh)  # before Ray starts, which takes seconds
    with RowProgress(live=experiment.scale.progress) as progress:
        report = run.prepare(experiment, arguments.fresh, source, progress.show)
    print(summary(report, str(experiment.data.shards)))


def summary(report: dict[str, Any], target: str) -> str:
    """What `ageray.prepare.run.prepare` returned, for the terminal."""
    from ageray.prepare.run import REPORT

    counts = dict(report["counts"])
    photos, faces = counts.pop("photos"), counts.pop("kept")
    kept = f"{cli.count(photos, 'photo')}, {cli.count(faces, 'face')} kept"
    lines = [f"{report['dataset']} (layout {report['layout']}): {kept}"]
    for kind, number in counts.items():
        lines.append(f"  {number:>7} dropped: {kind}")
    for kind, number in Counter(note["kind"] for note in report["notes"]).items():
        lines.append(f"  {number:>7} kept, but: {kind}")
    mib = sum(file["bytes"] for file in report["shards"]) / 2**20
    speed = f"{report['seconds']:.0f} s, {report['photos_per_second']:.0f} photos/s"
    lines.append(f"{cli.count(len(report['shards']), 'shard')}, {mib:.0f} MiB, {speed}: {target}")
    lines.append(f"every dropped photo and why: {storage.join(target, REPORT)}")
    return "\n".join(lines)
