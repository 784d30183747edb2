"""The winner of a search as a bundle."""

from __future__ import annotations

from typing import Any

import numpy as np

from ageray import bundle, metrics
from ageray.models.build import build
from ageray.models.gallery import Gallery
from ageray.tune.finalists import AGES, Run
from ageray.tune.space import Space


def save(
    folder: str,
    space: Space,
    values: dict[str, Any],
    run: Run,
    true_V: Any,
    facts: dict[str, Any],
    about: dict[str, Any],
) -> None:
    """Writes one run as a bundle into `folder`.

    true_V: true ages of the validation faces, in years. facts: of the training faces, for the card.
    about: what the card reports on the search.
    """
    searched = space.experiment(values)
    train = searched.train.model_copy(update={"seed": run.seed})
    experiment = searched.model_copy(update={"train": train, "tune": None})
    network = build(experiment.model, seed=space.written.experiment.train.seed)
    weights = _tensors(run, "network.")
    # a frozen backbone is the recipe's own, and is not among the weights
    missing, unexpected = network.load_state_dict(weights, strict=False)
    backbone = set(map(id, network.get_backbone().state_dict(keep_vars=True).values()))
    own = network.state_dict(keep_vars=True)
    assert not unexpected
    assert all(id(own[name]) in backbone for name in missing)
    predicted, low, high = (run.ages[name][: len(true_V)] for name in AGES)
    card = {
        "model": experiment.model.name,
        "training": facts,
        "epochs": len(run.log),
        "calibration": run.calibration.to_card(),
        "validation": metrics.summary(true_V, predicted, low, high, facts["train_ages"]["median"]),
        "search": about,
    }
    gallery = _tensors(run, "gallery.")
    bundle.save(folder, network, experiment, card, Gallery.from_tensors(gallery) if gallery else None)


def _tensors(run: Run, prefix: str) -> dict[str, Any]:
    """The run's tensors of this prefix, without it."""
    tensors = {}
    for name, tensor in run.tensors.items():
        if name.startswith(prefix):
            tensors[name.removeprefix(prefix)] = tensor
    return tensors


def best_run(runs: list[Run], metric: str) -> Run:
    """The run of a contender that becomes the bundle: the best on the validation faces."""
    return min(runs, key=lambda run: (run.best(metric), run.seed))


def mean_score(runs: list[Run], metric: str) -> float:
    """The mean over the seeds, by which contenders are compared."""
    return float(np.mean([run.best(metric) for run in runs]))
