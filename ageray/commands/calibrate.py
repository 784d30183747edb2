"""A model fitted to your camera and people: a new bundle whose ages and intervals hold for them,
from some tens or hundreds of labelled faces.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ageray import bundle, config
from ageray.commands import cli
from ageray.errors import UserError
from ageray.experiment import Data, Experiment, Protocol, Scale

_EPILOG = """\
MODEL is zoo:NAME, a bundle, or the folder of a training run. DATA is a folder of shards that ageray
prepare wrote, or FILE.yaml with data and protocol. Nothing is trained: a line moves the ages, and
each side of the 90 % interval becomes wider or narrower.

All faces are fitted, and the figures after are those of each person by a fit without that person.
With another protocol than all, its test part is not fitted, and its figures are shown too.

It needs 20 labelled faces; 100 faces of 20 people or more give an interval that can be relied on.

examples:
  ageray calibrate zoo:default shards/mine --out models/mine
  ageray calibrate zoo:default configs/data/fgnet.yaml --out models/fgnet \\
      protocol.name=subject_exclusive protocol.test=0.8

Then use the bundle in place of MODEL: ageray score PHOTOS --model models/mine --out DIR.

Runs on the cluster of RAY_ADDRESS, else on this machine. Exit 0: done; 2: a mistake in the command,
the settings or the data, told in one line; 1: anything else.
"""

INTERRUPTED = "nothing was written; again: {command}"
"""What is told after SIGINT or SIGTERM."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = cli.new_parser("calibrate", __doc__, _EPILOG)
    parser.add_argument("model", metavar="MODEL", help="the model to fit")
    parser.add_argument(
        "words",
        nargs="+",
        metavar="DATA | FILE.yaml | key=value",
        help="the labelled faces and the machine: data, protocol, scale",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the new bundle")
    return parser


def main(words: Sequence[str]) -> None:
    """Calibrates and prints figures. Raises UserError for mistakes in the settings or the data."""
    arguments = parser().parse_intermixed_args(words)
    experiment = _experiment(arguments.words)
    bundle.resolve(arguments.model)

    from ageray import cluster
    from ageray.calibrate import calibrate
    from ageray.commands.terminal import calibration
    from ageray.commands.terminal.rows import RowProgress

    cluster.connect(experiment.scale)
    with RowProgress(live=experiment.scale.progress) as progress:
        report = calibrate(arguments.model, experiment, arguments.out, progress.show)
    calibration.show(report)
    print(f"model: {arguments.out}")


def _experiment(words: Sequence[str]) -> Experiment:
    """The settings of the command line; every face is fitted unless a protocol is given."""
    folders = [word for word in words if not cli.is_setting(word)]
    settings = [word for word in words if cli.is_setting(word)]
    if len(folders) > 1:
        raise UserError(f"{' '.join(folders)}: several folders of shards; give one")
    if folders:
        settings.append(f"data.shards={folders[0]}")
    base = Experiment().model_copy(
        update={"data": Data(name="own"), "protocol": Protocol(name="all"), "scale": Scale()}
    )
    return config.load(*config.parse_arguments(settings), base=base)
