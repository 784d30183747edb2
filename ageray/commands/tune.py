"""Any settings of an experiment searched: proposals by TPE, early stopping, the best retrained with
several seeds, a page on what is real.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ageray import config, storage
from ageray.commands import cli

_EPILOG = """\
One of the files holds `tune`: the settings to search with their ranges, the budget, who is
retrained. configs/tune/ has some. Any path of the recipe can be searched (loss.neighborhood.sigma,
train.stages.0.optimizer.lr, model.dropout); alignment, data, protocol, seed and epochs are
fixed. Trials are judged on the validation faces. The best of them and the recipe itself are trained
again with several seeds and compared on the test faces, which nothing has looked at before.

the folder (--out, or one of scale.runs) holds
  config.yaml      the recipe                     trials.jsonl   a line a trial: values, curve,
                   state
  tune.json        the search                     finalists/     a file a retraining
  split.parquet    which face is in which part    bundle/        the winner: evaluate, score and
                   serve take the folder as MODEL
  report.html      the page                       report.json    its figures
With --resume an interrupted search goes on; no trial that ended is lost. tune.trials, tune.minutes,
tune.at_once and tune.finalists may then differ.

examples:
  ageray tune configs/deep_embedding.yaml configs/data/utkface.yaml \\
      configs/scale/laptop.yaml configs/tune/loss.yaml
  ageray tune configs/cluster_cnn.yaml configs/data/utkface.yaml configs/scale/gpu.yaml \\
      configs/tune/lambda.yaml tune.at_once=4
  ageray tune configs/baseline.yaml configs/data/utkface.yaml configs/tune/optimizer.yaml \\
      tune.minutes=60 --out runs/rates
  ageray tune configs/baseline.yaml configs/data/utkface.yaml configs/tune/optimizer.yaml \\
      tune.minutes=90 --out runs/rates --resume

Runs on the cluster of RAY_ADDRESS, else on this machine. Exit 0: done; 2: a mistake in the command,
the settings or the data, told in one line; 1: anything else.
"""

INTERRUPTED = "finished trials are kept; the same command with --resume goes on"
"""What is told after SIGINT or SIGTERM."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = cli.new_parser("tune", __doc__, _EPILOG)
    parser.add_argument(
        "words",
        nargs="+",
        metavar="FILE.yaml | key=value",
        help="recipe, data, machine and search; later ones win",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="folder of the search (default: one in scale.runs, named by its settings)",
    )
    parser.add_argument("--resume", action="store_true", help="go on with the search in that folder")
    return parser


def main(words: Sequence[str]) -> None:
    """Searches and prints the result. Raises UserError for mistakes in the settings or the data."""
    arguments = parser().parse_intermixed_args(words)
    settings = config.read(*config.parse_arguments(arguments.words))

    from ageray import cluster, tune
    from ageray.commands.terminal.trials import TuneProgress, show_search

    plan = tune.make(settings, arguments.out, arguments.resume)
    scale = settings.experiment.scale
    print(f"search {plan.file.folder}", flush=True)
    for note in plan.split.notes:
        print(f"note: {note}")
    cluster.connect(scale)
    with TuneProgress(list(plan.space.ranges), plan.space.tune.minutes, live=scale.progress) as progress:
        report = tune.search(plan, progress.show)
    show_search(report)
    print(f"model: {plan.file.folder}; open {storage.join(plan.file.folder, 'report.html')}")
