"""Which settings to try next: Optuna's tree-structured Parzen estimator (TPE). No Ray.

A proposal is a pure function of the space and of the trials so far.
"""

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

_MIN_TRIALS = 8  # fewer say nothing about importance
_STATES = {"finished": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}


def propose(
    space: Space, number: int, trials: Iterable[Trial], running: Iterable[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """The values of trial `number`: the recipe's own for trial 0 if the ranges allow them, else
    TPE's.

    They follow from the space, `tune.seed`, the number, the trials that ended and the values of
    those that run. A search that continues after a kill therefore proposes what it would have
    proposed.
    """
    if number == 0 and space.holds(space.defaults):
        return dict(space.defaults)
    distributions = _distributions(space)
    tune, running = space.tune, list(running)
    seed = int(np.random.SeedSequence([tune.seed, number]).generate_state(1)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # multivariate, constant_liar
        sampler = TPESampler(
            seed=seed, n_startup_trials=tune.startup, multivariate=True, constant_liar=bool(running)
        )
    study = _study(sampler)
    for trial in sorted(trials, key=lambda trial: trial.number):
        study.add_trial(_optuna_trial(trial, distributions))
    for values in running:
        study.add_trial(
            create_trial(state=TrialState.RUNNING, params=dict(values), distributions=distributions)
        )
    proposal = study.ask(distributions).params
    return {path: rounded(dimension, proposal[path]) for path, dimension in space.ranges.items()}


def importance(space: Space, scores: Iterable[tuple[Mapping[str, Any], float]]) -> dict[str, float]:
    """The share of the scores' variance that each setting explains; empty for fewer than 8 trials.

    fANOVA (Hutter, Hoos and Leyton-Brown, ICML 2014). scores: values and score of each trial.
    """
    distributions = _distributions(space)
    study = _study()
    for values, score in scores:
        if math.isfinite(score):
            study.add_trial(create_trial(value=score, params=dict(values), distributions=distributions))
    if len(study.trials) < _MIN_TRIALS or len({trial.value for trial in study.trials}) < 2:
        return {}
    return dict(get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=space.tune.seed)))


def _study(sampler: TPESampler | None = None) -> optuna.Study:
    """An empty study that logs nothing."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(sampler=sampler)


def _optuna_trial(trial: Trial, distributions: dict[str, BaseDistribution]) -> FrozenTrial:
    """A trial in Optuna's form: with its curve if stopped early, failed if it has no score."""
    curve, value = dict[int, float](), None
    if trial.state == "stopped":
        curve = dict(enumerate(trial.curve, 1))
    if trial.state == "finished":
        value = trial.score
    return create_trial(
        state=_STATES[trial.state],
        value=value,
        params=dict(trial.values),
        distributions=distributions,
        intermediate_values=curve,
    )


def _distributions(space: Space) -> dict[str, BaseDistribution]:
    return dict(zip(space.ranges, map(_distribution, space.ranges.values()), strict=True))


def _distribution(dimension: Dimension) -> BaseDistribution:
    if isinstance(dimension, Choice):
        return CategoricalDistribution(dimension.values)
    if isinstance(dimension, Int):
        return IntDistribution(dimension.low, dimension.high, log=dimension.log)
    return FloatDistribution(dimension.low, dimension.high, log=isinstance(dimension, LogUniform))
