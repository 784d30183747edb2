"""Row numbers of faces: keys and ages in, the number of a face by its key out.

A row number counts the faces of a part (train, val, a stage) in the order of the shards. Keys are
compared by a 64-bit hash, so that an index of ten million faces takes 120 MB.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class RowIndex:
    """The faces of a part in the order of the shards: `key_hash` (N,) uint64, `age` (N,) float32,
    years.

    age_std: (N,) the standard deviation of each label in years; None if no label has one. starts:
    the first row of each set of faces (`data.sets`), ascending from 0; rows stand set by set.
    """

    key_hash: NDArray[np.uint64]
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
        return len(self.key_hash)

    def set_of(self, rows: Rows) -> NDArray[np.int64]:
        """The number of the set that each of these rows belongs to, from 0."""
        return np.searchsorted(self.starts, rows, "right") - 1

    def lookup(self, rows: Rows | None = None) -> RowLookup:
        """A table that finds the faces with these row numbers (default: all)."""
        rows = np.arange(len(self)) if rows is None else np.unique(rows)
        order = np.argsort(self.key_hash[rows])
        return RowLookup(self.key_hash[rows][order], rows[order])


def key_hashes(keys: Sequence[str]) -> NDArray[np.uint64]:
    """A 64-bit hash of each key.

    Two of ten million keys have the same hash in one of 400,000 sets.
    """
    digests = bytearray()
    for key in keys:
        digests += hashlib.blake2b(key.encode(), digest_size=8, person=b"ageray-row").digest()
    return np.frombuffer(bytes(digests), np.uint64)


@dataclass(frozen=True)
class RowLookup:
    """Faces to be found by key: `key_hash`, ascending, and the row number of each."""

    key_hash: NDArray[np.uint64]
    row: Rows

    def find(self, keys: Sequence[str]) -> Rows:
        """The row number of each key; -1 for a key that is not in the table."""
        hashes = key_hashes(keys)
        if not len(self.key_hash):
            return np.full(len(hashes), -1)
        index = np.searchsorted(self.key_hash, hashes).clip(max=len(self.key_hash) - 1)
        return np.where(self.key_hash[index] == hashes, self.row[index], -1)
