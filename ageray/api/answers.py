"""The ages of photos as objects. They hold rows of the scores table (`ageray.schema.SCORES`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False)
class FaceAge:
    """One face of a photo. Ages are in years, coordinates in pixels of the upright photo."""

    image: str
    """The path or url of the photo, or `photo N`."""
    face: int
    """The number of the face in its photo, from the left; for given faces, in their order."""
    age: float | None
    """None where `error` says why."""
    interval: tuple[float, float] | None
    """The 90 % interval."""
    box: NDArray[np.float32] | None
    """(4,): x0 y0 x1 y1. None for a given face without one."""
    landmarks: NDArray[np.float32] | None
    """(5, 2): viewer-left eye, viewer-right eye, nose tip, mouth corners."""
    detection: float | None
    """The detector's score, 0 to 1; None for a given face."""
    posterior: NDArray[np.float32] | None
    """(K,): the probability of each of `Model.years`, before calibration."""
    quality: float | None
    """Of the picture, 0 to 1; None if the model has not learnt it."""
    unusual: float | None
    """Distance from the training faces; above 1 is unusual. None if the model has not learnt it."""
    over_18: float | None
    """The probability that the person has reached 18 years."""
    over_25: float | None
    """The probability that the person has reached 25 years."""
    error: str | None
    """Why the face has no age; None if it has one."""

    def __repr__(self) -> str:
        if self.age is None or self.interval is None:
            return f"<face {self.face} of {self.image}: {self.error}>"
        low, high = self.interval
        return f"<face {self.face} of {self.image}: {self.age:.1f} years, {low:.1f} to {high:.1f}>"


class PhotoAges(Sequence[FaceAge]):
    """The faces of one photo."""

    def __init__(self, image: str, rows: pa.Table) -> None:
        """rows: those of this photo, of the scores table with its posteriors."""
        self.image = image
        """The path or url of the photo, or `photo N`."""
        self._rows = rows
        self._faces: list[FaceAge] = []
        self.error: str | None = None
        """Why the photo gives no face; None if it gives some."""
        for row in rows.to_pylist():
            if row["face"] < 0:
                self.error = row["error"]
            else:
                self._faces.append(_face(row))

    @overload
    def __getitem__(self, number: int) -> FaceAge: ...

    @overload
    def __getitem__(self, number: slice) -> list[FaceAge]: ...

    def __getitem__(self, number: int | slice) -> FaceAge | list[FaceAge]:
        return self._faces[number]

    def __len__(self) -> int:
        return len(self._faces)

    def __repr__(self) -> str:
        if self.error is not None:
            return f"<{self.image}: {self.error}>"
        return repr(self._faces)

    def to_arrow(self) -> pa.Table:
        """The rows of the scores table, with the photo's own where it has no face."""
        return self._rows

    def to_pandas(self) -> pd.DataFrame:
        """The rows of the scores table as a DataFrame."""
        return self._rows.to_pandas()


class CollectionAges(Sequence[PhotoAges]):
    """Several photos, in the order in which they were given."""

    def __init__(self, photos: list[PhotoAges]) -> None:
        self._photos = photos

    @overload
    def __getitem__(self, number: int) -> PhotoAges: ...

    @overload
    def __getitem__(self, number: slice) -> list[PhotoAges]: ...

    def __getitem__(self, number: int | slice) -> PhotoAges | list[PhotoAges]:
        return self._photos[number]

    def __len__(self) -> int:
        return len(self._photos)

    def __repr__(self) -> str:
        return repr(self._photos)

    def faces(self) -> Iterator[FaceAge]:
        """All faces of all photos."""
        for photo in self._photos:
            yield from photo

    def to_arrow(self) -> pa.Table:
        """The rows of the scores table of all photos, in their order."""
        return pa.concat_tables([photo.to_arrow() for photo in self._photos])

    def to_pandas(self) -> pd.DataFrame:
        """The rows of the scores table of all photos as a DataFrame."""
        return self.to_arrow().to_pandas()


def _face(row: dict[str, Any]) -> FaceAge:
    interval = None
    if row["age_low"] is not None:
        interval = (row["age_low"], row["age_high"])
    landmarks = _array(row["landmarks"])
    return FaceAge(
        image=row["image"],
        face=row["face"],
        age=row["age"],
        interval=interval,
        box=_array(row["box"]),
        landmarks=None if landmarks is None else landmarks.reshape(5, 2),
        detection=row["detection"],
        posterior=_array(row["posterior"]),
        quality=row["quality"],
        unusual=row["unusual"],
        over_18=row["over_18"],
        over_25=row["over_25"],
        error=row["error"],
    )


def _array(values: list[float] | None) -> NDArray[np.float32] | None:
    return None if values is None else np.array(values, np.float32)
