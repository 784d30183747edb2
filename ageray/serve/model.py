"""The model behind Serve: the faces of all requests under way share its batches. The ages are those of `ageray.stages.predict`."""

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
from ageray.stages.detect import DETECTED_SCHEMA
from ageray.stages.predict import AgeFaces

_POINTS = ((0.36, 0.4), (0.64, 0.4), (0.5, 0.55), (0.39, 0.7), (0.61, 0.7))


def _rows(tables: list[pa.Table]) -> int:
    return sum(table.num_rows for table in tables)


@serve.deployment
class AgeModel:
    """Rows of `finding.DETECTED_SCHEMA` in, rows of the scores table with their posteriors out."""

    def __init__(self, settings: Service) -> None:
        self._aged = AgeFaces(settings.model, settings.threads, posterior=True)
        self._blank = blank_face(bundle.load(settings.model).experiment.align)
        self._hand = ThreadPoolExecutor(1)  # one forward pass at a time, off the event loop
        batched: Any = self.age
        batched.set_max_batch_size(settings.faces_a_batch)
        batched.set_batch_wait_timeout_s(settings.wait_ms / 1000)
        self._aged(self._blank)  # the first pass is slow

    @serve.batch(batch_size_fn=_rows)
    async def age(self, found: list[pa.Table]) -> list[pa.Table]:
        """AgeModel of tables of at most `faces_a_batch` rows each, as Serve collects them."""
        aged = await self._pass(pa.concat_tables(found))
        ends = np.cumsum([table.num_rows for table in found]).tolist()
        return [
            aged.slice(end - table.num_rows, table.num_rows) for table, end in zip(found, ends, strict=True)
        ]

    async def check_health(self) -> None:
        """A forward pass of a blank face: a copy that is stuck, or whose GPU is gone, is replaced by Serve."""
        await self._pass(self._blank)

    async def _pass(self, found: pa.Table) -> pa.Table:
        return await asyncio.get_running_loop().run_in_executor(self._hand, self._aged, found)


def blank_face(align: Align) -> pa.Table:
    """A row of DETECTED_SCHEMA: a gray canvas with points where a face's would be."""
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
