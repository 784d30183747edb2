"""What `ageray evaluate MODEL ...` runs: one model on a labelled set, or several compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ageray import cluster
from ageray.evaluate.compare import compare
from ageray.evaluate.one_model import evaluate
from ageray.experiment import Experiment
from ageray.machine.progress import Show, show_nothing


def evaluate_models(
    models: Sequence[str],
    experiments: Sequence[Experiment],
    out: str,
    trained_on: str | None = None,
    show: Show = show_nothing,
) -> dict[str, Any]:
    """Connects the cluster and returns the report of one model, or the comparison of several.

    experiments: the settings of each model's evaluation (`ageray.evaluate.settings`). The others
    are as in `ageray.evaluate.one_model.evaluate` and `ageray.evaluate.compare.compare`.
    """
    cluster.connect(experiments[0].scale)
    if len(models) == 1:
        return evaluate(models[0], experiments[0], out, trained_on, show)
    return compare(list(models), list(experiments), out, trained_on, show)
