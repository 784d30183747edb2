"""Ages of all faces in a collection of photos: a table, a summary, and a page to look at."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ageray import storage
from ageray.commands import cli
from ageray.errors import UserError
from ageray.experiment import Experiment
from ageray.score.settings import scoring_settings

if TYPE_CHECKING:
    from ageray.score.export import Target

_EPILOG = """\
INPUT, and DIR, may be local or on a store (s3://...). Several INPUTs of one kind are scored together,
so a shell's photos/*.jpg works. INPUT is one of
  photos        a folder with its sub-folders, or one photo (.jpg .jpeg .png .webp .bmp .tif .tiff)
  tars          a folder of .tar files (WebDataset shards), or one; the photos in them are scored,
                all else is passed over
  a manifest    .csv or .parquet with a column 'image' or 'uri': urls or paths (relative ones: to
                its folder)
  an inventory  manifest.json of an S3 Inventory (Parquet or CSV): the photos of the bucket
  tables        .parquet with a column 'image' or 'bytes' of encoded photos, a folder of them or one
  face shards   as ageray prepare writes them; their landmarks are used as they are, unless --detect
                always

DIR gets
  part-*.parquet  a row for every face: key, image (as you wrote it), face (numbered from the left of
                  the photo), box and landmarks (pixels), detection (score), age, age_low and
                  age_high (90 % interval), error (null), quality and unusual (why an interval is
                  wide), over_18, over_25 (probabilities); then the other columns of your manifest or
                  table. Its own column key or id is the key
  errors.parquet  the same columns, a row for every photo that gave no face (face is -1) and for
                  every face that gave no age: error says why
  _summary.json   photos, faces, errors by kind, photos a second, which model
  _report.html    a sample of the photos with their ages, a histogram, the errors, the model's card
pandas.read_parquet(DIR), DuckDB and Spark read DIR as it is. --format csv or jsonl writes such files
in place of .parquet. --out ages.csv (.jsonl, .parquet) writes the folder ages.scores and, from it, the
whole table as that one file.

Until all is done it grows in DIR.unfinished (progress.json there tells how far it is). The same
command again goes on where a run stopped, and does nothing where DIR is complete; with another
model, setting or INPUT it refuses, unless --fresh.

examples:
  ageray score photos --out scores
  ageray score people.csv --out ages.csv
  ageray score s3://bucket/photos.csv --out s3://bucket/scores --model runs/dhaa-1a2b3c4d
  ageray score s3://bucket/shards --out scores storage.endpoint_url=http://minio:9000
  ageray score photos --out scores --fresh data.detect.threshold=0.8 scale.score_workers=2
  ageray score s3://bucket/photos --dry-run --rate core_hour=0.04 --rate million_gets=0.4
  ageray score --demo --out scores

Runs on the cluster of RAY_ADDRESS, else on this machine. Exit 0: done; 2: a mistake in the command
or the data, told in one line; 1: anything else. More in docs/score.md.
"""

INTERRUPTED = "rows of finished photos are kept in DIR.unfinished; to go on: {command}"
"""What is told after SIGINT or SIGTERM."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = cli.new_parser("score", __doc__, _EPILOG)
    parser.add_argument(
        "words",
        nargs="*",
        metavar="INPUT | FILE.yaml | key=value",
        help="what to score; settings of scale, storage and data.detect "
        "(default: the detector of the model's training)",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="folder to write: new, empty, or of the same command; or a file .csv, .jsonl, .parquet",
    )
    parser.add_argument(
        "--format",
        choices=("parquet", "csv", "jsonl"),
        default="parquet",
        help="of the table's files in DIR (default: %(default)s)",
    )
    parser.add_argument(
        "--model", default="zoo:default", help="zoo:NAME, a bundle or a run folder (default: %(default)s)"
    )
    parser.add_argument(
        "--detect",
        choices=("auto", "always", "never"),
        default="auto",
        help="look for faces: where INPUT brings no landmarks (auto), everywhere, nowhere "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--posterior", action="store_true", help="add a column with the probability of every year of age"
    )
    parser.add_argument(
        "--fresh",
        action="store_true",
        help="begin anew; an earlier result is replaced once the new one is there",
    )
    parser.add_argument(
        "--finish",
        action="store_true",
        help="complete the result without the photos whose store does not answer",
    )
    parser.add_argument(
        "--retry-errors",
        action="store_true",
        help="of a complete result: try the photos again that could not be read or decoded, and no others",
    )
    parser.add_argument(
        "--shard",
        metavar="I/N",
        help="score only the I-th of N equal parts; N jobs with one INPUT and one DIR, anywhere and at "
        "any time; the last one to end writes DIR",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="score only 64 photos, on one core, write nothing, and say what the whole would cost",
    )
    parser.add_argument(
        "--rate",
        action="append",
        default=[],
        metavar="NAME=NUMBER",
        help="for --dry-run, any number of times: "
        "core_hour, gpu_hour, million_gets, million_puts, gigabyte (money), gpu_photos (a second)",
    )
    parser.add_argument(
        "--demo",
        action="store_true",
        help="instead of INPUT: drawn faces and, with scikit-image, a photo; into DIR-photos",
    )
    return parser


def main(words: Sequence[str]) -> None:
    """Scores and prints a summary. Raises UserError for mistakes in the command or the input."""
    arguments = parser().parse_intermixed_args(words)
    settings = list(filter(cli.is_setting, arguments.words))
    inputs = [word for word in arguments.words if word not in settings]
    if bool(inputs) == arguments.demo:
        words_text = " and ".join(inputs) or "none"
        raise UserError(f"INPUT: give one or several, or --demo; got {words_text}; see --help")
    if not arguments.out and (arguments.demo or not arguments.dry_run):
        raise UserError("--out: is missing; give the folder to write")
    if arguments.retry_errors:
        _check_alone(arguments)
    experiment = scoring_settings(arguments.model, settings)
    if arguments.dry_run and inputs:
        dry_run(inputs, arguments, experiment)
        return

    from ageray.commands.terminal.scores import ScoreProgress
    from ageray.machine import arrow, engine
    from ageray.score import export, shards
    from ageray.score.run import score

    if engine.choose(experiment.scale, sys.maxsize) == "local":  # Ray needs pandas
        arrow.leave_out_pandas()
    shard = shards.parse(arguments.shard) if arguments.shard else None
    if arguments.demo:
        from ageray.synthetic import demo

        inputs = [demo.draw_demo(arguments.out.rstrip("/") + "-photos")]
    target = export.target(arguments.out, inputs)
    if target.file and arguments.format != "parquet":
        out, form = arguments.out, arguments.format
        raise UserError(f"--format {form}: --out {out} says the form already; leave one out")
    with ScoreProgress(live=experiment.scale.progress) as progress:
        summary = score(
            inputs,
            target.folder,
            arguments.model,
            experiment.scale,
            detect=experiment.data.detect,
            search=arguments.detect,
            posterior=arguments.posterior,
            fresh=arguments.fresh,
            finish=arguments.finish,
            on_progress=progress.show,
            shard=shard,
            retry_errors=arguments.retry_errors,
            format=arguments.format,
        )
    if shard is not None and "digest" in summary:
        print(closing(summary, export.Target(shard.folder(target.folder))))
        return
    if target.file:
        export.one_file(target)
    print(closing(summary, target))


def _check_alone(arguments: argparse.Namespace) -> None:
    """Raises UserError for options that exclude --retry-errors."""
    for name in ("fresh", "shard", "dry_run", "demo"):
        if getattr(arguments, name):
            option = name.replace("_", "-")
            raise UserError(f"--retry-errors: not together with --{option}; leave out one of them")


def dry_run(inputs: Sequence[str], arguments: argparse.Namespace, experiment: Experiment) -> None:
    """Prints what the command would do and cost."""
    from ageray.score.dry_run import RATES, estimate, text

    rates = {}
    for word in arguments.rate:
        name, _, value = word.partition("=")
        try:
            rates[name] = float(value)
        except ValueError:
            rates[name] = -1.0
        if name not in RATES or not 0 <= rates[name] < math.inf:
            names = ", ".join(f"{name} ({meaning})" for name, meaning in RATES.items())
            raise UserError(f"--rate {word}: give NAME=NUMBER; the names are {names}")
    plan = estimate(inputs, arguments.model, experiment.data.detect, arguments.detect)
    print(text(plan, rates))


def closing(summary: dict[str, Any], target: Target) -> str:
    """The content of the summary, for the terminal."""
    lines = [f"{cli.count(summary['images'], 'photo')}, {cli.count(summary['faces'], 'face')}"]
    for kind, count in summary["errors"].items():
        lines.append(f"  {count:>7,} {kind}")
    rate = f"{summary['seconds']:,.1f} s, {summary['images_per_second']:,.1f} photos/s"
    form = "parquet" if "digest" in summary else summary["plan"].get("format", "parquet")
    lines.append(f"{rate}: {target.file or storage.join(target.folder, f'part-*.{form}')}")
    pages = [storage.join(target.folder, name) for name in ("_report.html", "report.html")]  # of 0.1
    lines.append(f"to look at: {next(filter(storage.exists, pages), pages[0])}")
    return "\n".join(lines)
