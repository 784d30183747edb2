"""A bundle's predictions of the test faces, with the predictor on Ray Data.

Takes a model and a saved split; gives a table with a row per test face, and the embeddings of some.
Shape letters: B faces, Q quantiles, D size of an embedding.
"""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from ray.data import ActorPoolStrategy

from ageray import bundle
from ageray.bundle import Bundle
from ageray.calibration import LIMITS
from ageray.cluster.actors import plan_actors
from ageray.data.stream import face_stream
from ageray.experiment import Experiment
from ageray.machine.progress import Show, show_nothing
from ageray.predictor import Ages, Predictor

LEVELS = tuple(round(0.05 * k, 2) for k in range(1, 20))
"""Levels of the quantiles that are stored of every posterior: 5 %, 10 %, ..., 95 %."""

MAPPED = 2000
"""Number of faces whose embedding is stored for the map, chosen by a hash of their keys."""

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
        ("plain", pa.float32()),
    ]
)
"""Columns of every model, a row per test face.

age         true age
error       why there is no prediction; '' where there is one
predicted   predicted age
low, high   ends of its 90 % interval
quantiles   of the calibrated posterior at LEVELS
plain       the decoded age before calibration, neither shifted nor clipped: the papers' figure
"""

CHECKS = [pa.field(name, pa.float32()) for name in ("over_18", "over_25", "quality", "unusual")]
"""Further columns of a bundle: those of the same names of the scores table."""

NEAREST = [
    pa.field("gender_number", pa.int8()),
    pa.field("female", pa.float32()),
    pa.field("neighbours", pa.float32()),
    pa.field("own", pa.float32()),
]
"""Further columns of a model with a gallery: the true gender (-1 unknown), and from `Ages` the
share of women among the nearest faces, their number, and how many show the face's own subject."""

CLASSIFIERS = pa.field("classifiers", _NUMBERS)
"""Further column of a model with several classifiers: the age that each of them predicts, before
calibration (`Predictor.classifiers`)."""

_EMBEDDING = pa.field("embedding", pa.list_(pa.float16()))


class Predictions(NamedTuple):
    """`rows`: the columns above, sorted by key.

    `embedded`: `key`, `age`, `embedding` (D,) of at most MAPPED of them; None where the network has
    no embedding.
    """

    rows: pa.Table
    embedded: pa.Table | None


class _Predict:
    """Actor: takes canvases and true ages, gives predictions; rows with an error keep it."""

    def __init__(
        self, model: str, threads: int, mapped: list[str], decode: dict[str, Any], calibrate: bool
    ) -> None:
        loaded = bundle.load(model)
        settings = type(loaded.experiment.model.decode).model_validate(decode)
        self._predictor = Predictor(loaded.decoding(settings, calibrate), threads=threads)
        self._mapped = frozenset(mapped)
        self._schema = _schema(self._predictor)

    def __call__(self, batch: dict[str, Any]) -> pa.Table:
        fine = batch["error"] == ""
        faces = batch["canvas"][fine], batch["points"][fine], batch["box"][fine]
        ages = self._predictor.predict(*faces, batch["subject"][fine], details=True)
        columns = {name: batch[name] for name in ("key", "age", "error")}
        columns["gender_number"] = batch["gender"]
        columns |= _numbers(ages, fine)
        columns["quantiles"] = _lists(self._predictor.quantiles(ages, LEVELS), fine)
        if "classifiers" in self._schema.names:
            columns["classifiers"] = _lists(_rows(ages.classifiers), fine)
        if "embedding" in self._schema.names:
            shown = np.array([key in self._mapped for key in batch["key"]], bool)
            embeddings = _rows(ages.embedding).astype(np.float16)[shown[fine]]
            columns["embedding"] = _lists(embeddings, fine & shown)
        return pa.table(columns, self._schema)


def predictions(
    model: str,
    loaded: Bundle,
    experiment: Experiment,
    split: str,
    keys: list[str],
    show: Show = show_nothing,
) -> Predictions:
    """Predicts the faces `keys`: the part `test` of the saved `split` of `experiment.data.shards`.

    Alignment and decoding are those of `loaded`, which is the bundle `model` or that bundle with
    another decoding (`Bundle.decoding`). show: receives records of `what`,
    `done` and `total`. Needs a connected cluster.
    """
    pool = plan_actors(experiment.scale)
    stream = face_stream(
        str(experiment.data.shards), loaded.experiment.align, experiment.scale.decode_batch, split, "test"
    )
    predicted = stream.map_batches(
        _Predict,
        batch_size=experiment.scale.faces_a_batch(bool(pool.gpus)),
        batch_format="numpy",
        compute=ActorPoolStrategy(size=pool.actors),
        fn_constructor_kwargs={
            "model": bundle.model_for_workers(model),
            "threads": pool.threads,
            "mapped": mapped(keys),
            "decode": loaded.experiment.model.decode.model_dump(mode="json"),
            "calibrate": loaded.experiment.train.calibrate,
        },
        **pool.options(),
    )
    batches: Any = predicted.iter_batches(batch_size=None, batch_format="pyarrow")
    tables, done = [], 0
    for table in batches:
        if table.num_rows:
            tables.append(table)
            done += table.num_rows
            show({"what": f"faces predicted by {model}", "done": done, "total": len(keys)})
    rows = pa.concat_tables(tables).sort_by("key")
    if "embedding" not in rows.column_names:
        return Predictions(rows, None)
    embedded = rows.filter(pa.compute.is_valid(rows.column("embedding")))
    return Predictions(rows.drop_columns("embedding"), embedded.select(["key", "age", "embedding"]))


def mapped(keys: list[str]) -> list[str]:
    """At most MAPPED of the keys, the same for the same keys."""

    def digest(key: str) -> bytes:
        return hashlib.blake2b(key.encode(), digest_size=8, person=b"ageray-map").digest()

    return sorted(keys, key=digest)[:MAPPED]


def _schema(predictor: Predictor) -> pa.Schema:
    """The columns that a model gives."""
    fields = [*PREDICTED, *CHECKS]
    if predictor.bundle.experiment.model.decode.method == "gallery":
        fields += NEAREST
    if predictor.classifier_names:
        fields.append(CLASSIFIERS)
    if predictor.has_embedding:
        fields.append(_EMBEDDING)
    return pa.schema(fields)


def _numbers(ages: Ages, fine: NDArray[np.bool_]) -> dict[str, NDArray[np.float32]]:
    """The columns of one number per face, NaN where a face has none."""
    answers = {
        "predicted": ages.age,
        "plain": ages.decoded[:, 0],
        "low": ages.low,
        "high": ages.high,
        "female": ages.female,
        "neighbours": ages.neighbours,
        "own": ages.own,
        "quality": ages.quality,
        "unusual": ages.unusual,
    }
    for limit, probabilities in zip(LIMITS, ages.over.T, strict=True):
        answers[f"over_{limit}"] = probabilities
    columns = {}
    for name, values in answers.items():
        columns[name] = np.full(len(fine), np.nan, np.float32)
        if values is not None:
            columns[name][fine] = values
    return columns


def _rows(values: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """The values; no rows where a batch has no usable face."""
    return np.zeros((0, 1), np.float32) if values is None else values


def _lists(values: Any, chosen: NDArray[np.bool_]) -> list[Any]:
    """The rows of `values` where `chosen` is true, None elsewhere."""
    rows: list[Any] = [None] * len(chosen)
    for place, value in zip(np.flatnonzero(chosen), values, strict=True):
        rows[place] = value
    return rows
