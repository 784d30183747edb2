"""Which values to try next: Optuna's Parzen estimator (TPE) as a pure function of what has been tried. No Ray."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from ageray.experiment.tune import Choice, Dimension, Int, LogUniform
from ageray.tune.space import Space, rounded
from ageray.tune.trials import Trial

_FEWEST = 8  # trials from which an importance says something


def propose(
    space: Space, number: int, tried: Iterable[Trial], running: Iterable[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """The values of trial `number`: the recipe's own for trial 0 where the ranges hold them, else what TPE says.

    They follow from the space, `tune.seed`, the number, what was tried and what runs alone: a search that goes on after a kill proposes
    what it would have proposed.
    """
    if number == 0 and space.holds(space.defaults):
        return dict(space.defaults)
    distributions = {path: _distribution(dimension) for path, dimension in space.ranges.items()}
    tune, running = space.tune, list(running)
    seed = int(np.random.SeedSequence([tune.seed, number]).generate_state(1)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # multivariate, constant_liar
        sampler = TPESampler(
            seed=seed, n_startup_trials=tune.startup, multivariate=True, constant_liar=bool(running)
        )
    study = _study(sampler)
    study.add_trials([_told(trial, distributions) for trial in sorted(tried, key=lambda trial: trial.number)])
    study.add_trials(
        [
            create_trial(state=TrialState.RUNNING, params=dict(values), distributions=distributions)
            for values in running
        ]
    )
    found = study.ask(distributions).params
    return {path: rounded(dimension, found[path]) for path, dimension in space.ranges.items()}


def importance(space: Space, scores: Iterable[tuple[Mapping[str, Any], float]]) -> dict[str, float]:
    """The share of the scores' variance over the space that each setting explains (fANOVA; Hutter, Hoos and Leyton-Brown, ICML 2014), from
    values and score of each trial; nothing where there are fewer than 8."""
    distributions = {path: _distribution(dimension) for path, dimension in space.ranges.items()}
    study = _study()
    for values, score in scores:
        if math.isfinite(score):
            study.add_trial(create_trial(value=score, params=dict(values), distributions=distributions))
    if len(study.trials) < _FEWEST or len({trial.value for trial in study.trials}) < 2:
        return {}
    return dict(get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=space.tune.seed)))


def _study(sampler: TPESampler | None = None) -> optuna.Study:
    """An empty one, which says nothing of itself."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(sampler=sampler)


def _told(trial: Trial, distributions: dict[str, BaseDistribution]) -> FrozenTrial:
    """A trial as Optuna knows it: pruned with its curve where it was stopped early, failed where it has no score."""
    state = {"finished": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}[
        trial.state
    ]
    curve = dict(enumerate(trial.curve, 1)) if trial.state == "stopped" else {}
    value = trial.score if trial.state == "finished" else None
    return create_trial(
        state=state,
        value=value,
        params=dict(trial.values),
        distributions=distributions,
        intermediate_values=curve,
    )


def _distribution(dimension: Dimension) -> BaseDistribution:
    if isinstance(dimension, Choice):
        return CategoricalDistribution(dimension.values)
    if isinstance(dimension, Int):
        return IntDistribution(dimension.low, dimension.high, log=dimension.log)
    return FloatDistribution(dimension.low, dimension.high, log=isinstance(dimension, LogUniform))
