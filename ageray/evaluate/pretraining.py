"""The stages of a recipe that train on sets of their own, before the folds of an evaluation.

The papers pretrain on IMDB-WIKI, or on MORPH, and then train every fold of FG-NET from the same
weights. Such a stage is a training run of its own. It is trained once, and all folds share it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from ageray import storage
from ageray.errors import UserError
from ageray.experiment import Data, Experiment, Protocol, Stage
from ageray.train import plan
from ageray.train import run as train_run
from ageray.train.files import RunFiles

Record = dict[str, Any]


def check(experiment: Experiment) -> None:
    """Raises UserError if a stage with shards of its own comes after one without, or none is
    left for the folds."""
    stages = experiment.train.stages
    first = len(_leading(experiment))
    for number, stage in enumerate(stages[first:], first):
        if stage.shards:
            raise UserError(
                f"train.stages.{number}.shards={stage.shards}: a fold trains on data.shards; "
                "put stages with shards of their own first"
            )
    if first == len(stages):
        raise UserError(
            f"train.stages.{first - 1}.shards={stages[-1].shards}: no stage is left to train on data.shards; "
            "add one without shards"
        )


def run(experiment: Experiment, show: Callable[[Record], None]) -> Experiment:
    """The experiment without its leading stages on other sets, starting from their weights.

    Each is a run in `scale.runs`, named like every run, so that a second call, another fold or
    another table finds it finished, and an interrupted one continues. All faces of its set train,
    and the weights after its last epoch are taken: no face of `experiment.data` chooses an epoch.
    """
    for stage in _leading(experiment):
        weights = _weights(experiment, stage, show)
        model = experiment.model.model_copy(update={"weights": weights})
        train = experiment.train.model_copy(update={"stages": experiment.train.stages[1:]})
        experiment = experiment.model_copy(update={"model": model, "train": train})
    return experiment


def stage_run(experiment: Experiment, stage: Stage) -> Experiment:
    """The experiment of one stage on its own set."""
    assert stage.shards is not None
    alone = stage.model_copy(update={"shards": None})
    name = re.sub(r"[^\w-]", "_", stage.shards.rstrip("/").rsplit("/", 1)[-1])
    return experiment.model_copy(
        update={
            "train": experiment.train.model_copy(update={"stages": (alone,), "calibrate": False}),
            "data": Data(name=name, shards=stage.shards),
            "protocol": Protocol(name="random", val=0, test=0),
        }
    )


def _leading(experiment: Experiment) -> list[Stage]:
    """The first stages, as far as they have shards of their own."""
    stages = []
    for stage in experiment.train.stages:
        if not stage.shards:
            break
        stages.append(stage)
    return stages


def _weights(experiment: Experiment, stage: Stage, show: Callable[[Record], None]) -> str:
    """Trains a stage unless it is finished; the file of its weights, float32."""
    alone = stage_run(experiment, stage)
    files = RunFiles(plan.run_folder(alone))
    if storage.exists(files.card):
        show({"kind": "note", "text": f"stage {stage.name}: trained before, {files.folder}"})
        return files.best

    def show_epoch(record: Record) -> None:
        if record["kind"] == "epoch":
            text = f"stage {stage.name}: epoch {record['epoch']} of {record['epochs']}"
            text = f"{text}, loss {record['loss']:.3f}, {record['seconds']:.0f} s"
            show({"kind": "note", "text": text, "epoch": record["epoch"], "epochs": record["epochs"]})
        elif record["kind"] == "note":
            show(record)

    show({"kind": "note", "text": f"stage {stage.name}: trains once on {stage.shards} for all folds"})
    train_run.train(alone, plan.make(alone), show_epoch)
    return files.best
