"""One fold as a training run on Ray Data, for faces that do not fit into memory.

Takes an experiment and the protocol of the fold; gives a row for each test face.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from ageray import bundle, storage
from ageray.data import splits
from ageray.evaluate.predictions import LEVELS, predictions
from ageray.experiment import Experiment, Protocol
from ageray.train import plan
from ageray.train import run as train_run
from ageray.train.files import RunFiles

Record = dict[str, Any]


def run(
    experiment: Experiment,
    protocol: Protocol,
    runs: str,
    levels: Sequence[float],
    show: Callable[[Record], None],
) -> pa.Table:
    """Trains the fold in a run folder below `runs`, or goes on there, and predicts its test faces.

    The table is that of `ageray.evaluate.predictions`. show: receives a note for each epoch.
    Differences from a fold in memory: weights are those of the bundle, whose matrices are float16,
    and a face moves within `train.shuffle` places unless `train.shuffle_all` is set.
    """
    assert tuple(levels) == LEVELS
    scale = experiment.scale.model_copy(update={"runs": runs})
    experiment = experiment.model_copy(update={"protocol": protocol, "scale": scale})
    files = RunFiles(plan.run_folder(experiment))
    if not storage.exists(files.card):
        planned = plan.make(experiment)

        def show_epoch(record: Record) -> None:
            if record["kind"] == "epoch":
                text = f"fold {protocol.fold}: epoch {record['epoch']} of {record['epochs']}"
                show(
                    {"kind": "note", "text": f"{text}, loss {record['loss']:.3f}, {record['seconds']:.0f} s"}
                )
            elif record["kind"] == "note":
                show(record)

        train_run.train(experiment, planned, show_epoch)
    keys = splits.load(files.split)["test"]
    return predictions(files.folder, bundle.load(files.folder), experiment, files.split, keys).rows
