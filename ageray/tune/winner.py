"""The winner of a search as a bundle."""

from __future__ import annotations

from typing import Any

import numpy as np

from ageray import bundle, metrics, storage
from ageray.experiment import Experiment
from ageray.models.build import build
from ageray.models.gallery import Gallery
from ageray.tune.finalists import AGES, Run
from ageray.tune.space import Space


def save(
    folder: str,
    space: Space,
    values: dict[str, Any],
    run: Run,
    true: Any,
    facts: dict[str, Any],
    about: dict[str, Any],
) -> None:
    """Writes `folder/bundle` of one run. true: ages (V,) of the validation faces. facts: of the training faces, for the card; about: what the card
    says of the search."""
    made = space.experiment(values)
    experiment = made.model_copy(update={"train": made.train.model_copy(update={"seed": run.seed})})
    network = build(experiment.model, seed=space.written.experiment.train.seed)
    # a frozen body is the recipe's own, and not among the weights
    missing, unexpected = network.load_state_dict(_part(run, "network."), strict=False)
    body = {name for name, module in network.named_modules() if module is network.body()}
    assert not unexpected
    assert all(any(name.startswith(f"{own}.") for own in body) for name in missing)
    gallery = _part(run, "gallery.")
    predicted, low, high = (run.ages[name][: len(true)] for name in AGES)
    validation = metrics.summary(true, predicted, low, high, facts["train_ages"]["median"])
    card = {
        "model": experiment.model.name,
        "training": facts,
        "epochs": len(run.log),
        "calibration": run.calibration.to_card(),
    }
    card |= {"validation": validation, "search": about}
    bundle.save(
        storage.join(folder, bundle.IN_RUN),
        network,
        _plain(experiment),
        card,
        Gallery.from_tensors(gallery) if gallery else None,
    )


def _part(run: Run, prefix: str) -> dict[str, Any]:
    return {
        name.removeprefix(prefix): tensor for name, tensor in run.tensors.items() if name.startswith(prefix)
    }


def _plain(experiment: Experiment) -> Experiment:
    return experiment.model_copy(update={"tune": None})


def closest(runs: list[Run], metric: str) -> Run:
    """The run of a contender that becomes the bundle: best on the validation faces."""
    return min(runs, key=lambda run: (run.best(metric), run.seed))


def mean_score(runs: list[Run], metric: str) -> float:
    """By which contenders are ranked."""
    return float(np.mean([run.best(metric) for run in runs]))
