"""Both stages in one process: photos in, rows of the scores table out."""

from __future__ import annotations

import pyarrow as pa

from ageray.experiment import Align, Detect
from ageray.stages.attempts import MAX_DEATHS
from ageray.stages.columns import Search
from ageray.stages.detect import face_batches, given_up
from ageray.stages.predict import AgeFaces

_PHOTOS_AT_ONCE = 8
"""Photos whose bytes and canvases are in memory at the same time."""


class Stages:
    """Gives the faces in photos their ages, on the CPU. Holds the detector and the model."""

    def __init__(
        self,
        model: str,
        align: Align,
        detect: Detect,
        search: Search,
        posterior: bool,
        threads: int,
        batch: int,
    ) -> None:
        """batch: faces of a forward pass, at most. Other arguments: as in the two stages."""
        self._ages = AgeFaces(model, threads, posterior, device="cpu")
        self._align, self._detect, self._search, self._batch = align, detect, search, batch

    def __call__(self, task: tuple[pa.Table, int]) -> pa.Table:
        """Rows of the scores table for (photos, how often a process died on them). `photos` are
        those of `find_faces`; further columns are carried.
        """
        photos, deaths = task
        if deaths >= MAX_DEATHS:
            return self._ages(given_up(photos))
        tables = []
        for start in range(0, photos.num_rows, _PHOTOS_AT_ONCE):
            some = photos.slice(start, _PHOTOS_AT_ONCE)
            for faces in face_batches(some, self._align, self._detect, self._search, run=None):
                for first in range(0, faces.num_rows, self._batch):
                    tables.append(self._ages(faces.slice(first, self._batch)))
        return pa.concat_tables(tables)
