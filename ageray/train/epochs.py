"""What every run does epoch by epoch: stage after stage, an epoch's record, the best epoch."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ageray import metrics
from ageray.experiment import Stage
from ageray.train.loop import EpochResult
from ageray.train.state import State
from ageray.train.validation import Validated

Record = dict[str, Any]


def remaining(state: State, steps: Sequence[int]) -> Iterator[Stage]:
    """The stage of each epoch that is still to be trained; starts a new stage where one begins.

    steps: of one whole epoch of each stage. Between two items the caller trains the epoch,
    `state.epoch_steps` steps, and calls `close`. Ends early when the last stage has not improved
    the validation MAE for `train.patience` epochs.
    """
    stages = state.config.train.stages
    lengths = [length(stage, steps[index]) for index, stage in enumerate(stages)]
    state.total_epochs = sum(each.epochs for each in lengths)
    first = 0
    for index, stage in enumerate(stages):
        last = first + lengths[index].epochs
        if state.epoch < last and state.stage != index:
            state.start_stage(index, lengths[index].steps)
        while state.epoch < last and not _out_of_patience(state, first):
            before = state.epoch
            state.epoch_steps = min(steps[index], lengths[index].steps - (before - first) * steps[index])
            yield stage
            assert state.epoch == before + 1
        first = last


class Length(NamedTuple):
    """The epochs of a stage and its steps in all. The last epoch may be shorter than the others."""

    epochs: int
    steps: int


def length(stage: Stage, steps: int) -> Length:
    """How long a stage is: `stage.epochs`, or `stage.steps` where they are set.

    steps: of one whole epoch.
    """
    if stage.steps is None:
        return Length(stage.epochs, stage.epochs * steps)
    return Length(-(-stage.steps // steps), stage.steps)


def _out_of_patience(state: State, first_of_stage: int) -> bool:
    config = state.config.train
    if state.stage < len(config.stages) - 1:
        return False
    last_stage = state.log[first_of_stage:]
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
    """Counts a trained and validated epoch, adds its record to `state.log` and returns the record.

    validated: the N validation faces; N may be 0. `best` in the record: no earlier epoch was better
    by `train.select`; without validation faces it is true of every epoch. waited: the seconds
    of training in which no batch was ready; `stall` in the record is their share.
    """
    config = state.config.train
    state.epoch += 1
    true, predicted, _ = validated
    mae, chosen_by = figure(validated, "mae"), figure(validated, config.select)
    bias = float("nan")
    if len(true):
        bias = metrics.bias(true, predicted)
    terms, decades = {}, {}
    for name, value in result.terms.items():
        terms[f"loss.{name}"] = value
    if config.select == "decades":
        decades["val_decades"] = chosen_by
    record = {
        "kind": "epoch",
        "stage": config.stages[state.stage].name,
        "epoch": state.epoch,
        "epochs": state.total_epochs,
        "step": state.step,
        "loss": result.loss,
        **terms,
        "val_mae": mae,
        "val_bias": bias,
        **decades,
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
    """The figure that chooses the best epoch (`train.select`), in years; the least is best. NaN
    without faces.
    """
    if select == "decades":
        return by_decades(validated)
    if not len(validated.true):
        return float("nan")
    return metrics.mean_absolute_error(validated.true, validated.predicted)


def by_decades(validated: Validated) -> float:
    """The mean absolute error, averaged over the decades of true age of each set and over the sets.

    Ages from 80 on are one decade. NaN without faces.
    """
    true, predicted, set_N = validated
    error_N, decade_N = np.abs(predicted - true), np.minimum(true // 10, 8)
    means = []
    for number in np.unique(set_N):
        own = set_N == number
        errors = []
        for decade in np.unique(decade_N[own]):
            errors.append(error_N[own & (decade_N == decade)].mean())
        means.append(np.mean(errors))
    return float(np.mean(means)) if means else float("nan")
