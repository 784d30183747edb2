"""Several models on the same test faces: each evaluated, then every pair compared face by face.

Takes models and their experiments, writes a folder for each model and the comparison's page.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ageray import bundle, config, metrics, storage
from ageray.errors import UserError
from ageray.evaluate.files import EvaluationFiles
from ageray.evaluate.one_model import evaluate
from ageray.evaluate.page.comparison import comparison_report
from ageray.experiment import Experiment
from ageray.machine.progress import Show, show_nothing
from ageray.metrics.paired_tests import LEVEL

_NOT_OF_THE_MODEL = {"scale", "storage", "tune"}


def compare(
    models: Sequence[str],
    experiments: Sequence[Experiment],
    out: str,
    trained_on: str | None = None,
    show: Show = show_nothing,
) -> dict[str, Any]:
    """Evaluates each model in `out/<number>-<name>`, compares every pair; returns the comparison.

    Writes report.json and report.html of the comparison to `out`. All models test the same faces:
    raises UserError where data or protocol of the experiments differ, or two models are the same.
    """
    _check_same_faces(models, experiments)
    files = EvaluationFiles.at(out)
    reports, tables, rows, warnings = [], [], [], []
    for number, (model, experiment) in enumerate(zip(models, experiments, strict=True)):
        model_files = files.for_model(number, model)
        report = evaluate(model, experiment, model_files.folder, trained_on, show)
        reports.append(report)
        warnings += report["warnings"]
        tables.append(_read_predictions(model_files))
        rows.append(_summary(model, report, model_files.link))
    comparison = {
        "data": reports[0]["data"],
        "protocol": reports[0]["protocol"],
        "images": reports[0]["images"],
        "models": rows,
        "pairs": _pairs(models, tables),
        "settings": different_settings([bundle.load(model).experiment for model in models]),
        "seeds": compare_recipes(models, tables),
        "warnings": list(dict.fromkeys(warnings)),
    }
    comparison_report(files.folder, comparison)
    storage.write_text(files.report, json.dumps(comparison, indent=1) + "\n")
    return comparison


def different_settings(experiments: Sequence[Experiment]) -> list[dict[str, Any]]:
    """Rows of `key` and `values`, one value a model: every setting that differs between two models,
    of those that a model was made with."""
    leaves = []
    for experiment in experiments:
        leaves.append(config.flat(experiment.model_dump(mode="json", exclude=_NOT_OF_THE_MODEL)))
    rows = []
    for key in dict.fromkeys(key for each in leaves for key in each):
        values = [each.get(key) for each in leaves]
        if any(value != values[0] for value in values):
            rows.append({"key": key, "values": values})
    return rows


def compare_recipes(models: Sequence[str], tables: Sequence[pa.Table]) -> list[dict[str, Any]]:
    """Tests between each two recipes of which several seeds are among the models.

    A recipe is a model's settings without `train.seed` and `train.name`. The noise of faces and of
    seeds counts (`metrics.compare_seeds`). Only seeds that both have are compared; at least two.
    """
    recipes: dict[str, dict[int, int]] = {}
    for number, model in enumerate(models):
        experiment = bundle.load(model).experiment
        train = experiment.train.model_copy(update={"seed": 0, "name": None})
        recipe = config.digest(experiment.model_copy(update={"train": train}))
        recipes.setdefault(recipe, {})[experiment.train.seed] = number
    true, subjects = tables[0].column("age").to_numpy(), tables[0].column("subject").to_pylist()
    rows = []
    for first, second in combinations(recipes.values(), 2):
        seeds = sorted(set(first) & set(second))
        if len(seeds) < 2:
            continue
        ages = []
        for recipe_seeds in (first, second):
            columns = [tables[recipe_seeds[seed]].column("predicted").to_numpy() for seed in seeds]
            ages.append(np.stack(columns))
        tests = metrics.compare_seeds(true, ages[0], ages[1], subjects)
        pair = {"first": models[first[seeds[0]]], "second": models[second[seeds[0]]], "seeds": seeds}
        rows.append(tests | pair | {"mae": [tests["first"], tests["second"]]})
    return rows


def _check_same_faces(models: Sequence[str], experiments: Sequence[Experiment]) -> None:
    if len(set(models)) < len(models):
        raise UserError("the same model is named twice; name each once")
    for model, experiment in zip(models[1:], experiments[1:], strict=True):
        for section in ("data", "protocol"):
            first = getattr(experiments[0], section).model_dump()
            other = getattr(experiment, section).model_dump()
            for name, value in first.items():
                if other[name] != value:
                    raise UserError(
                        f"{section}.{name}: {models[0]} has {value}, {model} has {other[name]}; "
                        f"to test both on the same faces give {section}.{name}=... or a FILE.yaml"
                    )


def _read_predictions(files: EvaluationFiles) -> pa.Table:
    return pq.read_table(pa.BufferReader(storage.read_bytes(files.predictions)))


def _summary(model: str, report: dict[str, Any], link: str) -> dict[str, Any]:
    """A model's row of the comparison."""
    overall = report["estimates"]["overall"]
    return {
        "name": model,
        "identity": report["model"]["identity"],
        **{name: overall[name] for name in ("mae", "bias", "cs5", "coverage", "width", "cs")},
        "by_age": report["estimates"]["by_age"],
        "report": link,
    }


def _pairs(models: Sequence[str], tables: Sequence[pa.Table]) -> list[dict[str, Any]]:
    """The tests between each two models; `real` after Bonferroni's correction."""
    true, subjects = tables[0].column("age").to_numpy(), tables[0].column("subject").to_pylist()
    numbers = list(combinations(range(len(models)), 2))
    pairs = []
    for first, second in numbers:
        first_ages = tables[first].column("predicted").to_numpy()
        second_ages = tables[second].column("predicted").to_numpy()
        tests = metrics.compare(true, first_ages, second_ages, subjects)
        pairs.append(
            {
                "first": models[first],
                "second": models[second],
                "difference": tests["mae"]["difference"],
                "permutation_p": tests["permutation_p"],
                "wilcoxon_p": tests["wilcoxon_p"],
                "real": tests["permutation_p"] * len(numbers) < LEVEL,
            }
        )
    return pairs
