"""Second stage where the detector is on a GPU: detector, alignment and model in one process.
Decoded photos in, rows of the scores table out.

While the device searches some photos or computes ages, threads cut the canvases of those before.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ageray.experiment import Detect
from ageray.faces.canvases import canvas_side
from ageray.faces.detect import Face, Picture
from ageray.faces.detect_batch import BatchYuNet
from ageray.faces.images import Photo
from ageray.machine.cpus import usable_cpus
from ageray.stages.attempts import FATAL, Attempts
from ageray.stages.columns import DECODED_SCHEMA, DETECTED_SCHEMA, SIBLINGS, SOUGHT_SCHEMA
from ageray.stages.decode import photo_of_row
from ageray.stages.detect import Item, carry, error_row, in_order, rows_of_faces
from ageray.stages.predict import AgeFaces

_PHOTOS_AT_ONCE = 64
"""Photos that are searched together."""
_CANVAS_BYTES = 256 * 2**20
"""Of canvases that are cut for one table. Those of two tables are in memory, or of two photos if
these have more: 64 photos of crowds would have 8 GB."""

Rows = list[dict[str, Any]]


class _Sought(NamedTuple):
    """A photo whose faces are found: its row's number, and what `photo_of_row` gives."""

    number: int
    item: Item
    picture: Picture
    photo: Photo | None


class AgePhotos:
    """Finds the faces in decoded photos and gives them their ages. Holds the detector and the
    model."""

    def __init__(
        self,
        model: str,
        detect: Detect,
        cutters: int = 0,
        threads: int = 0,
        posterior: bool = False,
        batch: int = 256,
        run: str | None = None,
        precision: str = "auto",
        device: str = "auto",
        cuda_graphs: bool = True,
    ) -> None:
        """cutters: threads that cut canvases, 0 for all cores. batch: faces of a forward pass, at
        most. run: as for `Attempts`. Other arguments: as of `AgeFaces`."""
        cv2.setNumThreads(1)
        self._ages = AgeFaces(model, threads, posterior, precision, device, cuda_graphs)
        self._align = self._ages.align
        self._detector = BatchYuNet(detect, self._ages.device)
        self._cutters = ThreadPoolExecutor(cutters or usable_cpus())
        self._batch, self._run = batch, run
        self._most = max(1, _CANVAS_BYTES // (3 * canvas_side(self._align) ** 2))

    def __call__(self, rows: pa.Table) -> Iterator[pa.Table]:
        """Rows of DECODED_SCHEMA to rows of the scores table, in their order. Further columns are
        carried.

        If the process died on these photos before (in this run, on this machine), canvases are cut
        one after the other, so that it is known which photo it dies on.
        """
        attempts = Attempts(rows, self._run, "-faces")
        with attempts:
            before: tuple[pa.Table, list[Future[Rows] | None]] | None = None
            for start in range(0, rows.num_rows, _PHOTOS_AT_ONCE):
                for following in self._cut(rows.slice(start, _PHOTOS_AT_ONCE), start, attempts):
                    if before is not None:
                        yield from self._aged(*before)
                    before = following
            if before is not None:
                yield from self._aged(*before)
        if not rows.num_rows:
            yield from self._aged(rows, [])

    def _cut(
        self, part: pa.Table, start: int, attempts: Attempts
    ) -> Iterator[tuple[pa.Table, list[Future[Rows] | None]]]:
        """Finds the faces of photos, and begins to cut their canvases. Gives a few photos after the
        other: their rows, and what will be the rows of each; None for a row that is done."""
        photos = _photos(part)
        found = self._detector.detect([each.picture for each in photos])
        futures: list[Future[Rows] | None] = []
        first = count = 0
        for each, faces in zip(photos, found, strict=True):
            futures += [None] * (each.number - first - len(futures))
            if count and count + len(faces) > self._most:
                yield part.slice(first, len(futures)), futures
                first, count, futures = each.number, 0, []
            futures.append(self._begun(each, faces, start + each.number, attempts))
            count += len(faces)
        futures += [None] * (part.num_rows - first - len(futures))
        yield part.slice(first), futures

    def _begun(self, each: _Sought, faces: list[Face], number: int, attempts: Attempts) -> Future[Rows]:
        """Begins to cut the canvases of a photo: what will be its rows."""
        if not attempts.again:
            return self._cutters.submit(self._rows, each, faces)
        if not attempts.reach(number):
            return self._cutters.submit(_given_up, each.item)
        future = self._cutters.submit(self._rows, each, faces)
        future.result()
        return future

    def _rows(self, each: _Sought, faces: list[Face]) -> Rows:
        ordered = in_order(each.item, faces, each.picture.photo)
        return rows_of_faces(each.item, each.photo, self._align, ordered)

    def _aged(self, part: pa.Table, futures: list[Future[Rows] | None]) -> Iterator[pa.Table]:
        """The rows of scores of some photos, in tables of a batch of faces."""
        table = _with_faces(part, futures)
        for first in range(0, max(1, table.num_rows), self._batch):
            yield self._ages(table.slice(first, self._batch))


def _photos(part: pa.Table) -> list[_Sought]:
    """The photos of a table whose faces are still to be found."""
    photos = []
    pixels = part.column("pixels")
    rows = part.select(["image", "content", "sizes", "subject_key"]).to_pylist()
    for number in np.flatnonzero(pc.is_valid(pixels).to_numpy()).tolist():
        photos.append(_Sought(number, *photo_of_row(rows[number], pixels[number].as_buffer())))
    return photos


def _given_up(item: Item) -> Rows:
    return [error_row(item, FATAL)]


def _with_faces(part: pa.Table, futures: list[Future[Rows] | None]) -> pa.Table:
    """Rows of DETECTED_SCHEMA, with those of a photo's faces in its place, and further columns."""
    if not any(futures):
        return part.drop_columns(SOUGHT_SCHEMA.names)
    detected = part.select(DETECTED_SCHEMA.names)
    rows: Rows = []
    count_N = np.ones(part.num_rows, np.int32)
    siblings_N = count_N.copy()
    if SIBLINGS.name in part.column_names:
        siblings_N[:] = part.column(SIBLINGS.name).to_numpy()
    for number, future in enumerate(futures):
        if future is None:
            rows += detected.slice(number, 1).to_pylist()
        else:
            rows += future.result()
            count_N[number] = siblings_N[number] = len(future.result())
    known = [*DECODED_SCHEMA.names, SIBLINGS.name]
    further = [field.name for field in part.schema if field.name not in known]
    return carry(part.select(further), pa.Table.from_pylist(rows, DETECTED_SCHEMA), count_N, siblings_N)
