"""Face shards to a model: trains on Ray, validates each epoch, and leaves a bundle that the other commands take."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from ageray import bundle, cluster, config, evaluate, storage
from ageray.experiment import Experiment
from ageray.train import plan, run
from jobs import cli
from jobs.terminal.epochs import EpochTable

_EPILOG = """\
the run folder (scale.runs, named by model, data and a hash of the settings) holds
  config.yaml      the settings, complete         log.jsonl      a record an epoch
  split.parquet    which face is in which part    bundle/        the model, calibrated: card.json has its figures
  curves.png       loss and validation MAE        tensorboard/   the same for TensorBoard
  audit.json       what the split leaks           state.pt       the last checkpoint
A run whose worker or node is lost continues by itself; an interrupted one when the same command is given again, also on another
number of workers: from its last checkpoint, at most scale.checkpoint_steps steps ago.

examples:
  python -m jobs.train configs/default.yaml configs/data/utkface.yaml configs/scale/laptop.yaml
  python -m jobs.train configs/baseline.yaml configs/data/utkface.yaml configs/scale/gpu.yaml train.batch_size=256
  python -m jobs.train configs/dhaa.yaml configs/data/utkface.yaml configs/scale/gpu.yaml scale.workers=8 train.sync_batchnorm=true
  python -m jobs.train configs/cluster_cnn.yaml configs/data/utkface.yaml loss.neighborhood.sigma=3 loss.cross_entropy=null

Runs on the cluster of RAY_ADDRESS, else on this machine. Exit 0: done; 2: a mistake in the command, the settings or the
data, told in one line; 1: anything else.
"""
_AUDIT = "audit.json"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m jobs.train",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("words", nargs="+", metavar="FILE.yaml | key=value", help="settings; later ones win")
    made.add_argument("--fresh", action="store_true", help="forget an earlier run of the same settings")
    return made


def main(words: Sequence[str]) -> None:
    """Trains and prints the result. Raises UserError for mistakes in the settings or the data."""
    arguments = parser().parse_args(words)
    paths, overrides = config.parse_arguments(arguments.words)
    experiment = config.load(paths, overrides)
    made = plan.make(experiment, arguments.fresh)
    counts = ", ".join(f"{faces} {name}" for name, faces in made.parts.items())
    print(f"run {made.folder}\nfaces {counts}; steps an epoch {', '.join(map(str, made.steps))}", flush=True)
    for note in made.facts["notes"]:
        print(f"note: {note}")
    if made.facts["outside_bins"]:
        outside, ages = made.facts["outside_bins"], list(experiment.model.ages)
        print(f"note: {outside} training ages lie outside model.ages={ages} and train at its ends")
    cluster.connect(experiment.scale)
    _audit(experiment, made)
    with EpochTable(live=experiment.scale.progress) as table:
        run.train(experiment, made, table.show)
    folder = storage.join(made.folder, bundle.IN_RUN)
    card = json.loads(storage.read_text(storage.join(folder, bundle.CARD)))
    if "validation" in card:
        found = card["validation"]
        floor = found["constant"]["own_median"]["mae"]
        print(
            f"validation: MAE {found['mae']:.3f} (always saying the median age: {floor:.3f}), CS(5) {found['cs5']:.3f}"
        )
    print(f"model: {made.folder}")


def _audit(experiment: Experiment, made: plan.Plan) -> None:
    """Fingerprints and keeps what the split leaks; once a run."""
    kept = storage.join(made.folder, _AUDIT)
    if not experiment.scale.audit or storage.exists(kept):
        return
    found = evaluate.audit_split(made.folders(), storage.join(made.folder, plan.SPLIT))
    if found is not None:
        print("\n".join(["audit of the split:", *(f"  {line}" for line in found["lines"])]), flush=True)
        storage.write_text(kept, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    cli.run(main)
