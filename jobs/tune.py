"""Any settings of an experiment searched: proposals by TPE, early stopping, the best retrained with several seeds, a page on what is real."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from ageray import cluster, config, storage, tune
from ageray.tune.page import value_text, verdict
from jobs import cli
from jobs.terminal.trials import TuneProgress

_EPILOG = """\
One of the files holds `tune`: the settings to search with their ranges, the budget, who is retrained. configs/tune/ has some. Any path of the
recipe can be searched (loss.neighborhood.sigma, train.stages.0.optimizer.lr, model.dropout); alignment, data, protocol, seed and epochs are held
fixed. Trials are judged on the validation faces. The best of them and the recipe itself are trained again with several seeds and compared on the
test faces, which nothing has looked at before.

the folder (--out, or one of scale.runs) holds
  config.yaml      the recipe                     trials.jsonl   a line a trial: values, curve, state
  tune.json        the search                     finalists/     a file a retraining
  split.parquet    which face is in which part    bundle/        the winner: evaluate, score and serve take the folder as MODEL
  report.html      the page                       report.json    its figures
With --resume an interrupted search goes on; no trial that ended is lost. tune.trials, tune.minutes, tune.at_once and tune.finalists may then differ.

examples:
  python -m jobs.tune configs/deep_embedding.yaml configs/data/utkface.yaml configs/scale/laptop.yaml configs/tune/loss.yaml
  python -m jobs.tune configs/cluster_cnn.yaml configs/data/utkface.yaml configs/scale/gpu.yaml configs/tune/lambda.yaml tune.at_once=4
  python -m jobs.tune configs/baseline.yaml configs/data/utkface.yaml configs/tune/optimizer.yaml tune.minutes=60 --out runs/rates
  python -m jobs.tune configs/baseline.yaml configs/data/utkface.yaml configs/tune/optimizer.yaml tune.minutes=90 --out runs/rates --resume

Runs on the cluster of RAY_ADDRESS, else on this machine. Exit 0: done; 2: a mistake in the command, the settings or the
data, told in one line; 1: anything else.
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m jobs.tune",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "words",
        nargs="+",
        metavar="FILE.yaml | key=value",
        help="recipe, data, machine and search; later ones win",
    )
    made.add_argument(
        "--out",
        metavar="DIR",
        help="folder of the search (default: one in scale.runs, named by its settings)",
    )
    made.add_argument("--resume", action="store_true", help="go on with the search in that folder")
    return made


def main(words: Sequence[str]) -> None:
    """Searches and prints what was found. Raises UserError for mistakes in the settings or the data."""
    arguments = parser().parse_intermixed_args(words)
    paths, overrides = config.parse_arguments(arguments.words)
    plan = tune.make(config.read(paths, overrides), arguments.out, arguments.resume)
    scale = plan.space.written.experiment.scale
    print(f"search {plan.file.folder}", flush=True)
    for note in plan.split.notes:
        print(f"note: {note}")
    cluster.connect(scale)
    with TuneProgress(list(plan.space.ranges), plan.space.tune.minutes, live=scale.progress) as progress:
        found = tune.search(plan, progress.show)
    console = Console(highlight=False, soft_wrap=True)
    table = Table("", *found["space"], "validation", "test MAE", "95 % of the difference", "p", "real")
    pairs = {row["first"]: row for row in found["comparisons"]}
    for row in found["finalists"]:
        values = [value_text(value) for value in row["values"].values()]
        cells = ["", "", ""]
        if row["name"] in pairs:
            pair = pairs[row["name"]]
            gap = pair["difference"]
            cells = [
                f"{gap['low']:+.3f} to {gap['high']:+.3f}",
                f"{pair['p']:.4f}",
                "yes" if pair["real"] else "no",
            ]
        table.add_row(
            row["name"],
            *values,
            f"{row['score']:.3f}",
            f"{row['test_mae']:.3f} ± {row['deviation']:.3f}",
            *cells,
        )
    if not console.is_terminal:
        console.width = 160  # a log has no edge to fold at
    console.print(table)
    console.print(verdict(found), markup=False)
    console.print(
        f"model: {plan.file.folder}; open {storage.join(plan.file.folder, 'report.html')}", markup=False
    )


if __name__ == "__main__":
    cli.run(main)
