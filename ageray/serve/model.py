"""The deployment that holds the model. The faces of concurrent requests share its batches.

The ages are those of `ageray score`: both run `ageray.stages.predict`.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
from ray import serve

from ageray import bundle
from ageray.experiment import Align
from ageray.faces.canvases import canvas_side
from ageray.serve.settings import Service
from ageray.stages.columns import DETECTED_SCHEMA
from ageray.stages.predict import AgeFaces

_POINTS = ((0.36, 0.4), (0.64, 0.4), (0.5, 0.55), (0.39, 0.7), (0.61, 0.7))


def _count_rows(tables: list[pa.Table]) -> int:
    return sum(table.num_rows for table in tables)


@serve.deployment
class AgeModel:
    """Rows of `DETECTED_SCHEMA` in, rows of the scores table with their posteriors out."""

    def __init__(self, settings: Service) -> None:
        self._age_faces = AgeFaces(
            settings.model, settings.threads, posterior=True, precision=settings.precision
        )
        self._blank = blank_face(bundle.load(settings.model).experiment.align)
        self._thread = ThreadPoolExecutor(1)  # one forward pass at a time, outside of the event loop
        batched: Any = self.age
        batched.set_max_batch_size(settings.max_batch_size)
        batched.set_batch_wait_timeout_s(settings.batch_wait_timeout_ms / 1000)
        self._age_faces(self._blank)  # the first pass is slow

    @serve.batch(batch_size_fn=_count_rows)
    async def age(self, tables: list[pa.Table]) -> list[pa.Table]:
        """The ages of several tables of faces; Serve collects up to `max_batch_size` rows."""
        scores = await self._forward(pa.concat_tables(tables))
        ends = np.cumsum([table.num_rows for table in tables]).tolist()
        return [scores.slice(end - len(table), len(table)) for table, end in zip(tables, ends, strict=True)]

    async def check_health(self) -> None:
        """A forward pass of a blank face. Serve replaces a replica that hangs or has lost its
        GPU."""
        await self._forward(self._blank)

    async def _forward(self, faces: pa.Table) -> pa.Table:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._age_faces, faces)


def blank_face(align: Align) -> pa.Table:
    """One row of DETECTED_SCHEMA: a gray canvas with five points where a face would have them."""
    side = canvas_side(align)
    row = {
        "key": "blank",
        "image": "blank",
        "face": 0,
        "canvas": np.full((side, side, 3), align.fill, np.uint8).tobytes(),
        "canvas_points": (np.array(_POINTS, np.float32) * side).ravel().tolist(),
        "canvas_box": [0.2 * side, 0.15 * side, 0.8 * side, 0.85 * side],
    }
    return pa.Table.from_pylist([row], schema=DETECTED_SCHEMA)
