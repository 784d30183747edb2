"""Several models on the same test faces: each evaluated, then every pair compared face by face."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ageray import metrics, report, storage
from ageray.errors import UserError
from ageray.evaluate.one_model import PREDICTIONS, REPORT, evaluate
from ageray.evaluate.page.comparison import comparison_report
from ageray.experiment import Experiment
from ageray.metrics.paired_tests import LEVEL


def compare(
    models: Sequence[str], experiments: Sequence[Experiment], out: str, trained_on: str | None = None
) -> dict[str, Any]:
    """Evaluates each model in `out/<number>-<name>` and writes `report.json` and `report.html` of their comparison to `out`; returns the former.

    All test the same faces: raises UserError where data or protocol of the experiments differ, or two models cannot be told apart.
    """
    _same_faces(models, experiments)
    folders = [f"{number}-{short(model)}" for number, model in enumerate(models)]
    reports = [
        evaluate(model, experiment, storage.join(out, folder), trained_on)
        for model, experiment, folder in zip(models, experiments, folders, strict=True)
    ]
    tables = [_predicted(storage.join(out, folder)) for folder in folders]
    made = {
        "data": reports[0]["data"],
        "protocol": reports[0]["protocol"],
        "images": reports[0]["images"],
        "models": [
            _summary(model, found, storage.join(folder, report.PAGE))
            for model, found, folder in zip(models, reports, folders, strict=True)
        ],
        "pairs": _pairs(models, tables),
        "warnings": list(dict.fromkeys(text for found in reports for text in found["warnings"])),
    }
    comparison_report(out, made)
    storage.write_text(storage.join(out, REPORT), json.dumps(made, indent=1) + "\n")
    return made


def short(model: str) -> str:
    """A model's name for a folder: `zoo:default` to `default`, a path to its last part."""
    name = model.rstrip("/").rsplit("/", 1)[-1].rsplit(":", 1)[-1]
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)


def _same_faces(models: Sequence[str], experiments: Sequence[Experiment]) -> None:
    if len(set(models)) < len(models):
        raise UserError("the same model is named twice; name each once")
    first = experiments[0]
    for model, other in zip(models[1:], experiments[1:], strict=True):
        for section in ("data", "protocol"):
            one, two = (getattr(each, section).model_dump() for each in (first, other))
            for name in one:
                if one[name] != two[name]:
                    raise UserError(
                        f"{section}.{name}: {models[0]} has {one[name]}, {model} has {two[name]}; "
                        f"to test both on the same faces give {section}.{name}=... or a FILE.yaml"
                    )


def _predicted(folder: str) -> pa.Table:
    return pq.read_table(pa.BufferReader(storage.read_bytes(storage.join(folder, PREDICTIONS))))


def _summary(model: str, found: dict[str, Any], page: str) -> dict[str, Any]:
    overall = found["estimates"]["overall"]
    figures = {name: overall[name] for name in ("mae", "bias", "cs5", "coverage", "width", "cs")}
    return {
        "name": model,
        "identity": found["model"]["identity"],
        **figures,
        "by_age": found["estimates"]["by_age"],
        "report": page,
    }


def _pairs(models: Sequence[str], tables: Sequence[pa.Table]) -> list[dict[str, Any]]:
    true, subjects = tables[0].column("age").to_numpy(), tables[0].column("subject").to_pylist()
    known = subjects if any(subject is not None for subject in subjects) else None
    pairs = list(combinations(range(len(models)), 2))
    made = []
    for first, second in pairs:
        one, other = (tables[number].column("predicted").to_numpy() for number in (first, second))
        found = metrics.compare(true, one, other, known)
        made.append(
            {
                "first": models[first],
                "second": models[second],
                "difference": found["mae"]["difference"],
                "permutation_p": found["permutation_p"],
                "wilcoxon_p": found["wilcoxon_p"],
                "real": found["permutation_p"] * len(pairs) < LEVEL,
            }
        )
    return made
