"""What a bundle says of the test faces, through the predictor on Ray Data. Shape letters: B faces, Q quantiles, D size of an embedding."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from ray.data import ActorPoolStrategy

from ageray import bundle, storage
from ageray.bundle import Bundle
from ageray.cluster.actors import share_out
from ageray.data.stream import face_stream
from ageray.experiment import Experiment
from ageray.predictor import Predictor

LEVELS = tuple(round(0.05 * k, 2) for k in range(1, 20))
"""Of the quantiles that are kept of every posterior: the 5 %, 10 %, ..., 95 % ones."""

MAPPED = 2000
"""Faces whose embedding is kept for the map, chosen by a hash of their keys."""

_NUMBERS = pa.list_(pa.float32())

PREDICTED = pa.schema(
    [
        ("key", pa.string()),
        ("age", pa.float32()),
        ("error", pa.string()),
        ("predicted", pa.float32()),
        ("low", pa.float32()),
        ("high", pa.float32()),
        ("quantiles", _NUMBERS),
    ]
)
"""A row a test face: true age, why there is no prediction ('': there is one), the predicted age, its 90 % interval and the quantiles of the
calibrated posterior at LEVELS."""

NEAREST = [pa.field("gender_number", pa.int8())] + [
    pa.field(name, pa.float32()) for name in ("female", "neighbours", "own")
]
"""Of a model with a gallery besides: the true gender (-1 unknown), and what `Ages` says of the nearest faces."""

CLASSIFIERS = pa.field("classifiers", _NUMBERS)
"""Of a model with several classifiers besides: the age that each of them says (`Predictor.classifiers`), before calibration."""

_EMBEDDING = pa.field("embedding", pa.list_(pa.float16()))


class Predictions(NamedTuple):
    """`rows`: the columns above, sorted by key. `embedded`: `key`, `age`, `embedding` (D,) of at most MAPPED of them; None where the network has
    no embedding."""

    rows: pa.Table
    embedded: pa.Table | None


class _Predict:
    """Actor: canvases and true ages in, predictions out; rows with an error keep it."""

    def __init__(self, model: str, threads: int, mapped: list[str]) -> None:
        self._predictor = Predictor(bundle.load(model), threads=threads)
        self._mapped = frozenset(mapped)
        self._schema = _schema(self._predictor)

    def __call__(self, batch: dict[str, Any]) -> pa.Table:
        fine = batch["error"] == ""
        faces = batch["canvas"][fine], batch["points"][fine], batch["box"][fine]
        ages = self._predictor.predict(*faces, batch["subject"][fine])
        columns: dict[str, Any] = {name: batch[name] for name in ("key", "age", "error")}
        columns["gender_number"] = batch["gender"]
        found: dict[str, Any] = {"predicted": ages.age, "low": ages.low, "high": ages.high}
        found |= {"female": ages.female, "neighbours": ages.neighbours, "own": ages.own}
        for name, values in found.items():
            columns[name] = np.full(len(fine), np.nan, np.float32)
            if values is not None:
                columns[name][fine] = values
        columns["quantiles"] = _lists(self._predictor.quantiles(ages, LEVELS), fine)
        if "classifiers" in self._schema.names:
            columns["classifiers"] = _lists(self._predictor.classifiers(*faces), fine)
        if "embedding" in self._schema.names:
            columns["embedding"] = self._embeddings(batch, fine)
        return pa.table(
            {name: pa.array(columns[name], self._schema.field(name).type) for name in self._schema.names},
            self._schema,
        )

    def _embeddings(self, batch: dict[str, Any], fine: Any) -> list[Any]:
        wanted = fine & np.array([key in self._mapped for key in batch["key"]], bool)
        if not wanted.any():
            return [None] * len(wanted)
        return _lists(
            self._predictor.embeddings(*(batch[name][wanted] for name in ("canvas", "points", "box"))).astype(
                np.float16
            ),
            wanted,
        )


def predictions(
    model: str, loaded: Bundle, experiment: Experiment, split: str, keys: list[str]
) -> Predictions:
    """Predicts the faces `keys`, the part `test` of the saved `split` of `experiment.data.shards`. Alignment and decoding are the bundle's."""
    team = share_out(experiment.scale)
    place = model if model.startswith("zoo:") else storage.absolute(loaded.uri)
    stream = face_stream(
        str(experiment.data.shards), loaded.experiment.align, experiment.scale.decode_batch, split, "test"
    )
    predicted = stream.map_batches(
        _Predict,
        batch_size=experiment.scale.faces_a_batch(bool(team.gpus)),
        batch_format="numpy",
        compute=ActorPoolStrategy(size=team.actors),
        fn_constructor_kwargs={"model": place, "threads": team.threads, "mapped": mapped(keys)},
        **team.each(),
    )
    tables: Any = predicted.iter_batches(batch_size=None, batch_format="pyarrow")
    rows = pa.concat_tables([table for table in tables if table.num_rows]).sort_by("key")
    if "embedding" not in rows.column_names:
        return Predictions(rows, None)
    embedded = rows.filter(pa.compute.is_valid(rows.column("embedding"))).select(["key", "age", "embedding"])
    return Predictions(rows.drop_columns("embedding"), embedded)


def mapped(keys: list[str]) -> list[str]:
    """At most MAPPED of the keys, the same for the same keys."""
    return sorted(
        keys, key=lambda key: hashlib.blake2b(key.encode(), digest_size=8, person=b"ageray-map").digest()
    )[:MAPPED]


def _schema(predictor: Predictor) -> pa.Schema:
    """What the model at hand yields."""
    fields = list(PREDICTED)
    if predictor.bundle.experiment.model.decode.method == "gallery":
        fields += NEAREST
    if predictor.classifier_names:
        fields.append(CLASSIFIERS)
    return pa.schema([*fields, _EMBEDDING] if predictor.has_embedding else fields)


def _lists(values: Any, chosen: Any) -> list[Any]:
    """The rows of `values` where `chosen` holds, null elsewhere."""
    rows = iter(values)
    return [next(rows) if here else None for here in chosen]
