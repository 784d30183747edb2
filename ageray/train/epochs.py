"""What every run does epoch by epoch: stage after stage, an epoch's record, the best epoch."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ageray import metrics
from ageray.experiment import Stage
from ageray.train.loop import EpochResult
from ageray.train.state import State
from ageray.train.validation import Validated

Record = dict[str, Any]


def remaining(state: State, steps: Sequence[int]) -> Iterator[Stage]:
    """The stage of each epoch that is still to be trained; starts a new stage where one begins.

    steps: of one epoch of each stage. Between two items the caller trains the epoch and calls
    `close`. Ends early when the last stage has not improved the validation MAE for
    `train.patience` epochs.
    """
    last = 0
    for index, stage in enumerate(state.config.train.stages):
        last += stage.epochs
        if state.epoch < last and state.stage != index:
            state.start_stage(index, steps[index] * stage.epochs)
        while state.epoch < last and not _out_of_patience(state):
            before = state.epoch
            yield stage
            assert state.epoch == before + 1


def _out_of_patience(state: State) -> bool:
    config = state.config.train
    first_of_last_stage = sum(stage.epochs for stage in config.stages[:-1])
    last_stage = state.log[first_of_last_stage:]
    if not config.patience or len(last_stage) < config.patience:
        return False
    return not any(record["best"] for record in last_stage[-config.patience :])


def close(
    state: State,
    result: EpochResult,
    validated: Validated,
    seconds: float,
    skipped: int = 0,
    waited: float = 0.0,
) -> Record:
    """Counts an epoch that was trained and validated, adds its record to `state.log` and returns
    it.

    validated: the N validation faces; N may be 0. `best` in the record: no epoch so far was better
    by `train.select`; without validation faces it is true of every epoch. waited:
    seconds of the training in which no batch was ready; `stall` is their share.
    """
    config = state.config.train
    state.epoch += 1
    true, predicted, _ = validated
    mae, chosen_by = figure(validated, "mae"), figure(validated, config.select)
    bias = metrics.bias(true, predicted) if len(true) else float("nan")
    record = {
        "kind": "epoch",
        "stage": config.stages[state.stage].name,
        "epoch": state.epoch,
        "epochs": state.total_epochs,
        "step": state.step,
        "loss": result.loss,
        **{f"loss.{name}": value for name, value in result.terms.items()},
        "val_mae": mae,
        "val_bias": bias,
        **({"val_decades": chosen_by} if config.select == "decades" else {}),
        "images": result.images,
        "images_s": result.images / result.seconds,
        "seconds": seconds,
        "stall": waited / result.seconds,
        "skipped": skipped,
        "best": not chosen_by >= state.best,  # true of NaN too
        "time": time.time(),
    }
    state.log.append(record)
    if record["best"]:
        state.best = chosen_by
    return record


def figure(validated: Validated, select: str) -> float:
    """What epochs are chosen by (`train.select`), in years, less is better; NaN of no face."""
    if select == "decades":
        return by_decades(validated)
    if not len(validated.true):
        return float("nan")
    return metrics.mean_absolute_error(validated.true, validated.predicted)


def by_decades(validated: Validated) -> float:
    """The mean absolute error, averaged over the decades of true age of each set and over the sets.

    Ages from 80 on are one decade; NaN of no face.
    """
    true, predicted, set_N = validated
    error_N, decade_N = np.abs(predicted - true), np.minimum(true // 10, 8)
    means = []
    for number in np.unique(set_N):
        own = set_N == number
        errors = [error_N[own & (decade_N == decade)].mean() for decade in np.unique(decade_N[own])]
        means.append(np.mean(errors))
    return float(np.mean(means)) if means else float("nan")
