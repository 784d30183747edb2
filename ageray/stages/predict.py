"""Second stage of scoring, where the model is: canvases in, rows of the scores table out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ageray import bundle, schema
from ageray.calibration import LIMITS
from ageray.errors import UserError
from ageray.faces.canvases import canvas_side
from ageray.predictor import Ages, Predictor
from ageray.stages import labels

_REFUSED = ("age", "age_low", "age_high", *(f"over_{limit}" for limit in LIMITS))
"""Columns that are null where the model refuses an age."""


def scores_schema(posterior: bool) -> pa.Schema:
    """Schema of the scores table, with or without the posterior."""
    return schema.SCORES.append(schema.POSTERIOR) if posterior else schema.SCORES


class AgeFaces:
    """Gives the faces of a batch of `finding.DETECTED_SCHEMA` their ages: rows of the scores table,
    with the labels of their lots if those are there. Holds the model."""

    def __init__(self, model: str, threads: int = 0, posterior: bool = False) -> None:
        loaded = bundle.load(model)
        self._model = model
        self._predictor = Predictor(loaded, threads=threads)
        self._side = canvas_side(loaded.experiment.align)
        self._schema = scores_schema(posterior)

    def __call__(self, found: pa.Table) -> pa.Table:
        valid = pc.is_valid(found.column("canvas"))
        faces, rows = found.filter(valid), np.flatnonzero(valid.to_numpy())
        pixels = np.frombuffer(b"".join(faces.column("canvas").to_pylist()), np.uint8)
        ages = self._predictor.predict(
            pixels.reshape(-1, self._side, self._side, 3),
            _floats(faces.column("canvas_points")).reshape(-1, 5, 2),
            _floats(faces.column("canvas_box")).reshape(-1, 4),
        )
        if not np.isfinite(ages.age).all():
            raise UserError(f"{self._model}: gives ages that are not numbers; its weights are broken")
        columns = _columns(ages)
        whole = self._schema
        if "lot" in found.column_names:
            whole = pa.schema([*whole, *labels.CHUNK_OF_ROW_SCHEMA])
        table = found.select([name for name in found.column_names if name in whole.names])
        for field in self._schema:
            if field.name in columns and field.name != "error":
                values: list[Any] = [None] * found.num_rows
                for row, value in zip(rows, columns[field.name], strict=True):
                    values[row] = value
                table = table.append_column(field, pa.array(values, field.type))
        if any(columns["error"]):
            reasons = table.column("error").to_pylist()
            for row, reason in zip(rows, columns["error"], strict=True):
                reasons[row] = reason
            place = table.column_names.index("error")
            table = table.set_column(place, "error", pa.array(reasons, pa.string()))
        return table.select(whole.names).cast(whole)


def _columns(ages: Ages) -> dict[str, list[Any]]:
    """What the scores table says of each face; null where the model has not learnt it, or refuses
    an age."""
    nothing: list[Any] = [None] * len(ages.age)
    columns = {"quality": nothing, "unusual": nothing, "error": list(nothing)}
    columns |= {"age": list(ages.age), "age_low": list(ages.low), "age_high": list(ages.high)}
    columns["posterior"] = list(ages.posterior)
    for limit, probabilities in zip(LIMITS, ages.over.T, strict=True):
        columns[f"over_{limit}"] = list(probabilities)
    if ages.quality is None or ages.unusual is None or ages.refused is None:
        return columns
    columns |= {"quality": list(ages.quality), "unusual": list(ages.unusual)}
    for row in np.flatnonzero(ages.refused):
        for name in _REFUSED:
            columns[name][row] = None
        about = f"quality {ages.quality[row]:.2f}, unusual {ages.unusual[row]:.2f}"
        columns["error"][row] = f"{schema.UNSURE}: an age would be a guess ({about})"
    return columns


def _floats(column: pa.ChunkedArray) -> NDArray[np.float32]:
    return np.asarray(column.combine_chunks().flatten().to_numpy(zero_copy_only=False), np.float32)
