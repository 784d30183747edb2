"""What a bundle predicts for labelled faces before calibration, on Ray Data.

Takes a model and face shards; gives a table with a row per labelled face. Shape letters: B faces.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from ray.data import ActorPoolStrategy

from ageray import bundle
from ageray.bundle import Bundle
from ageray.cluster.actors import plan_actors
from ageray.data.stream import face_stream
from ageray.experiment import Experiment
from ageray.machine.progress import Show
from ageray.predictor import Predictor

COLUMNS = pa.schema(
    [
        ("key", pa.string()),
        ("age", pa.float32()),
        ("error", pa.string()),
        ("decoded", pa.list_(pa.float32(), 3)),
        ("widening", pa.float32()),
        ("refused", pa.bool_()),
    ]
)
"""`age`: the true age. `error`: why there is no prediction; '' where there is one. The others are
those of `ageray.predictor.Ages`, null where there is no prediction."""


class _Predict:
    """Actor: takes canvases and true ages, gives COLUMNS."""

    def __init__(self, model: str, threads: int) -> None:
        self._predictor = Predictor(bundle.load(model), threads=threads)

    def __call__(self, batch: dict[str, Any]) -> pa.Table:
        fine = batch["error"] == ""
        faces = batch["canvas"][fine], batch["points"][fine], batch["box"][fine]
        ages = self._predictor.predict(*faces, batch["subject"][fine])
        columns = {name: batch[name] for name in ("key", "age", "error")}
        columns["decoded"] = _spread(ages.decoded.astype(np.float32), fine)
        columns["widening"] = _spread(ages.widening, fine)
        columns["refused"] = _spread(ages.refused, fine)
        return pa.table(columns, COLUMNS)


def predictions(model: str, loaded: Bundle, experiment: Experiment, total: int, show: Show) -> pa.Table:
    """COLUMNS of every labelled face of `experiment.data.shards`, sorted by key.

    Alignment and decoding are the bundle's. total: how many faces there are. show: receives records
    of `what`, `done` and `total`. Needs a connected cluster.
    """
    pool = plan_actors(experiment.scale)
    stream = face_stream(str(experiment.data.shards), loaded.experiment.align, experiment.scale.decode_batch)
    predicted = stream.map_batches(
        _Predict,
        batch_size=experiment.scale.faces_a_batch(bool(pool.gpus)),
        batch_format="numpy",
        compute=ActorPoolStrategy(size=pool.actors),
        fn_constructor_kwargs={"model": bundle.model_for_workers(model), "threads": pool.threads},
        **pool.options(),
    )
    batches: Any = predicted.iter_batches(batch_size=None, batch_format="pyarrow")
    tables, done = [COLUMNS.empty_table()], 0
    for table in batches:
        tables.append(table)
        done += table.num_rows
        show({"what": "faces predicted", "done": done, "total": total})
    return pa.concat_tables(tables).sort_by("key")


def _spread(values: NDArray[Any] | None, fine: NDArray[np.bool_]) -> list[Any]:
    """The values of the faces that are `fine`, and None for the others."""
    rows: list[Any] = [None] * len(fine)
    if values is not None:
        for place, value in zip(np.flatnonzero(fine), values, strict=True):
            rows[place] = value
    return rows
