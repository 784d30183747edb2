"""A bundle against a labelled set: predictions through the predictor on Ray Data, then the figures."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ray.data import ActorPoolStrategy

from ageray import bundle, metrics, scoring, storage
from ageray.bundle import Bundle
from ageray.data import protocols, splits
from ageray.data.stream import face_stream
from ageray.errors import UserError
from ageray.experiment import Experiment
from ageray.predictor import Predictor
from ageray.train.plan import labelled_faces, train_digest

REPORT, PREDICTIONS, SPLIT = "report.json", "predictions.parquet", "split.parquet"


_PREDICTED = pa.schema(
    [("key", pa.string()), ("age", pa.float32()), ("error", pa.string())] + [(name, pa.float32()) for name in ("predicted", "low", "high")]
)


_NEAREST = [pa.field("gender", pa.int8())] + [pa.field(name, pa.float32()) for name in ("female", "neighbours", "own")]
"""Of a model with a gallery besides: the true gender (-1 unknown), and what `Ages` says of the nearest faces."""


class _Predict:
    """Actor: canvases and true ages in, predictions out; rows with an error keep it."""

    def __init__(self, model: str, threads: int) -> None:
        self._predictor = Predictor(bundle.load(model), threads=threads)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        fine = batch["error"] == ""
        ages = self._predictor.predict(*(batch[name][fine] for name in ("canvas", "points", "box", "subject")))
        columns = {name: batch[name] for name in ("key", "age", "error", "gender")}
        found: dict[str, Any] = {"predicted": ages.age, "low": ages.low, "high": ages.high}
        found |= {"female": ages.female, "neighbours": ages.neighbours, "own": ages.own}
        for name, values in found.items():
            columns[name] = np.full(len(fine), np.nan, np.float32)
            if values is not None:
                columns[name][fine] = values
        return columns


def evaluate(model: str, experiment: Experiment, out: str) -> dict[str, Any]:
    """Predicts the test part of `experiment.data` under `experiment.protocol` and writes report.json, predictions.parquet and split.parquet
    to the folder `out`; returns the report.

    Alignment and decoding are the bundle's. Needs a connected cluster. Raises UserError if there are no shards or no test face.
    """
    loaded = bundle.load(model)
    shards = experiment.data.shards
    if shards is None:
        raise UserError("data.shards is not set; name the folder that jobs.prepare wrote, e.g. data.shards=shards/fgnet")
    faces = labelled_faces(shards)
    divided = protocols.split(faces, experiment.protocol)
    parts = divided.parts
    if not parts["test"]:
        raise UserError(f"protocol.name={experiment.protocol.name}: leaves no face to test; raise protocol.test, or set protocol.name=all")
    storage.make_folder(out)
    split = storage.join(storage.absolute(out), SPLIT)
    splits.save(split, parts)
    found = _predictions(model, loaded, experiment, shards, split)
    fine = found.filter(pa.compute.equal(found.column("error"), ""))
    if fine.num_rows == 0:
        raise UserError(f"data.shards={shards}: no test face can be used; the first of {found.num_rows}: {found.column('error')[0]}")
    true, predicted, low, high = (fine.column(name).to_numpy() for name in ("age", "predicted", "low", "high"))
    median = loaded.card.get("training", {}).get("train_ages", {}).get("median")
    report = {
        "model": {"name": model, "network": loaded.experiment.model.name, "identity": loaded.identity},
        "data": {"name": experiment.data.name, "shards": shards, "landmarks": experiment.data.landmarks},
        "protocol": experiment.protocol.model_dump(),
        "notes": divided.notes,
        "warnings": [*_unlabelled(shards, faces.num_rows), *_leak(loaded, experiment, parts)],
        **metrics.summary(true, predicted, low, high, median),
        **_nearest(loaded, fine),
        "unusable": dict(zip(*_unusable(found), strict=True)),
    }
    _write(out, found, report)
    return report


def _nearest(loaded: Bundle, fine: pa.Table) -> dict[str, Any]:
    """Of a model with a gallery: `gallery`, whose faces the ages came from, and `gender`, how often the nearest faces tell it, where both the
    gallery and the set know genders. A share of exactly one half counts as half right."""
    if loaded.experiment.model.decode.method != "gallery":
        return {}
    gender, female, neighbours, own = (fine.column(field.name).to_numpy() for field in _NEAREST)
    excluded = loaded.experiment.model.decode.gallery.exclude_subject
    used = float(neighbours.sum())
    report: dict[str, Any] = {
        "gallery": {
            "faces": loaded.card["gallery"]["faces"],
            "neighbours": used,
            "same_subject_share": 0.0 if excluded or not used else float(own.sum()) / used,
            "same_subject_excluded": float(own.sum()) if excluded else 0.0,
            "without_neighbours": int((neighbours == 0).sum()),
        }
    }
    known = (gender >= 0) & np.isfinite(female)
    if known.any():
        right = np.where(female == 0.5, 0.5, (female > 0.5) == (gender == 1))[known]
        report["gender"] = {"faces": int(known.sum()), "accuracy": float(right.mean()), "by": loaded.card["gallery"]["gender_by"]}
    return report


def _predictions(model: str, loaded: Bundle, experiment: Experiment, shards: str, split: str) -> pa.Table:
    team = scoring.share_out(experiment.scale)
    place = model if model.startswith("zoo:") else storage.absolute(loaded.uri)
    stream = face_stream(shards, loaded.experiment.align, experiment.scale.decode_batch, split, "test")
    predicted = stream.map_batches(
        _Predict,
        batch_size=experiment.scale.score_batch,
        batch_format="numpy",
        compute=ActorPoolStrategy(size=team.actors),
        fn_constructor_kwargs={"model": place, "threads": team.threads},
        num_cpus=team.cpus,
        num_gpus=team.gpus,
    )
    tables: Iterable[Any] = predicted.iter_batches(batch_size=None, batch_format="pyarrow")
    schema = pa.schema([*_PREDICTED, *_NEAREST]) if loaded.experiment.model.decode.method == "gallery" else _PREDICTED
    return pa.concat_tables([table.select(schema.names).cast(schema) for table in tables if table.num_rows]).sort_by("key")


def _unusable(found: pa.Table) -> tuple[list[str], list[str]]:
    bad = found.filter(pa.compute.not_equal(found.column("error"), ""))
    return bad.column("key").to_pylist(), bad.column("error").to_pylist()


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
        return [f"the model was trained on '{experiment.data.name}': with protocol.name=all its training faces are tested too"]
    if training.get("train_digest") not in (None, train_digest(parts["train"])):
        other = "other shards, protocol, shares, fold or seed"
        return [f"this split is not the one the model was trained on ({other}): test faces may have been trained on"]
    return []


def _write(out: str, found: pa.Table, report: dict[str, Any]) -> None:
    sink = io.BytesIO()
    pq.write_table(found, sink)
    storage.write_bytes(storage.join(out, PREDICTIONS), sink.getvalue())
    storage.write_text(storage.join(out, REPORT), json.dumps(report, indent=1) + "\n")
