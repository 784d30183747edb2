"""Models against labelled sets: MAE, CS, bias with intervals, the audit of the split, a page;
comparisons; every fold of a protocol.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

import yaml

from ageray import config, storage
from ageray.commands import cli
from ageray.config import paper_table, shipped
from ageray.errors import UserError
from ageray.evaluate.settings import evaluation_settings

_EPILOG = """\
MODEL is zoo:NAME, a bundle, or the folder of a training run. The set's data and protocol come from
FILE.yaml and key=value; alignment is the model's, and so is decoding, unless model.decode.* or
train.calibrate=false is given. Figures before calibration stand beside the others. Which faces are
tested:
`protocol.name` all tests every face, each other protocol the part that it holds out. The audit
tells what the split leaks.

DIR gets report.html (open it in a browser), report.json (the figures), predictions.parquet (key,
age, predicted, low, high, quantiles, labels) and split.parquet (key, part).

one MODEL            its figures, with 95 % bootstrap intervals
several              each in a folder of its own, then compared face by face: which differences are
                     more than chance
--cross              every MODEL on every FILE.yaml that names a set: a matrix. A model is tested on
                     all of a set that it was not trained on and on the test part of its own;
                     protocol.name=... holds for all cells instead
--protocol NAME      takes a recipe in place of MODEL: trains and tests every fold (lopo: one person
                     left out at a time), as many at once as the cluster has room for. The same
                     command again goes on where it was interrupted

--table FILE         a paper's table (configs/tables/*.yaml): trains and tests every row on the sets
                     of the FILE.yaml named, several trainings at once, and writes DIR/<table>.html
                     with the paper's figures beside ours. The same command again goes on where it
                     was interrupted. With --dry-run: what it will run, and for how long

examples:
  ageray evaluate zoo:default configs/data/fgnet.yaml --out results/fgnet
  ageray evaluate runs/baseline-utkface-1a2b3c4d configs/data/utkface.yaml --out \\
      results/utkface data.shards=shards/utkface
  ageray evaluate runs/dhaa-utkface-1a2b3c4d runs/baseline-utkface-5e6f7a8b --out \\
      results/compared
  ageray evaluate --cross zoo:default runs/dhaa-utkface-1a2b3c4d configs/data/utkface.yaml \\
      configs/data/fgnet.yaml --out results/cross
  ageray evaluate --protocol lopo configs/baseline.yaml configs/data/fgnet.yaml \\
      configs/scale/laptop.yaml --out results/lopo
  ageray evaluate --table configs/tables/dhaa_table1.yaml configs/data/morph.yaml \\
      configs/scale/gpu.yaml --out results/dhaa --dry-run

Runs on the cluster of RAY_ADDRESS, else on this machine. Exit 0: done; 2: a mistake in the command,
the settings or the data, told in one line; 1: anything else.
"""

INTERRUPTED = "finished folds of --protocol are kept, and nothing else; again: {command}"
"""What is told after SIGINT or SIGTERM."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = cli.new_parser("evaluate", __doc__, _EPILOG)
    parser.add_argument(
        "words",
        nargs="*",
        metavar="MODEL | FILE.yaml | key=value",
        help="models (with --protocol a recipe instead); the set and the machine: data, protocol, scale",
    )
    parser.add_argument("--out", metavar="DIR", help="folder for the figures")
    parser.add_argument("--cross", action="store_true", help="every model on every set")
    parser.add_argument(
        "--protocol", metavar="NAME", help="train and test every fold of this protocol, e.g. lopo"
    )
    parser.add_argument("--table", metavar="FILE", help="train and test every row of a paper's table")
    parser.add_argument(
        "--dry-run", action="store_true", help="with --table: say what it will run and how long"
    )
    parser.add_argument(
        "--trained-on",
        metavar="DIR",
        help="shards that the model was trained on, for the audit (else those it names)",
    )
    parser.add_argument(
        "--fresh", action="store_true", help="with --protocol: forget the folds of an earlier run"
    )
    return parser


def main(words: Sequence[str]) -> None:
    """Evaluates and prints figures. Raises UserError for mistakes in the settings or the data."""
    arguments = parser().parse_intermixed_args(words)
    models = [word for word in arguments.words if not cli.is_setting(word)]
    settings = [word for word in arguments.words if cli.is_setting(word)]
    if arguments.table:
        _evaluate_table(arguments, models, settings)
        return
    if arguments.dry_run:
        raise UserError("--dry-run: goes with --table FILE alone")
    if not arguments.out:
        raise UserError("--out DIR: is missing; name a folder for the figures")
    if arguments.protocol:
        _evaluate_folds(arguments, models, settings)
    elif not models:
        remedy = "give zoo:NAME, a bundle or a run folder (or --protocol NAME with a recipe)"
        raise UserError(f"no MODEL is named; {remedy}")
    elif arguments.cross:
        _evaluate_cross(arguments, models, settings)
    else:
        _evaluate_models(arguments, models, settings)
    print(f"written to {arguments.out}; open {storage.join(arguments.out, 'report.html')}")


