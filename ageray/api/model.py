"""Ages of photos in this process, without Ray: `ageray.load().ages(...)`.

The code is that of `ageray score`: `ageray.stages.detect` and `ageray.stages.predict`. The same
photos in the same batches get the same ages, to the bit.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ageray import bundle
from ageray.api import photos as given
from ageray.api.answers import CollectionAges, PhotoAges
from ageray.api.photos import GivenFace, Photo
from ageray.errors import UserError
from ageray.experiment import Scale
from ageray.models.decode import bins
from ageray.score.settings import scoring_settings
from ageray.stages.columns import DETECTED_SCHEMA
from ageray.stages.detect import Item, rows_of
from ageray.stages.predict import AgeFaces

_PHOTOS_AT_ONCE = 64
_CANNOT_READ = "cannot read: "
_Given: TypeAlias = "Sequence[GivenFace] | None"


class Model:
    """A model that is ready to look at photos."""

    def __init__(
        self,
        model: str = "zoo:default",
        *,
        device: str = "auto",
        threads: int = 0,
        precision: str = "auto",
        settings: Sequence[str] = (),
    ) -> None:
        """See `load`."""
        experiment = scoring_settings(model, settings)
        self.name = model
        self.bundle = bundle.load(model)
        """Settings, card and weights (`ageray.bundle.Bundle`)."""
        self._align, self._detect = experiment.align, experiment.data.detect
        self._age_faces = AgeFaces(model, threads, posterior=True, precision=precision, device=device)
        self._batch = Scale().faces_a_batch(self._age_faces.on_gpu)
        self._threads = threads or os.cpu_count() or 1

    @property
    def card(self) -> dict[str, Any]:
        """The model's card: what it was trained on, its figures, its terms."""
        return self.bundle.card

    @property
    def years(self) -> NDArray[np.float32]:
        """(K,): the age of each place of a posterior."""
        return bins(self.bundle.experiment.model).numpy()

    @overload  # a path and bytes are sequences too; this form comes first
    def ages(self, photos: Photo, faces: _Given = None) -> PhotoAges: ...  # type: ignore[overload-overlap]

    @overload
    def ages(self, photos: Sequence[Photo], faces: Sequence[_Given] | None = None) -> CollectionAges: ...

    def ages(self, photos: Any, faces: Any = None) -> PhotoAges | CollectionAges:
        """The ages of the faces in a photo, or in each photo of a list.

        photos: a path, a url, encoded bytes, a picture of Pillow, uint8 pixels (H, W, 3), or a list
        of them; a list is computed in batches. faces: where the faces are, if that is known: for
        each face five points (5, 2), a mapping with `landmarks` and `box`, or a `FaceAge`; for a
        list of photos a list of such lists, with None for photos whose faces are to be detected.

        A photo that gives no face, and a face that gives no age, says why in `error`. A single
        photo that cannot be read raises UserError, as do values of another form.
        """
        if not given.is_many(photos):
            answer = self._of_many([photos], [faces])[0]
            if answer.error is not None and answer.error.startswith(_CANNOT_READ):
                raise UserError(f"{answer.image}: {answer.error}")
            return answer
        collection = given.expand(photos)
        places = [None] * len(collection) if faces is None else list(faces)
        if len(places) != len(collection):
            remedy = "give a list for each photo, or None"
            raise UserError(f"faces: are {len(places)} for {len(collection)} photos; {remedy}")
        return CollectionAges(self._of_many(collection, places))

    def _of_many(self, photos: list[Photo], faces: list[_Given]) -> list[PhotoAges]:
        answers: list[PhotoAges] = []
        with ThreadPoolExecutor(self._threads) as pool:
            for start in range(0, len(photos), _PHOTOS_AT_ONCE):
                chunk = slice(start, start + _PHOTOS_AT_ONCE)
                numbers = range(start, len(photos))
                rows_of_photos = list(pool.map(self._find, photos[chunk], numbers, faces[chunk]))
                answers += self._answers(rows_of_photos)
        return answers

    def _find(self, photo: Photo, number: int, faces: _Given) -> list[dict[str, Any]]:
        """Rows of DETECTED_SCHEMA for one photo, at least one."""
        item: Item = given.item(photo, number)
        places = None if faces is None else given.faces(faces, item.uri)
        return rows_of(item, self._align, self._detect, "auto", places)

    def _answers(self, rows_of_photos: list[list[dict[str, Any]]]) -> Iterator[PhotoAges]:
        rows = []
        for of_photo in rows_of_photos:
            rows += of_photo
        table = pa.Table.from_pylist(rows, schema=DETECTED_SCHEMA)
        batches = []
        for start in range(0, table.num_rows, self._batch):
            batches.append(self._age_faces(table.slice(start, self._batch)))
        scores = pa.concat_tables(batches)
        start = 0
        for of_photo in rows_of_photos:
            yield PhotoAges(of_photo[0]["image"], scores.slice(start, len(of_photo)))
            start += len(of_photo)


def load(
    model: str = "zoo:default",
    *,
    device: str = "auto",
    threads: int = 0,
    precision: str = "auto",
    settings: Sequence[str] = (),
) -> Model:
    """Loads a model for use in this process.

    model: `zoo:NAME`, a bundle or a run folder; local or a url. device: `auto` takes a GPU if there
    is one. threads: CPU threads of this process, 0 for all cores. precision: `float32`, `bf16` or
    `auto`, see `ageray.predictor.Predictor`. settings: of the detector, for example
    `data.detect.threshold=0.8`.

    Raises UserError if there is no such model, or for other settings.
    """
    return Model(model, device=device, threads=threads, precision=precision, settings=settings)
