"""A recipe under a protocol with folds: every fold trained and tested, one report of all."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from ageray import storage
from ageray.data import protocols
from ageray.evaluation import audited, figures
from ageray.evaluation.folds import run_folds
from ageray.evaluation.predictions import LEVELS
from ageray.evaluation.single import write
from ageray.experiment import Experiment
from ageray.models.model import build
from ageray.train.plan import labelled_faces


def evaluate_folds(experiment: Experiment, out: str, show: Callable[[dict[str, Any]], None], fresh: bool = False) -> dict[str, Any]:
    """Trains and tests every fold of `experiment.protocol` (see `run_folds`) and writes report.html, report.json and predictions.parquet to `out`;
    returns the report.

    The floors are those of always saying the mean of the folds' training medians. The audit counts, over all folds, test images that the
    fold's own training part knows. Finished folds in `out` are not trained again, unless `fresh`. Needs a connected cluster.
    Raises UserError as `run_folds` does.
    """
    rows = run_folds(experiment, out, show, fresh)
    facts = json.loads(rows.schema.metadata[b"ageray"])
    shards = str(experiment.data.shards)
    faces = labelled_faces(shards)
    splits = [protocols.split(faces, protocol) for protocol in protocols.folds(faces, experiment.protocol)]
    network = build(experiment.model, pretrained=False)
    decode = experiment.model.decode
    nearest = figures.nearest(rows, facts["gallery"], decode.gallery.exclude_subject) if decode.method == "gallery" else {}
    made = {
        "model": {"name": f"{experiment.model.name}, trained for each fold", "network": experiment.model.name, "identity": None},
        "data": {"name": experiment.data.name, "shards": shards, "landmarks": experiment.data.landmarks},
        "protocol": {**experiment.protocol.model_dump(), "folds_run": facts["folds"]},
        "notes": facts["notes"],
        "warnings": [],
        "levels": list(LEVELS),
        **figures.figures(rows, LEVELS, facts["train_median"]),
        **figures.classifiers(rows, list(network.classifier_names)),
        **nearest,
        "audit": audited.audit_folds(faces, [split.parts for split in splits], shards),
        "unusable": figures.unusable(rows),
        "card": None,
    }
    storage.make_folder(out)
    write(out, rows.replace_schema_metadata(None), made, None)
    return made
