"""Models against sets: every model evaluated on every set; nothing is trained."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ageray import bundle, report, storage
from ageray.evaluate.compare import short
from ageray.evaluate.one_model import REPORT, evaluate
from ageray.evaluate.page.comparison import matrix_report
from ageray.experiment import Experiment, Protocol


def cross(models: Sequence[str], sets: Sequence[Experiment], out: str, fixed: bool = False) -> dict[str, Any]:
    """Evaluates every model on every set (the `data`, `protocol` and `scale` of an experiment) in `out/<model>-on-<set>`; writes `report.json` and
    `report.html` of the matrix to `out` and returns the former.

    A set that the model was not trained on is tested whole, its own set on the test part of the model's own split, so that no cell holds a
    training face; `fixed` keeps each set's protocol instead.
    """
    cells = [[_cell(model, number, each, out, fixed) for each in sets] for number, model in enumerate(models)]
    made = {"models": list(models), "sets": [each.data.name for each in sets], "cells": cells}
    matrix_report(out, made)
    storage.write_text(storage.join(out, REPORT), json.dumps(made, indent=1) + "\n")
    return made


def _cell(model: str, number: int, wanted: Experiment, out: str, fixed: bool) -> dict[str, Any]:
    loaded = bundle.load(model)
    own = loaded.card.get("training", {}).get("data") == wanted.data.name
    protocol = wanted.protocol if fixed else loaded.experiment.protocol if own else Protocol(name="all")
    sections = {"data": wanted.data, "scale": wanted.scale, "protocol": protocol}
    folder = f"{number}-{short(model)}-on-{wanted.data.name}"
    found = evaluate(model, loaded.experiment.model_copy(update=sections), storage.join(out, folder))
    overall = found["estimates"]["overall"]
    figures = {name: overall[name] for name in ("mae", "cs5", "bias", "coverage")}
    page = storage.join(folder, report.PAGE)
    return {**figures, "images": found["images"], "warnings": found["warnings"], "report": page, "own": own}
