"""The trials of a search on Ray Tune, under asynchronous successive halving."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from ageray.train.in_memory.slots import TaskSlots
from ageray.train.in_memory.train import Fold
from ageray.tune.searcher import Proposer, Show, replay
from ageray.tune.space import Space
from ageray.tune.trainable import SCORE, Trainable
from ageray.tune.trials import Trial, TrialFile

# Tune's table and its log of every trial are off: the command prints its own, and a failed trial
# has no score
_QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_SYNCER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}

_RESTARTS = 2  # of a trial whose process dies


def run(
    space: Space, faces: Any, fold: Fold, slots: TaskSlots, file: TrialFile, trials: list[Trial], show: Show
) -> None:
    """Runs trials until `tune.trials` have ended or the time is used up.

    Each trial that ends is in `file` and in `trials` before the next is proposed. faces: a
    reference to columns in the object store.
    """
    settings = space.tune
    before, started = max((trial.clock for trial in trials), default=0.0), time.monotonic()
    seconds = 60 * settings.minutes - before if settings.minutes else None
    if len(trials) >= settings.trials or (seconds is not None and seconds <= 0):
        return

    def clock() -> float:
        return before + time.monotonic() - started

    def ended(trial: Trial) -> None:
        file.write(trials)
        record = {"trial": trial, "done": len(trials), "total": settings.trials, "clock": clock()}
        show({"kind": "trial", **record})

    proposer = Proposer(space, trials, ended, clock, show)
    _fit(space, faces, fold, slots, proposer, _scheduler(space, trials), seconds)


def _fit(
    space: Space,
    faces: Any,
    fold: Fold,
    slots: TaskSlots,
    proposer: Proposer,
    scheduler: TrialScheduler,
    seconds: float | None,
) -> None:
    """Further trials on Ray Tune, until the proposer has no more."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    logging.getLogger("ray.tune.tune").setLevel(logging.CRITICAL)  # that a trial failed, at the end
    trainable: Callable[..., Any] | type = tune.with_parameters(
        Trainable, faces=[faces], fold=fold, metric=space.tune.metric, threads=slots.threads
    )
    resources: dict[str, float] = {"CPU": slots.cpus}
    if slots.gpus:
        resources["GPU"] = slots.gpus
    # Tune's own files are not needed afterwards
    with tempfile.TemporaryDirectory(prefix="ageray-tune-") as folder:
        tuner = tune.Tuner(
            tune.with_resources(trainable, resources),
            tune_config=tune.TuneConfig(
                search_alg=proposer,
                scheduler=scheduler,
                num_samples=-1,
                max_concurrent_trials=slots.folds,
                time_budget_s=seconds,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=folder,
                verbose=0,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                # a trial whose process was killed begins again: it gives the same numbers
                failure_config=tune.FailureConfig(max_failures=_RESTARTS),
            ),
        )
        tuner.fit()


def _scheduler(space: Space, trials: list[Trial]) -> TrialScheduler:
    """Successive halving with its rungs filled by the trials that have ended; none if it is off."""
    asha, epochs = space.tune.asha, space.epochs
    if not asha.enabled or asha.grace_epochs >= epochs:
        return FIFOScheduler()  # type: ignore[no-untyped-call]
    scheduler = ASHAScheduler(
        "epoch", SCORE, "min", max_t=epochs, grace_period=asha.grace_epochs, reduction_factor=asha.reduction
    )
    replay(scheduler, trials)
    return scheduler
