"""What a protocol deals out: faces, or people with all their faces, in an order that a seed and their names alone decide."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

Unit = tuple[str, str, str]
"""Kind (`face` or `subject`), name, data set (empty for a face, whose key says it)."""


class Face(NamedTuple):
    """As much of a row of the faces table as a protocol looks at."""

    key: str
    subject: str | None
    gender: str | None
    group: str | None
    dataset: str

    @property
    def person(self) -> Unit:
        """Who it is. Equal subjects of two data sets are two people; a face without subject stands for itself."""
        return self.single if self.subject is None else ("subject", self.subject, self.dataset)

    @property
    def single(self) -> Unit:
        """The face alone, whoever it shows."""
        return ("face", self.key, "")


def ranked(units: Iterable[Unit], seed: int, purpose: str = "") -> list[Unit]:
    """The distinct units by a hash of the seed, their kind and their name: the same on every machine, whatever the order they come in.

    A second draw from what a first one left needs a `purpose` of its own, or it would go on where the first stopped.
    """
    return sorted(set(units), key=lambda unit: (_rank(unit, f"{seed}{purpose}"), unit))


def shuffled(faces: Iterable[Face], seed: int) -> list[Face]:
    """Faces in the order of `ranked`."""
    by_unit = {face.single: face for face in faces}
    return [by_unit[unit] for unit in ranked(by_unit, seed)]


def _rank(unit: Unit, seed: str) -> bytes:
    text = f"{seed}\0{unit[0]}\0{unit[1]}"  # without the data set: splits of published figures must not move
    return hashlib.blake2b(text.encode(), digest_size=16, person=b"ageray-split").digest()