def _evaluate_models(arguments: argparse.Namespace, models: list[str], settings: list[str]) -> None:
    experiments = [evaluation_settings(model, settings) for model in models]

    from ageray.commands.terminal import tables
    from ageray.commands.terminal.rows import RowProgress
    from ageray.evaluate.run import evaluate_models

    with RowProgress(live=experiments[0].scale.progress) as progress:
        report = evaluate_models(models, experiments, arguments.out, arguments.trained_on, progress.show)
    if len(models) == 1:
        tables.show(report)
    else:
        tables.show_comparison(report)


def _evaluate_cross(arguments: argparse.Namespace, models: list[str], settings: list[str]) -> None:
    sets = [word for word in settings if "=" not in word and _names_a_set(word)]
    others = [word for word in settings if word not in sets]
    if not sets:
        remedy = "give a FILE.yaml with data for each, e.g. configs/data/fgnet.yaml"
        raise UserError(f"--cross: no set is named; {remedy}")
    experiments = [evaluation_settings(models[0], [word, *others]) for word in sets]

    from ageray import cluster
    from ageray.commands.terminal import tables
    from ageray.commands.terminal.rows import RowProgress
    from ageray.evaluate.cross import cross

    cluster.connect(experiments[0].scale)
    fixed = any(word.startswith("protocol.") for word in others)
    with RowProgress(live=experiments[0].scale.progress) as progress:
        matrix = cross(models, experiments, arguments.out, fixed, progress.show)
    tables.show_matrix(matrix)


def _evaluate_folds(arguments: argparse.Namespace, models: list[str], settings: list[str]) -> None:
    if models:
        reason = f"--protocol {arguments.protocol} trains its own models"
        raise UserError(f"{models[0]}: {reason}; give a recipe (FILE.yaml), no MODEL")
    paths, overrides = config.parse_arguments(settings)
    experiment = config.load(paths, [*overrides, f"protocol.name={arguments.protocol}"])

    from ageray import cluster
    from ageray.commands.terminal import tables
    from ageray.commands.terminal.folds import FoldProgress
    from ageray.evaluate.folds import evaluate_folds

    cluster.connect(experiment.scale)
    with FoldProgress(live=experiment.scale.progress) as progress:
        report = evaluate_folds(experiment, arguments.out, progress.show, arguments.fresh)
    tables.show(report)


def _evaluate_table(arguments: argparse.Namespace, models: list[str], settings: list[str]) -> None:
    if models:
        raise UserError(f"{models[0]}: --table trains its own models; give FILE.yaml with sets, no MODEL")
    if not arguments.out and not arguments.dry_run:
        raise UserError("--out DIR: is missing; name a folder for the table, or add --dry-run")
    paths, overrides = config.parse_arguments(settings)
    sets, machine = {}, []
    for path in paths:
        if _names_a_set(path):
            sets[config.load([path]).data.name] = path
        else:
            machine.append(path)
    scale = config.load(machine, [word for word in overrides if word.startswith("scale.")]).scale

    paper = paper_table.read_table(arguments.table)
    plan = paper_table.plan_table(paper, arguments.table, sets, machine, overrides)

    from ageray import cluster
    from ageray.commands.terminal.papers import TableProgress, show_plan, show_table
    from ageray.evaluate import table as tables

    with TableProgress(live=scale.progress) as progress:
        estimates = tables.estimate(plan, progress.show, measure=True)
        show_plan(plan, estimates, scale.parallel_trainings)
        if arguments.dry_run:
            return
        cluster.connect(scale)
        name = re.sub(r".*[/:]", "", arguments.table).removesuffix(".yaml")
        table = tables.run_table(plan, estimates, name, arguments.out, progress.show, arguments.fresh)
    show_table(table)
    print(
        f"written to {storage.join(arguments.out, name)}.json; open {storage.join(arguments.out, name)}.html"
    )


def _names_a_set(path: str) -> bool:
    """Whether the file has a section `data`. A file that is not YAML, or not there, counts as one,
    for the reader of settings to report.
    """
    try:
        content = yaml.safe_load(storage.read_text(shipped.path_of(path)))
    except FileNotFoundError:
        return True
    except yaml.YAMLError:
        return True
    return isinstance(content, dict) and "data" in content
