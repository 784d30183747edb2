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

from ageray.train.in_memory.slots import Share
from ageray.train.in_memory.train import Fold
from ageray.tune.searcher import Proposer, Show, replay
from ageray.tune.space import Space
from ageray.tune.trainable import SCORE, Trainable
from ageray.tune.trials import Trial, TrialFile

# Tune draws a table and writes a log of every trial; both are ours, and results of failed trials have no score
_QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_SYNCER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


def run(
    space: Space, faces: Any, fold: Fold, share: Share, file: TrialFile, tried: list[Trial], show: Show
) -> None:
    """Tries until `tune.trials` have ended or the time is used up; each that ends is in `file` and in `tried` before the next is proposed.

    faces: reference to columns in the object store.
    """
    settings, before, started = (
        space.tune,
        max((trial.clock for trial in tried), default=0.0),
        time.monotonic(),
    )
    left = settings.trials - len(tried)
    seconds = 60 * settings.minutes - before if settings.minutes else None
    if left <= 0 or (seconds is not None and seconds <= 0):
        return

    def clock() -> float:
        return before + time.monotonic() - started

    def ended(trial: Trial) -> None:
        file.write(tried)
        show(
            {"kind": "trial", "trial": trial, "done": len(tried), "total": settings.trials, "clock": clock()}
        )

    _fit(
        space,
        faces,
        fold,
        share,
        Proposer(space, tried, ended, clock, show),
        _scheduler(space, tried),
        left,
        seconds,
    )


def _fit(
    space: Space,
    faces: Any,
    fold: Fold,
    share: Share,
    proposer: Proposer,
    scheduler: TrialScheduler,
    trials: int,
    seconds: float | None,
) -> None:
    os.environ |= {name: value for name, value in _QUIET.items() if name not in os.environ}
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    trainable: Callable[..., Any] | type = tune.with_parameters(
        Trainable, faces=[faces], fold=fold, metric=space.tune.metric, threads=share.threads
    )
    resources: dict[str, float] = {"CPU": share.cpus, **({"GPU": share.gpus} if share.gpus else {})}
    # what Tune keeps of itself is not needed again: it goes where it does not matter
    with tempfile.TemporaryDirectory(prefix="ageray-tune-") as folder:
        tuner = tune.Tuner(
            tune.with_resources(trainable, resources),
            tune_config=tune.TuneConfig(
                search_alg=proposer,
                scheduler=scheduler,
                num_samples=trials,
                max_concurrent_trials=share.folds,
                time_budget_s=seconds,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=folder,
                verbose=0,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        tuner.fit()


def _scheduler(space: Space, tried: list[Trial]) -> TrialScheduler:
    asha, epochs = space.tune.asha, sum(stage.epochs for stage in space.written.experiment.train.stages)
    if not asha.enabled or asha.grace_epochs >= epochs:
        return FIFOScheduler()  # type: ignore[no-untyped-call]
    made = ASHAScheduler(
        "epoch", SCORE, "min", max_t=epochs, grace_period=asha.grace_epochs, reduction_factor=asha.reduction
    )
    replay(made, tried)
    return made
