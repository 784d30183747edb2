"""Near-identical pictures among many, by their perceptual hashes.

Two hashes of 64 bits that differ in at most 5 agree in full on one of 6 bands of bits (the pigeonhole principle), so only pictures that share
a band are compared: on faces about a fortieth of all pairs. Shape letters: N pictures searched for, M pictures searched in, P pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NEAR = 6
"""Pictures whose hashes differ in fewer bits are taken for the same (DHAA, Section 3.1) ..."""

ALIKE = 0.96
"""... if their thumbnails correlate as well. Aligned faces are so alike that hashes meet by chance: of UTKFace's pairs at distance 4 only a
third are one picture. Chosen there by eye: of 40 pairs from 0.84 to 0.985, those up to 0.955 showed two people, those from 0.967 one picture."""

_BANDS = ((0, 11), (11, 11), (22, 11), (33, 11), (44, 10), (54, 10))  # first bit and number of bits
_CELLS = 2**18  # pairs compared at once: 2 MiB, which a cache holds
_FAR = np.iinfo(np.int64).max


@dataclass(frozen=True, eq=False)
class Fingerprints:
    """Perceptual hashes (N,) uint64 and thumbnails (N, pixels) uint8, or no thumbnails: then hashes alone decide."""

    phash_N: NDArray[np.uint64]
    thumbnail_N: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.phash_N)

    def only(self, rows: NDArray[np.int64]) -> Fingerprints:
        """Some of them."""
        return Fingerprints(self.phash_N[rows], None if self.thumbnail_N is None else self.thumbnail_N[rows])


def across(searched: Fingerprints, among: Fingerprints) -> NDArray[np.int64]:
    """For each of `searched` the nearest near-identical one of `among`, the first of equally near ones: its row, or -1 (N,)."""
    kinds, kind_N = _kinds(searched)
    others, _ = _kinds(among)
    return _rows(_nearest(searched.only(kinds), among.only(others), same=False), others)[kind_N]


def within(prints: Fingerprints) -> NDArray[np.int64]:
    """For each the nearest near-identical other one: its row, or -1 (N,)."""
    kinds, kind_N = _kinds(prints)
    twin_N = _rows(_nearest(prints.only(kinds), prints.only(kinds), same=True), kinds)[kind_N]
    # of a kind that is there twice, the others' twin is the first and the first's is the second
    order = np.argsort(kind_N, kind="stable")
    repeated = order[1:][kind_N[order[1:]] == kind_N[order[:-1]]]
    twin_N[repeated] = kinds[kind_N[repeated]]
    seconds = repeated[np.unique(kind_N[repeated], return_index=True)[1]]
    twin_N[kinds[kind_N[seconds]]] = seconds
    return twin_N


def _kinds(prints: Fingerprints) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First row of each distinct print, and the number of each row's: copies of one picture are compared once."""
    columns = prints.phash_N[:, None].view(np.uint8)
    if prints.thumbnail_N is not None:
        columns = np.concatenate([columns, prints.thumbnail_N], 1)
    whole = np.ascontiguousarray(columns).view(np.dtype((np.void, columns.shape[1]))).ravel()
    _, first, kind_N = np.unique(whole, return_index=True, return_inverse=True)
    return first.astype(np.int64), kind_N.reshape(-1).astype(np.int64)


def _rows(found_N: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.where(found_N < 0, -1, rows[found_N]) if len(rows) else found_N


def _nearest(searched: Fingerprints, among: Fingerprints, same: bool) -> NDArray[np.int64]:
    """Number of the nearest one, -1 if none is near; `same` leaves out each one itself."""
    best_N = np.full(len(searched), _FAR)
    for mine_P, other_P, distance_P in _candidates(searched, among):
        if same:
            apart = mine_P != other_P
            mine_P, other_P, distance_P = mine_P[apart], other_P[apart], distance_P[apart]
        alike = _alike(searched, among, mine_P, other_P)
        # distance first, then the number
        np.minimum.at(best_N, mine_P[alike], distance_P[alike].astype(np.int64) * len(among) + other_P[alike])
    return np.where(best_N == _FAR, -1, best_N % max(len(among), 1))


def _candidates(
    searched: Fingerprints, among: Fingerprints
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]]:
    """Pairs with fewer than 6 different bits, and how many; a pair comes once for every band that it shares."""
    for first, bits in _BANDS:
        (mine, order), (other, among_order) = (
            _sorted_band(prints.phash_N, first, bits) for prints in (searched, among)
        )
        shared = np.intersect1d(mine, other)
        ends = zip(
            *(np.searchsorted(of, shared, side) for of in (mine, other) for side in ("left", "right")),
            strict=True,
        )
        for start, stop, low, high in ends:
            rows = max(1, _CELLS // (high - low))
            there = among.phash_N[among_order[low:high]]
            for begin in range(start, stop, rows):
                own = order[begin : min(begin + rows, stop)]
                distance = np.bitwise_count(searched.phash_N[own][:, None] ^ there)
                mine_P, other_P = np.nonzero(distance < NEAR)
                yield own[mine_P], among_order[low + other_P], distance[mine_P, other_P]


def _sorted_band(
    phash_N: NDArray[np.uint64], first: int, bits: int
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    band_N = (phash_N >> np.uint64(first)) & np.uint64(2**bits - 1)
    order = np.argsort(band_N, kind="stable")
    return band_N[order], order


def _alike(
    searched: Fingerprints, among: Fingerprints, mine_P: NDArray[np.int64], other_P: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Whether the thumbnails of each pair correlate; two flat ones do, a flat one and another do not."""
    if searched.thumbnail_N is None or among.thumbnail_N is None:
        return np.ones(len(mine_P), bool)
    alike = np.zeros(len(mine_P), bool)
    for start in range(0, len(mine_P), 2**14):
        rows = slice(start, start + 2**14)
        mine, other = (
            _centred(of[at[rows]])
            for of, at in ((searched.thumbnail_N, mine_P), (among.thumbnail_N, other_P))
        )
        power, other_power = (np.einsum("pk,pk->p", of, of) for of in (mine, other))
        dot = np.einsum("pk,pk->p", mine, other)
        flat, other_flat = power < 1, other_power < 1
        alike[rows] = np.where(
            flat | other_flat, flat & other_flat, dot >= ALIKE * np.sqrt(power * other_power)
        )
    return alike


def _centred(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    values: NDArray[np.float32] = pixels.astype(np.float32)
    values -= values.mean(1, keepdims=True)
    return values
