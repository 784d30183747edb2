"""Models against sets: every model evaluated on every set; nothing is trained.

Takes models and the experiments of the sets, writes a folder for each pair and the matrix's page.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ageray import bundle, storage
from ageray.evaluate.files import EvaluationFiles
from ageray.evaluate.one_model import evaluate
from ageray.evaluate.page.comparison import matrix_report
from ageray.experiment import Experiment, Protocol
from ageray.machine.progress import Show, show_nothing


def cross(
    models: Sequence[str],
    sets: Sequence[Experiment],
    out: str,
    fixed: bool = False,
    show: Show = show_nothing,
) -> dict[str, Any]:
    """Evaluates every model on every set in `out/<number>-<model>-on-<set>`; returns the matrix.

    sets: the `data`, `protocol` and `scale` of an experiment. Writes report.json and report.html of
    the matrix to `out`. A set that the model was not trained on is tested whole; its own set on the
    test part of the model's own split, so that no cell tests a training face. With `fixed`, each
    set uses its own protocol.
    """
    files = EvaluationFiles.at(out)
    cells = []
    for number, model in enumerate(models):
        folders = [files.for_model(number, model, each.data.name) for each in sets]
        cells.append([_cell(model, each, at, fixed, show) for each, at in zip(sets, folders, strict=True)])
    matrix = {"models": list(models), "sets": [each.data.name for each in sets], "cells": cells}
    matrix_report(files.folder, matrix)
    storage.write_text(files.report, json.dumps(matrix, indent=1) + "\n")
    return matrix


def _cell(model: str, dataset: Experiment, files: EvaluationFiles, fixed: bool, show: Show) -> dict[str, Any]:
    """Evaluates a model on a set; the figures that the matrix shows."""
    loaded = bundle.load(model)
    own = loaded.card.get("training", {}).get("data") == dataset.data.name
    protocol = Protocol(name="all")
    if fixed:
        protocol = dataset.protocol
    elif own:
        protocol = loaded.experiment.protocol
    sections = {"data": dataset.data, "scale": dataset.scale, "protocol": protocol}
    report = evaluate(model, loaded.experiment.model_copy(update=sections), files.folder, show=show)
    overall = report["estimates"]["overall"]
    return {
        **{name: overall[name] for name in ("mae", "cs5", "bias", "coverage")},
        "images": report["images"],
        "warnings": report["warnings"],
        "report": files.link,
        "own": own,
    }
