"""A bundle against a labelled set: predictions, audit, figures, page."""

from __future__ import annotations

import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ageray import bundle, storage
from ageray.bundle import Bundle
from ageray.data import protocols, splits
from ageray.data.labelled_faces import labelled_faces
from ageray.data.splits import train_digest
from ageray.errors import UserError
from ageray.evaluate import results, split_audit
from ageray.evaluate.page.evaluation import evaluation_report
from ageray.evaluate.predictions import LEVELS, predictions
from ageray.experiment import Experiment

REPORT, PREDICTIONS, SPLIT = "report.json", "predictions.parquet", "split.parquet"


def evaluate(model: str, experiment: Experiment, out: str, trained_on: str | None = None) -> dict[str, Any]:
    """Predicts the test part of `experiment.data` under `experiment.protocol` and writes report.html, report.json, predictions.parquet and
    split.parquet to the folder `out`; returns the report.

    Alignment and decoding are the bundle's. `trained_on`: shards that the model was trained on, for the audit; by default those that its
    settings name. Needs a connected cluster. Raises UserError if there are no shards or no test face.
    """
    loaded = bundle.load(model)
    shards = experiment.data.shards
    if shards is None:
        raise UserError(
            "data.shards is not set; name the folder that jobs.prepare wrote, e.g. data.shards=shards/fgnet"
        )
    faces = labelled_faces(shards)
    divided = protocols.split(faces, experiment.protocol)
    parts = divided.parts
    if not parts["test"]:
        raise UserError(
            f"protocol.name={experiment.protocol.name}: leaves no face to test; raise protocol.test, or set protocol.name=all"
        )
    training = split_audit.training_side(model, loaded, experiment, faces, parts, trained_on)
    storage.make_folder(out)
    split = storage.join(storage.absolute(out), SPLIT)
    splits.save(split, parts)
    found = predictions(model, loaded, experiment, split, parts["test"])
    rows = results.with_labels(found.rows, faces)
    unusable = results.unusable(rows)
    if len(unusable) == rows.num_rows:
        raise UserError(
            f"data.shards={shards}: no test face can be used; the first of {rows.num_rows}: {next(iter(unusable.values()))}"
        )
    made = {
        "model": {"name": model, "network": loaded.experiment.model.name, "identity": loaded.identity},
        "data": {"name": experiment.data.name, "shards": shards, "landmarks": experiment.data.landmarks},
        "protocol": experiment.protocol.model_dump(),
        "notes": divided.notes,
        "warnings": [*_unlabelled(shards, faces.num_rows), *_leak(loaded, experiment, parts)],
        "levels": list(LEVELS),
        **results.figures(rows, LEVELS, loaded.card.get("training", {}).get("train_ages", {}).get("median")),
        **results.classifiers(rows, list(loaded.network().classifier_names)),
        **_gallery(loaded, rows),
        "audit": split_audit.audited(training, faces, parts["test"], shards),
        "unusable": unusable,
        "card": loaded.card,
    }
    write(out, rows, made, found.embedded)
    return made


def write(out: str, rows: pa.Table, made: dict[str, Any], embedded: pa.Table | None) -> None:
    """Writes predictions, page and, last, report.json."""
    sink = io.BytesIO()
    pq.write_table(rows, sink)
    storage.write_bytes(storage.join(out, PREDICTIONS), sink.getvalue())
    evaluation_report(out, made, rows, embedded)
    storage.write_text(storage.join(out, REPORT), json.dumps(made, indent=1) + "\n")


def _gallery(loaded: Bundle, rows: pa.Table) -> dict[str, Any]:
    decode = loaded.experiment.model.decode
    return (
        results.nearest(rows, loaded.card["gallery"], decode.gallery.exclude_subject)
        if decode.method == "gallery"
        else {}
    )


def _unlabelled(shards: str, labelled: int) -> list[str]:
    rows = 0
    for file in storage.list_files(shards, (".parquet",)):
        filesystem, path = storage.filesystem(file)
        rows += pq.read_metadata(path, filesystem=filesystem).num_rows
    return [f"{rows - labelled} of {rows} faces have no age and are left out"] if rows > labelled else []


def _leak(loaded: Bundle, experiment: Experiment, parts: dict[str, list[str]]) -> list[str]:
    training = loaded.card.get("training", {})
    if training.get("data") != experiment.data.name:
        return []
    if experiment.protocol.name == "all":
        return [
            f"the model was trained on '{experiment.data.name}': with protocol.name=all its training faces are tested too"
        ]
    if training.get("train_digest") not in (None, train_digest(parts["train"])):
        other = "other shards, protocol, shares, fold or seed"
        return [
            f"this split is not the one the model was trained on ({other}): test faces may have been trained on"
        ]
    return []
