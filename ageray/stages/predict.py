"""Second stage, where the model is: canvases in, rows of the scores table out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from ageray import bundle, schema
from ageray.calibration import LIMITS
from ageray.errors import UserError
from ageray.experiment import Align
from ageray.faces.canvases import canvas_side
from ageray.predictor import Ages, Predictor
from ageray.stages.columns import CANVAS_SCHEMA, scores_schema

_REFUSED = ("age", "age_low", "age_high", *(f"over_{limit}" for limit in LIMITS))
"""Columns that are null where the model refuses an age."""


class AgeFaces:
    """Gives the faces of a batch their ages. Holds the model."""

    def __init__(
        self,
        model: str,
        threads: int = 0,
        posterior: bool = False,
        precision: str = "auto",
        device: str = "auto",
        cuda_graphs: bool = True,
    ) -> None:
        loaded = bundle.load(model)
        self._model = model
        self._predictor = Predictor(loaded, device, threads, precision, cuda_graphs)
        self._side = canvas_side(loaded.experiment.align)
        self._schema = scores_schema(posterior)

    @property
    def align(self) -> Align:
        """The alignment of the model's faces."""
        return self._predictor.bundle.experiment.align

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._predictor.device

    @property
    def on_gpu(self) -> bool:
        """Whether the model is on a GPU."""
        return self._predictor.device.type == "cuda"

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Rows of `ageray.stages.detect.DETECTED_SCHEMA` to rows of the scores table. Further
        columns are carried.

        Raises UserError if the model's ages are not finite.
        """
        has_face = pc.is_valid(rows.column("canvas")).to_numpy()
        places = np.flatnonzero(has_face)
        ages = self._predictor.predict(
            _pixels(rows.column("canvas")).reshape(-1, self._side, self._side, 3),
            _floats(rows.column("canvas_points")).reshape(-1, 5, 2),
            _floats(rows.column("canvas_box")).reshape(-1, 4),
        )
        if not np.isfinite(ages.age).all():
            raise UserError(f"{self._model}: gives ages that are not numbers; its weights are broken")
        table = rows.drop_columns(CANVAS_SCHEMA.names)
        further = [field for field in table.schema if field.name not in self._schema.names]
        columns = _columns(ages)
        for field in self._schema:
            if field.name in columns and field.name != "error":
                values: list[Any] = [None] * rows.num_rows
                for place, value in zip(places, columns[field.name], strict=True):
                    values[place] = value
                table = table.append_column(field, pa.array(values, field.type))
        if any(columns["error"]):
            reasons = table.column("error").to_pylist()
            for place, reason in zip(places, columns["error"], strict=True):
                reasons[place] = reason
            number = table.column_names.index("error")
            table = table.set_column(number, "error", pa.array(reasons, pa.string()))
        complete = pa.schema([*self._schema, *further])
        return table.select(complete.names).cast(complete)


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


def _pixels(column: pa.ChunkedArray) -> NDArray[np.uint8]:
    """The bytes of all values of a binary column one after the other, without those that are null.
    They are a view of Arrow's memory, which is 64 MB for 256 faces of 128 pixels."""
    views = []
    for chunk in column.chunks:
        _, offsets, content = chunk.buffers()
        if content is not None and len(chunk):
            ends = np.frombuffer(offsets, np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
            views.append(np.frombuffer(content, np.uint8)[ends[0] : ends[-1]])
    if len(views) == 1:
        return views[0]
    return np.concatenate([np.zeros(0, np.uint8), *views])


def _floats(column: pa.ChunkedArray) -> NDArray[np.float32]:
    return np.asarray(column.combine_chunks().flatten().to_numpy(zero_copy_only=False), np.float32)
