"""What every run does epoch by epoch, wherever its faces come from: one stage after the other, an epoch's record, and which epoch is the best."""

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
    """The stage of each epoch that is still to be trained, begun where it is a new one; `steps` are those of one epoch of each stage.

    Between two of them the epoch must be trained and closed (`close`). Ends early where the last stage has not bettered the validation MAE for
    `train.patience` epochs.
    """
    last = 0
    for index, stage in enumerate(state.config.train.stages):
        last += stage.epochs
        if state.epoch < last and state.stage != index:
            state.start_stage(index, steps[index] * stage.epochs)
        while state.epoch < last and not _given_up(state):
            before = state.epoch
            yield stage
            assert state.epoch == before + 1


def _given_up(state: State) -> bool:
    config = state.config.train
    of_last_stage = state.log[sum(stage.epochs for stage in config.stages[:-1]) :]
    return 0 < config.patience <= len(of_last_stage) and not any(
        record["best"] for record in of_last_stage[-config.patience :]
    )


def close(
    state: State,
    result: EpochResult,
    validated: Validated,
    seconds: float,
    skipped: int = 0,
    waited: float = 0.0,
) -> Record:
    """Counts an epoch that was trained and validated, and returns its record, which the log of `state` has then too.

    validated: of N validation faces; N may be 0. `best` in the record says whether no epoch so far was better by `train.select`; without
    validation faces every epoch is the best so far. waited: seconds of the training in which no batch was ready; `stall` is their share.
    """
    config = state.config.train
    state.epoch += 1
    true, predicted, _ = validated
    mae, chosen_by = figure(validated, "mae"), figure(validated, config.select)
    record = {
        "kind": "epoch",
        "stage": config.stages[state.stage].name,
        "epoch": state.epoch,
        "epochs": sum(stage.epochs for stage in config.stages),
        "step": state.step,
        "loss": result.loss,
        **{f"loss.{name}": value for name, value in result.terms.items()},
        "val_mae": mae,
        "val_bias": metrics.bias(true, predicted) if len(true) else float("nan"),
        **({"val_decades": chosen_by} if config.select == "decades" else {}),
        "images": result.images,
        "images_s": result.images / result.seconds,
        "seconds": seconds,
        "stall": waited / result.seconds,
        "skipped": skipped,
        "best": not chosen_by >= state.best,
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
    """The mean absolute error over the decades of true age of each set, ages from 80 on together, averaged over the sets; NaN of no face."""
    true, predicted, number_N = validated
    error_N, decade_N = np.abs(predicted - true), np.minimum(true // 10, 8)
    means = []
    for number in np.unique(number_N):
        own = number_N == number
        means.append(np.mean([error_N[own & (decade_N == each)].mean() for each in np.unique(decade_N[own])]))
    return float(np.mean(means)) if means else float("nan")
