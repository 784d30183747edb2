"""Which row of the shards holds which face: row numbers of a part, found by key.

Shape letters: N faces."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class RowIndex:
    """The faces of a part in the order of the shards: `mark` (N,) uint64, a digest of the key, and `age` (N,) float32.

    `age_std` (N,) is the standard deviation of each label in years, None where no label has one. `starts` is the first row of each set of
    faces, ascending from 0: rows of several sets (`data.sets`) stand set by set.
    """

    mark: NDArray[np.uint64]
    age: NDArray[np.float32]
    age_std: NDArray[np.float32] | None = None
    starts: tuple[int, ...] = (0,)

    @classmethod
    def of(
        cls,
        keys: Sequence[str],
        ages: Sequence[float],
        age_std: NDArray[np.float32] | None = None,
        starts: tuple[int, ...] = (0,),
    ) -> RowIndex:
        """From keys, which must be unique, ages, their deviations and the first row of each set."""
        return cls(key_hashes(keys), np.asarray(ages, np.float32), age_std, starts)

    def __len__(self) -> int:
        return len(self.mark)

    def set_of(self, rows: Rows) -> NDArray[np.int64]:
        """The number of the set that each of these rows belongs to, from 0."""
        return np.searchsorted(self.starts, rows, "right") - 1

    def wanted(self, rows: Rows | None = None) -> RowLookup:
        """What finds the faces with these row numbers, or all."""
        rows = np.arange(len(self)) if rows is None else np.unique(rows)
        order = np.argsort(self.mark[rows])
        return RowLookup(self.mark[rows][order], rows[order])


def key_hashes(keys: Sequence[str]) -> NDArray[np.uint64]:
    """A 64-bit digest of each key: among ten million faces two are alike once in 400,000 sets."""
    digests = (hashlib.blake2b(key.encode(), digest_size=8, person=b"ageray-row").digest() for key in keys)
    return np.frombuffer(b"".join(digests), np.uint64)


@dataclass(frozen=True)
class RowLookup:
    """Faces to be found by key: their `mark`, ascending, and row number."""

    mark: NDArray[np.uint64]
    row: Rows

    def find(self, keys: Sequence[str]) -> Rows:
        """Row numbers of faces by key; -1 for one that is not wanted."""
        mark = key_hashes(keys)
        if not len(self.mark):
            return np.full(len(mark), -1)
        place = np.searchsorted(self.mark, mark).clip(max=len(self.mark) - 1)
        return np.where(self.mark[place] == mark, self.row[place], -1)
