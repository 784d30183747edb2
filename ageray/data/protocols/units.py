"""The units that a protocol splits, faces or people with all their faces, in a seeded order.

The order follows from the seed and the names alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

Unit = tuple[str, str, str]
"""Kind (`face` or `subject`), name, data set (empty for a face, whose key contains it)."""


class Face(NamedTuple):
    """The columns of the faces table that protocols use."""

    key: str
    subject: str | None
    gender: str | None
    group: str | None
    dataset: str

    @property
    def person(self) -> Unit:
        """The person. Equal subjects of two data sets are two people; a face without subject is one
        alone.
        """
        return self.single if self.subject is None else ("subject", self.subject, self.dataset)

    @property
    def single(self) -> Unit:
        """The face alone, whoever it shows."""
        return ("face", self.key, "")


def ranked(units: Iterable[Unit], seed: int, purpose: str = "") -> list[Unit]:
    """The distinct units, sorted by a hash of seed, kind and name: the same on every machine.

    purpose: for a second draw from what a first draw left; with the same hash it would continue the
    first order.
    """
    return sorted(set(units), key=lambda unit: (_hash(unit, f"{seed}{purpose}"), unit))


def shuffled(faces: Iterable[Face], seed: int) -> list[Face]:
    """Faces in the order of `ranked`."""
    return sorted(faces, key=lambda face: (_hash(face.single, f"{seed}"), face.single))


def _hash(unit: Unit, seed: str) -> bytes:
    text = f"{seed}\0{unit[0]}\0{unit[1]}"  # without the data set: splits of published figures must not move
    return hashlib.blake2b(text.encode(), digest_size=16, person=b"ageray-split").digest()
