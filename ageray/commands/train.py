"""Face shards to a model: trains on Ray, validates each epoch, and leaves a bundle that the other
commands take.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ageray import config, storage
from ageray.commands import cli
from ageray.errors import UserError
from ageray.experiment import Experiment

if TYPE_CHECKING:
    from ageray.train.files import RunFiles
    from ageray.train.plan import Plan

_EPILOG = """\
the run folder (scale.runs, named by model, data and a hash of the settings) holds
  config.yaml      the settings, complete         log.jsonl      a record an epoch
  split.parquet    which face is in which part    bundle/        the model, calibrated: card.json
                   has its figures
  curves.png       loss and validation MAE        tensorboard/   the same for TensorBoard
  audit.json       what the split leaks           state.pt       the last checkpoint
A run whose worker or node is lost continues by itself; an interrupted one when the same command is
given again, also on another number of workers: from its last checkpoint, at most
scale.checkpoint_steps steps ago.

examples:
  ageray train configs/default.yaml configs/data/utkface.yaml configs/scale/laptop.yaml
  ageray train configs/baseline.yaml configs/data/utkface.yaml configs/scale/gpu.yaml \\
      train.batch_size=256
  ageray train configs/dhaa.yaml configs/data/utkface.yaml configs/scale/gpu.yaml \\
      scale.workers=8 train.sync_batchnorm=true
  ageray train configs/cluster_cnn.yaml configs/data/utkface.yaml \\
      loss.neighborhood.sigma=3 loss.cross_entropy=null
  ageray train configs/default.yaml configs/data/utkface.yaml --seeds 3 train.name=first

Runs on the cluster of RAY_ADDRESS, else on this machine. Exit 0: done; 2: a mistake in the command,
the settings or the data, told in one line; 1: anything else.
"""

INTERRUPTED = "the last checkpoint is kept in the run folder; to go on: {command}"
"""What is told after SIGINT or SIGTERM."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = cli.new_parser("train", __doc__, _EPILOG)
    parser.add_argument("words", nargs="+", metavar="FILE.yaml | key=value", help="settings; later ones win")
    parser.add_argument(
        "--seeds",
        type=int,
        default=1,
        metavar="N",
        help="train N times, with train.seed and the seeds after it, each into a run of its own",
    )
    parser.add_argument("--fresh", action="store_true", help="forget an earlier run of the same settings")
    return parser


def main(words: Sequence[str]) -> None:
    """Trains and prints the result. Raises UserError for mistakes in the settings or the data."""
    arguments = parser().parse_intermixed_args(words)
    experiment = config.load(*config.parse_arguments(arguments.words))
    if arguments.seeds < 1:
        raise UserError(f"--seeds {arguments.seeds}: give 1 or more")
    if arguments.seeds > 1:
        _train_seeds(experiment, arguments.seeds, arguments.fresh)
        return
    folder = _train(experiment, arguments.fresh)
    print(f"model: {folder}")


def _train(experiment: Experiment, fresh: bool) -> str:
    """One run; its folder."""
    from ageray import cluster
    from ageray.commands.terminal.epochs import EpochTable
    from ageray.train import plan, run, trackers

    trackers.check(experiment)
    planned = plan.make(experiment, fresh)
    _print_plan(experiment, planned)
    cluster.connect(experiment.scale)
    _audit(experiment, planned)
    with (
        EpochTable(live=experiment.scale.progress) as table,
        trackers.tracking(experiment, planned.folder) as tracked,
    ):

        def show(record: dict[str, Any]) -> None:
            table.show(record)
            tracked.show(record)

        run.train(experiment, planned, show)
    _print_validation(planned.files)
    return planned.folder


def _train_seeds(experiment: Experiment, count: int, fresh: bool) -> None:
    """A run for each seed. A finished one is kept, unless `fresh`."""
    from ageray.train.files import RunFiles
    from ageray.train.plan import run_folder

    folders, errors = [], []
    for seed in range(experiment.train.seed, experiment.train.seed + count):
        train = experiment.train.model_copy(update={"seed": seed})
        seeded = experiment.model_copy(update={"train": train})
        folder = run_folder(seeded)
        print(f"train.seed={seed}", flush=True)
        if fresh or not storage.exists(RunFiles(folder).card):
            _train(seeded, fresh)
        else:
            print(f"{folder}: is finished; kept")
        card = json.loads(storage.read_text(RunFiles(folder).card))
        folders.append(folder)
        if "validation" in card:
            errors.append(card["validation"]["mae"])
    if len(errors) > 1:
        each = ", ".join(f"{error:.3f}" for error in errors)
        spread = f"mean {statistics.mean(errors):.3f}, standard deviation {statistics.stdev(errors):.3f}"
        print(f"validation MAE of {len(errors)} seeds: {each}; {spread}")
    for folder in folders:
        print(f"model: {folder}")
    print("to compare two recipes: ageray evaluate with the models of both; the noise of seeds counts")


def _print_plan(experiment: Experiment, plan: Plan) -> None:
    counts = ", ".join(f"{faces} {name}" for name, faces in plan.parts.items())
    print(f"run {plan.folder}\nfaces {counts}; steps an epoch {', '.join(map(str, plan.steps))}", flush=True)
    for note in plan.facts["notes"]:
        print(f"note: {note}")
    outside = plan.facts["outside_bins"]
    if outside:
        ages = list(experiment.model.ages)
        print(f"note: {outside} training ages lie outside model.ages={ages} and train at its ends")


def _audit(experiment: Experiment, plan: Plan) -> None:
    """Writes and prints what the split leaks, once a run."""
    from ageray.evaluate.split_audit import audit_split

    file = plan.files.audit
    if not experiment.scale.audit or storage.exists(file):
        return
    audit = audit_split(plan.folders(), plan.files.split)
    if audit is not None:
        print("\n  ".join(["audit of the split:", *audit["lines"]]), flush=True)
        storage.write_text(file, json.dumps(audit, indent=1) + "\n")


def _print_validation(files: RunFiles) -> None:
    card = json.loads(storage.read_text(files.card))
    if "validation" in card:
        figures = card["validation"]
        median = f"always saying the median age: {figures['constant']['own_median']['mae']:.3f}"
        print(f"validation: MAE {figures['mae']:.3f} ({median}), CS(5) {figures['cs5']:.3f}")
        if "plain" in figures:
            print(f"validation before calibration: MAE {figures['plain']['mae']:.3f}")
