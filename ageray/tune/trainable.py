"""A trial as Ray Tune runs it: an actor that takes one slot and trains one epoch a step."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import ray
import torch
from ray import tune

from ageray.experiment import Experiment
from ageray.machine.cpus import usable_cpus
from ageray.train.in_memory import train
from ageray.train.in_memory.train import Fold

SCORE, RECORD, FAILED, EPOCH = "score", "record", "failed", "epoch"


class Trainable(tune.Trainable):
    """Trains on faces in memory; one actor runs one trial after the other.

    Reports after each epoch: `epoch`; `score`, the least value of the metric so far; `record`, the
    epoch as JSON. A trial that cannot continue reports `failed`, the reason.
    """

    def setup(  # type: ignore[override]  # tune.with_parameters gives the others
        self, config: dict[str, Any], faces: list[Any], fold: Fold, metric: str, threads: int
    ) -> None:
        """config: `experiment`, as JSON. faces: a reference, in a list so that Ray does not fetch
        it.
        """
        self._faces, self._fold, self._metric = ray.get(faces[0]), fold, metric
        torch.set_num_threads(threads or usable_cpus())
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Takes the next trial."""
        self._experiment = Experiment.model_validate_json(new_config["experiment"])
        self._epochs: Iterator[dict[str, Any]] | None = None
        self._best = float("inf")
        return True

    def step(self) -> dict[str, Any]:
        """One epoch. An error that settings can cause fails the trial, not the search."""
        try:
            if self._epochs is None:
                device = torch.device("cuda" if ray.get_gpu_ids() else "cpu")
                state = train.begin(self._experiment, self._faces, device)
                self._epochs = train.epochs_of(state, self._faces, self._fold)
            record = next(self._epochs)
        except FloatingPointError as error:
            return self._failed(str(error))
        except torch.cuda.OutOfMemoryError:
            return self._failed("out of GPU memory; lower tune.at_once or train.batch_size")
        self._best = min(self._best, record[self._metric])
        return {
            EPOCH: record["epoch"],
            SCORE: self._best,
            RECORD: json.dumps(record),
            "done": record["epoch"] == record["epochs"],
        }

    def _failed(self, reason: str) -> dict[str, Any]:
        # successive halving compares no trial with NaN
        return {EPOCH: 0, SCORE: float("nan"), FAILED: reason, "done": True}
