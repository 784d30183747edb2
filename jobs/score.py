"""Ages of all faces in a collection of photos: a table, a summary, and a page to look at."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from ageray import bundle, config, report, scoring, storage
from ageray.data import collection
from ageray.errors import UserError
from ageray.experiment import Experiment, Scale
from jobs import cli

_EPILOG = """\
INPUT, and DIR, may be local or on a store (s3://...). INPUT is one of
  a folder or a photo   a folder with its sub-folders (.jpg .jpeg .png .webp .bmp .tif .tiff)
  a manifest            .csv or .parquet with a column 'image' or 'uri': urls or paths (relative ones: to its folder)
  face shards           as jobs.prepare writes them; their landmarks are used as they are, unless --detect always

DIR gets
  *.parquet     a row for every face: key, image, face (numbered from the left of the photo), box and landmarks (pixels),
                detection (score), age, age_low and age_high (90 % interval), error; a photo that gives no face has one
                row with face -1 and error
  summary.json  photos, faces, errors by kind, photos a second, which model
  report.html   a sample of the photos with their ages, a histogram, the errors, the model's card
An interrupted run leaves an earlier result in DIR as it was.

examples:
  python -m jobs.score photos --out scores
  python -m jobs.score s3://bucket/photos.csv --out s3://bucket/scores --model runs/dhaa-1a2b3c4d
  python -m jobs.score photos --out scores --fresh data.detect.threshold=0.8 scale.score_workers=2
  python -m jobs.score --demo --out scores

Runs on the cluster of RAY_ADDRESS, else on this machine. Exit 0: done; 2: a mistake in the command or the data, told in
one line; 1: anything else.
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m jobs.score",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "words",
        nargs="*",
        metavar="INPUT | FILE.yaml | key=value",
        help="what to score; settings of scale and data.detect (default: the detector of the model's training)",
    )
    made.add_argument("--out", required=True, metavar="DIR", help="folder to write; must be new or empty")
    made.add_argument("--model", default="zoo:default", help="zoo:NAME, a bundle or a run folder (default: %(default)s)")
    made.add_argument(
        "--detect",
        choices=("auto", "always", "never"),
        default="auto",
        help="look for faces: where INPUT brings no landmarks (auto), everywhere, nowhere (default: %(default)s)",
    )
    made.add_argument("--posterior", action="store_true", help="add a column with the probability of every year of age")
    made.add_argument("--fresh", action="store_true", help="replace the result of an earlier run, once the new one is there")
    made.add_argument(
        "--demo",
        action="store_true",
        help="instead of INPUT: drawn faces and, with scikit-image, a photo; into DIR-photos",
    )
    return made


def main(words: Sequence[str]) -> None:
    """Scores and prints a summary. Raises UserError for mistakes in the command or the input."""
    arguments = parser().parse_intermixed_args(words)
    given = [word for word in arguments.words if "=" in word.split("/")[0] or word.endswith((".yaml", ".yml"))]
    inputs = [word for word in arguments.words if word not in given]
    if len(inputs) != (0 if arguments.demo else 1):
        raise UserError(f"INPUT: give one, or --demo; got {' and '.join(inputs) or 'none'}; see --help")
    experiment = settings(arguments.model, given)
    summary = scoring.score(
        collection.draw_demo(arguments.out.rstrip("/") + "-photos") if arguments.demo else inputs[0],
        arguments.out,
        arguments.model,
        experiment.scale,
        detect=experiment.data.detect,
        search=arguments.detect,
        posterior=arguments.posterior,
        fresh=arguments.fresh,
    )
    print(closing(summary, arguments.out))


def settings(model: str, words: Sequence[str]) -> Experiment:
    """The model's own experiment, on the default scale, changed by settings.

    Raises UserError for settings of anything but `scale` and `data.detect`.
    """
    own = bundle.load(model).experiment.model_copy(update={"scale": Scale()})
    changed = config.load(*config.parse_arguments(words), base=own)
    free = {"scale": changed.scale, "data": own.data.model_copy(update={"detect": changed.data.detect})}
    if changed != own.model_copy(update=free):
        raise UserError(f"{' '.join(words)}: only scale.* and data.detect.* can be set here; the model fixes the rest")
    return changed


def closing(summary: dict[str, Any], out: str) -> str:
    """What `scoring.score` returned, for the terminal."""
    lines = [f"{summary['images']:,} photos, {summary['faces']:,} faces"]
    lines += [f"  {count:>7,} {kind}" for kind, count in summary["errors"].items()]
    rate = f"{summary['seconds']:,.1f} s, {summary['images_per_second']:,.1f} photos/s"
    lines.append(f"{rate}: {storage.join(out, '*.parquet')}")
    lines.append(f"to look at: {storage.join(out, report.PAGE)}")
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main)
