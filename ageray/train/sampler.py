"""Which face stands where in an epoch: drawn from numbers alone, so that it is the same for any number of workers and after any interruption.

A row number counts the faces of a part in the order of the shards. Shape letters: N faces, S steps, B faces of a worker in a step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ageray.data.row_index import RowIndex, Rows

Columns = dict[str, Any]
_MOST = 10.0
"""How much more than the mean a face may count or come: the only faces of an age would otherwise fill whole batches."""


def weights(age_N: NDArray[np.float32], power: float = 1.0) -> NDArray[np.float64]:
    """What each face must count for every year of age to count alike: (N,), mean 1, at most 10.

    power: a face counts by the number of faces of its year to the power of minus this; 1 evens the years out, 0 changes nothing.
    """
    _, year_N, count = np.unique(np.floor(age_N + 0.5), return_inverse=True, return_counts=True)
    rarity = count**-power
    low, high = 0.0, float(len(age_N)) * _MOST
    for _ in range(100):  # the level of a year, such that the mean is 1
        middle = (low + high) / 2
        low, high = (
            (middle, high) if np.minimum(middle * rarity, _MOST) @ count < len(age_N) else (low, middle)
        )
    each = np.minimum(high * rarity, _MOST)
    found: NDArray[np.float64] = each[year_N]
    return found


def resampled(weight_N: NDArray[np.float64], start: float) -> Rows:
    """Row numbers, ascending, each as often as its weight says, rounded up or down; `start` in [0, 1) says for which.

    Returns as many rows as the weights add up to, rounded.
    """
    ends = np.cumsum(weight_N)
    ends[-1] = np.rint(ends[-1])
    copies = np.diff(np.floor(ends + start), prepend=0).astype(np.int64)
    return np.repeat(np.arange(len(weight_N)), copies)


def shuffled(
    faces: RowIndex,
    window: int,
    seed: tuple[int, ...],
    resample: bool = False,
    power: float = 1.0,
    shares: Sequence[float] = (1.0,),
) -> Rows:
    """The row numbers of an epoch in training order.

    A face moves by at most `window` places among those of its set, so that a stream in the order of the shards needs no larger buffer. Faces
    of several sets alternate, each set spread evenly over the epoch.
    resample: faces come by the weights of their ages, see `weights`; `power` is its exponent. shares: how often a face of each set comes,
    before the ages are evened out; of a fraction the epoch's number decides who comes.
    """
    generator = np.random.default_rng(seed)
    rows = np.arange(len(faces))
    set_N = faces.set_of(rows)
    share_N = np.asarray(shares, np.float64)[set_N]
    if resample:
        share_N = share_N * weights(faces.age, power)
    if (share_N != 1).any():
        rows = resampled(share_N, generator.random())
        set_N = set_N[rows]
    place_N = np.arange(len(rows)) + generator.uniform(0, window, len(rows))
    rows = rows[np.lexsort((place_N, set_N))]
    if len(faces.starts) == 1:
        return rows
    place_N = np.concatenate(
        [(np.arange(count) + generator.random(count)) / count for count in np.bincount(set_N) if count]
    )
    return rows[np.argsort(place_N, kind="stable")]


def share(rows: Rows, batch: int, rank: int = 0, world: int = 1, first: int = 0) -> Rows:
    """One worker's rows of every whole batch from step `first` on: (S, B). Batches are cut into `world` equal runs; a last, smaller batch is
    left out."""
    steps = len(rows) // batch
    return rows[: steps * batch].reshape(steps, world, batch // world)[first:, rank]


class OrderedBatches:
    """Batches in a given order out of a stream in another. `skipped` lists keys and reasons of faces that could not be used.

    So that every batch is whole, on every worker, the place of such a face is taken by another of the batch (a neighbour, so that cutting the
    batch into parts changes nothing), or by the last one before.

    The column `slot` says which face of the batch stands at each place: its own number, but for such a neighbour. The neighbour comes with its
    own random map, so that faces aligned ahead (`align.placement: actors`) are those that the worker would align.
    """

    def __init__(
        self,
        blocks: Sequence[Iterable[Columns]],
        rows_SB: Rows,
        more: Mapping[str, NDArray[Any]] | None = None,
        starts: Sequence[int] = (0,),
    ) -> None:
        """blocks: of each set of faces a stream of columns with `row`, `key` and `error` ('' where all is well), each wanted row once.
        more: further columns, (N,) by row number. starts: the first row number of each set."""
        self._blocks = [iter(stream) for stream in blocks]
        self._starts, self._wanted, self._more = starts, rows_SB, dict(more or {})
        numbers, counts = np.unique(rows_SB, return_counts=True)
        self._again = Counter(
            dict(zip(numbers[counts > 1].tolist(), (counts[counts > 1] - 1).tolist(), strict=True))
        )
        self._pool: dict[int, tuple[Columns, int] | None] = {}
        self._last: tuple[Columns, int] | None = None
        self.skipped: list[tuple[str, str]] = []

    def __iter__(self) -> Iterator[Columns]:
        for rows_B in self._wanted:
            faces = [self._face(row) for row in rows_B.tolist()]
            while self._last is None:
                if not any(self._read(number) for number in range(len(self._blocks))):
                    return
            found = [self._instead(faces, slot) for slot in range(len(faces))]
            yield self._batch([face for face, _ in found]) | {"slot": np.array([slot for _, slot in found])}

    def _face(self, row: int) -> tuple[Columns, int] | None:
        while row not in self._pool:
            if not self._read(int(np.searchsorted(self._starts, row, "right")) - 1):
                self.skipped.append((f"row {row}", "the shards no longer hold it"))
                return None
        if self._again[row]:
            self._again[row] -= 1
            return self._pool[row]
        return self._pool.pop(row)

    def _read(self, number: int) -> bool:
        """Takes the next block of a set into the pool; False where there is none."""
        block = next(self._blocks[number], None)
        if block is None:
            return False
        for place, row in enumerate(block["row"].tolist()):
            error = block["error"][place]
            self._pool[row] = (block, place) if error == "" else None
            if error != "":
                self.skipped.append((str(block["key"][place]), str(error)))
            elif self._last is None:
                self._last = (block, place)
        return True

    def _instead(self, faces: list[tuple[Columns, int] | None], slot: int) -> tuple[tuple[Columns, int], int]:
        """The face for a place, and the place that it was meant for; its own where it comes from an earlier batch."""
        near = (slot ^ step for step in range(1 << len(faces).bit_length()) if slot ^ step < len(faces))
        for place in near:
            found = faces[place]
            if found is not None:
                self._last = found
                return found, place
        assert self._last is not None
        return self._last, slot

    def _batch(self, faces: list[tuple[Columns, int]]) -> Columns:
        names = [name for name, values in faces[0][0].items() if values.dtype != object]
        columns = {name: np.stack([block[name][place] for block, place in faces]) for name in names}
        return columns | {name: values[columns["row"]] for name, values in self._more.items()}
