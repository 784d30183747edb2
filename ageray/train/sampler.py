"""The sampler: which face stands where in an epoch, and batches in that order out of a stream.

The order follows from the seed and the epoch alone, so it is the same for any number of workers and
after any interruption. A row number counts the faces of a part in the order of the shards.

Shape letters: N faces, S steps, B faces of a worker in a step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ageray.data.row_index import RowIndex, Rows

Columns = dict[str, Any]
Face = tuple[Columns, int]
"""A block of the stream, and the index of the face in it."""
_MAX_WEIGHT = 10.0
"""Upper bound on a face's weight or repeat count, relative to the mean, so that rare ages cannot
fill whole batches.
"""


def weights(age_N: NDArray[np.float32], power: float = 1.0) -> NDArray[np.float64]:
    """Weights (N,) with which every year of age counts alike: mean 1, at most 10.

    power: a face counts by the number of faces of its year to the power of minus this; 1 evens the
    years out, 0 changes nothing.
    """
    _, year_N, count = np.unique(np.floor(age_N + 0.5), return_inverse=True, return_counts=True)
    rarity = count**-power
    # bisection: the factor, the same for all years, with which the mean is 1
    low, high = 0.0, float(len(age_N)) * _MAX_WEIGHT
    for _ in range(100):
        middle = (low + high) / 2
        if np.minimum(middle * rarity, _MAX_WEIGHT) @ count < len(age_N):
            low = middle
        else:
            high = middle
    weight_of_year: NDArray[np.float64] = np.minimum(high * rarity, _MAX_WEIGHT)
    return weight_of_year[year_N]


def resampled(weight_N: NDArray[np.float64], start: float) -> Rows:
    """Row numbers, ascending, each as often as its weight, rounded down or up; as many as the
    weights add up to, rounded.

    start: in [0, 1); which of them are rounded up (systematic sampling). Over all starts a face
    comes as often as its weight says.
    """
    ends = np.cumsum(weight_N)
    ends[-1] = np.rint(ends[-1])
    copies = np.diff(np.floor(ends + start), prepend=0).astype(np.int64)
    return np.repeat(np.arange(len(weight_N)), copies)


def counted(
    age_N: NDArray[np.float32], count: int, thinned: tuple[int, int], generator: np.random.Generator
) -> Rows:
    """Row numbers, ascending, of an epoch by `train.balance: counts` (Kwak et al., section 5.1).

    A year of age with fewer than `count` faces shows `count`: all of its faces as often as fits,
    and some once more. A year within `thinned` with more shows `count` of them. All other years
    show each face once.
    """
    year_N = np.floor(age_N + 0.5)
    parts = []
    for year in np.unique(year_N):
        rows = np.flatnonzero(year_N == year)
        shown = _shown(len(rows), float(year), count, thinned)
        further = generator.permutation(rows)[: shown % len(rows)]
        parts.append(np.concatenate([np.repeat(rows, shown // len(rows)), further]))
    return np.sort(np.concatenate(parts))


def epoch_faces(age_N: NDArray[np.float32], count: int, thinned: tuple[int, int]) -> int:
    """How many rows `counted` gives."""
    years, counts = np.unique(np.floor(age_N + 0.5), return_counts=True)
    total = 0
    for year, faces in zip(years.tolist(), counts.tolist(), strict=True):
        total += _shown(faces, year, count, thinned)
    return total


def _shown(faces: int, year: float, count: int, thinned: tuple[int, int]) -> int:
    """How many faces of a year an epoch shows by `train.balance: counts`."""
    if faces < count or thinned[0] <= year <= thinned[1]:
        return count
    return faces


def shuffled(
    faces: RowIndex,
    window: int | None,
    seed: tuple[int, ...],
    resample: bool = False,
    power: float = 1.0,
    shares: Sequence[float] = (1.0,),
    counts: tuple[int, tuple[int, int]] | None = None,
) -> Rows:
    """The row numbers of an epoch in training order.

    A face moves by at most `window` places among those of its set, so that a stream in the order of
    the shards needs no larger buffer; None lets it move anywhere (`train.shuffle_all`). Faces of
    several sets alternate, each set spread evenly over the epoch. resample: show faces by the
    weights of their ages (`weights`), power: its exponent. shares: how often a face of each set
    comes in an epoch, on average. counts: `train.balance_count` and `train.thinned_ages`, to show
    faces by `counted`.
    """
    generator = np.random.default_rng(seed)
    rows = np.arange(len(faces))
    if counts is not None:
        rows = counted(faces.age, *counts, generator)
        return rows[np.argsort(_positions(len(rows), window, generator), kind="stable")]
    set_N = faces.set_of(rows)
    share_N = np.asarray(shares, np.float64)[set_N]
    if resample:
        share_N = share_N * weights(faces.age, power)
    if (share_N != 1).any():
        rows = resampled(share_N, generator.random())
        set_N = set_N[rows]
    positions = _positions(len(rows), window, generator)
    rows = rows[np.lexsort((positions, set_N))]
    if len(faces.starts) == 1:
        return rows
    parts = []
    for count in np.bincount(set_N):
        parts.append((np.arange(count) + generator.random(count)) / max(1, count))
    return rows[np.argsort(np.concatenate(parts), kind="stable")]


def _positions(count: int, window: int | None, generator: np.random.Generator) -> NDArray[np.float64]:
    """Numbers by which `count` rows are sorted: a shuffle within `window` places, or of all."""
    if window is None:
        return generator.random(count)
    return np.arange(count) + generator.uniform(0, window, count)


def share(rows: Rows, batch: int, rank: int = 0, world: int = 1, first: int = 0) -> Rows:
    """One worker's rows of every full batch from step `first` on: (S, B).

    A batch is cut into `world` equal parts. A last, smaller batch is left out.
    """
    steps = len(rows) // batch
    return rows[: steps * batch].reshape(steps, world, batch // world)[first:, rank]


class OrderedBatches:
    """Batches in a given order out of a stream in another order.

    A face that cannot be used is listed in `skipped` (key, reason). So that every batch of every
    worker is full, another face of the batch takes its place: a neighbour, so that cutting the
    batch into parts changes nothing, or the last face of an earlier batch.

    The column `slot` of a batch says for each place whose random map it takes: its own, or that of
    the neighbour that stands there. Faces aligned by actors (`align.placement: actors`) are
    therefore the same as those that the worker aligns.
    """

    def __init__(
        self,
        blocks: Sequence[Iterable[Columns]],
        rows_SB: Rows,
        more: Mapping[str, NDArray[Any]] | None = None,
        starts: Sequence[int] = (0,),
        count: int | None = None,
    ) -> None:
        """blocks: of each set of faces a stream of columns with `row`, `key` and `error` ('' if the
        face can be used), each row once. more: further columns, (N,) by row number. starts: the
        first row number of each set. count: N, where the faces are streamed several times; the
        row r of pass p has the number p N + r in `blocks` and in `rows_SB`.
        """
        self._blocks = [iter(stream) for stream in blocks]
        self._starts, self._rows_SB, self._more = starts, rows_SB, dict(more or {})
        self._count = count
        numbers, counts = np.unique(rows_SB, return_counts=True)
        repeated = counts > 1
        self._further_uses = Counter(
            dict(zip(numbers[repeated].tolist(), (counts[repeated] - 1).tolist(), strict=True))
        )
        self._pool: dict[int, Face | None] = {}
        self._last: Face | None = None
        self.skipped: list[tuple[str, str]] = []

    def __iter__(self) -> Iterator[Columns]:
        for rows_B in self._rows_SB:
            faces = [self._face(row) for row in rows_B.tolist()]
            if self._last is None and not self._find_any():
                return
            full, slots = list[Face](), list[int]()
            for place in range(len(faces)):
                face, slot = self._usable(faces, place)
                full.append(face)
                slots.append(slot)
            yield self._batch(full) | {"slot": np.array(slots)}

    def _find_any(self) -> bool:
        """Reads on to the first face that can be used; False if there is none."""
        while self._last is None:
            if not any(self._read(number) for number in range(len(self._blocks))):
                return False
        return True

    def _set_of(self, row: int) -> int:
        """The number of the set of a row number."""
        return int(np.searchsorted(self._starts, row % (self._count or row + 1), "right")) - 1

    def _face(self, row: int) -> Face | None:
        """The face with a row number; None if it cannot be used."""
        number = self._set_of(row)
        while row not in self._pool:
            if not self._read(number):
                self.skipped.append((f"row {row}", "the shards no longer hold it"))
                return None
        if self._further_uses[row]:
            self._further_uses[row] -= 1
            return self._pool[row]
        return self._pool.pop(row)

    def _read(self, number: int) -> bool:
        """Puts the next block of a set into the pool; False if there is none."""
        block = next(self._blocks[number], None)
        if block is None:
            return False
        for index, row in enumerate(block["row"].tolist()):
            error = block["error"][index]
            if error != "":
                self._pool[row] = None
                self.skipped.append((str(block["key"][index]), str(error)))
                continue
            self._pool[row] = (block, index)
            self._last = self._last or (block, index)
        return True

    def _usable(self, faces: list[Face | None], place: int) -> tuple[Face, int]:
        """The face for a place and the place whose map it takes.

        Tried in turn: the face itself, the other of its pair, those of the pair beside, and so on;
        then the last face of an earlier batch, with the map of this place.
        """
        for step in range(1 << len(faces).bit_length()):
            slot = place ^ step
            face = faces[slot] if slot < len(faces) else None
            if face is not None:
                self._last = face
                return face, slot
        assert self._last is not None
        return self._last, place

    def _batch(self, faces: list[Face]) -> Columns:
        columns: Columns = {}
        for name, values in faces[0][0].items():
            if values.dtype != object:
                columns[name] = np.stack([block[name][index] for block, index in faces])
        if self._count is not None:
            columns["row"] = columns["row"] % self._count
        return self._with_more(columns)

    def _with_more(self, columns: Columns) -> Columns:
        """The columns of a batch with those of `more`."""
        for name, values in self._more.items():
            columns[name] = values[columns["row"]]
        return columns
