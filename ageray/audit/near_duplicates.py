"""Near-identical pictures among many, by their perceptual hashes.

Takes fingerprints, gives the row of each picture's nearest near-identical one. Two hashes of 64
bits that differ in at most 5 bits agree fully on one of 6 bands of bits (the pigeonhole principle).
So only pictures that share a band are compared: on faces about a fortieth of all pairs.
Shape letters: N pictures to search for, M pictures to search in, P pairs, K distinct pictures.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NEAR = 6
"""Two pictures are candidates if their hashes differ in fewer bits (DHAA, Section 3.1) ..."""

ALIKE = 0.96
"""... and near-identical if their thumbnails also have at least this correlation.

Aligned faces are so alike that hashes collide by chance: of UTKFace's pairs at distance 4 only a
third show one picture. The value was chosen there by eye, on 40 pairs from 0.84 to 0.985: those up
to 0.955 showed two people, those from 0.967 one picture."""

_BANDS = ((0, 11), (11, 11), (22, 11), (33, 11), (44, 10), (54, 10))  # first bit and number of bits
_CELLS = 2**18  # pairs compared at once: 2 MiB, which fits into a CPU cache
_PAIRS = 2**14  # pairs whose thumbnails are compared at once
_FAR = np.iinfo(np.int64).max


@dataclass(frozen=True, eq=False)
class Fingerprints:
    """Perceptual hashes (N,) uint64 and thumbnails (N, pixels) uint8.

    Without thumbnails the hashes alone decide.
    """

    phash_N: NDArray[np.uint64]
    thumbnail_N: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.phash_N)

    def only(self, rows: NDArray[np.int64]) -> Fingerprints:
        """The fingerprints of `rows`."""
        return Fingerprints(self.phash_N[rows], None if self.thumbnail_N is None else self.thumbnail_N[rows])


def nearest_in(searched: Fingerprints, among: Fingerprints) -> NDArray[np.int64]:
    """For each of `searched`, the row of the nearest near-identical one of `among`, or -1 (N,).

    Of equally near ones the first counts.
    """
    row_K, kind_N = _distinct(searched)
    among_row_K, _ = _distinct(among)
    nearest_K = _nearest(searched.only(row_K), among.only(among_row_K), same=False)
    return _rows(nearest_K, among_row_K)[kind_N]


def nearest_within(pictures: Fingerprints) -> NDArray[np.int64]:
    """For each, the row of the nearest near-identical other one, or -1 (N,)."""
    row_K, kind_N = _distinct(pictures)
    distinct = pictures.only(row_K)
    nearest_N = _rows(_nearest(distinct, distinct, same=True), row_K)[kind_N]
    # where a picture occurs twice or more, the nearest of its first row is its second row, and the
    # nearest of all its other rows is its first row
    order = np.argsort(kind_N, kind="stable")
    repeated = order[1:][kind_N[order[1:]] == kind_N[order[:-1]]]
    nearest_N[repeated] = row_K[kind_N[repeated]]
    seconds = repeated[np.unique(kind_N[repeated], return_index=True)[1]]
    nearest_N[row_K[kind_N[seconds]]] = seconds
    return nearest_N


def _distinct(pictures: Fingerprints) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First row of each distinct fingerprint (K,), and which of these each row equals (N,).

    Copies of one picture are thus compared once.
    """
    columns = pictures.phash_N[:, None].view(np.uint8)
    if pictures.thumbnail_N is not None:
        columns = np.concatenate([columns, pictures.thumbnail_N], 1)
    whole = np.ascontiguousarray(columns).view(np.dtype((np.void, columns.shape[1]))).ravel()
    _, row_K, kind_N = np.unique(whole, return_index=True, return_inverse=True)
    return row_K.astype(np.int64), kind_N.reshape(-1).astype(np.int64)


def _rows(number_N: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """`rows[number]`, -1 where the number is -1."""
    return np.where(number_N < 0, -1, rows[number_N]) if len(rows) else number_N


def _nearest(searched: Fingerprints, among: Fingerprints, same: bool) -> NDArray[np.int64]:
    """Number of the nearest one, -1 if none is near; `same` leaves out each one itself."""
    best_N = np.full(len(searched), _FAR)
    for row_P, among_P, distance_P in _candidates(searched, among):
        if same:
            apart_P = row_P != among_P
            row_P, among_P, distance_P = row_P[apart_P], among_P[apart_P], distance_P[apart_P]
        alike_P = _alike(searched, among, row_P, among_P)
        # ordered by distance first, then by number
        score_P = distance_P[alike_P].astype(np.int64) * len(among) + among_P[alike_P]
        np.minimum.at(best_N, row_P[alike_P], score_P)
    return np.where(best_N == _FAR, -1, best_N % max(len(among), 1))


def _candidates(
    searched: Fingerprints, among: Fingerprints
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]]:
    """Pairs whose hashes differ in fewer than 6 bits, and in how many.

    A pair comes once for every band that it shares.
    """
    for first_bit, bits in _BANDS:
        band_N, order_N = _sorted_band(searched.phash_N, first_bit, bits)
        band_M, order_M = _sorted_band(among.phash_N, first_bit, bits)
        shared = np.intersect1d(band_N, band_M)
        starts, stops = np.searchsorted(band_N, shared, "left"), np.searchsorted(band_N, shared, "right")
        lows, highs = np.searchsorted(band_M, shared, "left"), np.searchsorted(band_M, shared, "right")
        for start, stop, low, high in zip(starts, stops, lows, highs, strict=True):
            phash_M = among.phash_N[order_M[low:high]]
            step = max(1, _CELLS // (high - low))
            for begin in range(start, stop, step):
                rows = order_N[begin : min(begin + step, stop)]
                distance = np.bitwise_count(searched.phash_N[rows][:, None] ^ phash_M)
                row_P, among_P = np.nonzero(distance < NEAR)
                yield rows[row_P], order_M[low + among_P], distance[row_P, among_P]


def _sorted_band(
    phash_N: NDArray[np.uint64], first_bit: int, bits: int
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """A band's values in ascending order, and the rows in this order."""
    band_N = (phash_N >> np.uint64(first_bit)) & np.uint64(2**bits - 1)
    order = np.argsort(band_N, kind="stable")
    return band_N[order], order


def _alike(
    searched: Fingerprints, among: Fingerprints, row_P: NDArray[np.int64], among_P: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Whether the thumbnails of each pair correlate (P,).

    Two thumbnails without contrast do; one without contrast and another do not.
    """
    if searched.thumbnail_N is None or among.thumbnail_N is None:
        return np.ones(len(row_P), bool)
    alike_P = np.zeros(len(row_P), bool)
    for start in range(0, len(row_P), _PAIRS):
        part = slice(start, start + _PAIRS)
        first = _centred(searched.thumbnail_N[row_P[part]])
        second = _centred(among.thumbnail_N[among_P[part]])
        first_power = np.einsum("pk,pk->p", first, first)
        second_power = np.einsum("pk,pk->p", second, second)
        dot = np.einsum("pk,pk->p", first, second)
        first_flat, second_flat = first_power < 1, second_power < 1
        alike_P[part] = np.where(
            first_flat | second_flat,
            first_flat & second_flat,
            dot >= ALIKE * np.sqrt(first_power * second_power),
        )
    return alike_P


def _centred(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    values: NDArray[np.float32] = pixels.astype(np.float32)
    values -= values.mean(1, keepdims=True)
    return values
