"""Decides which photos become rows, in which order and in which file. Works on tables without
bytes.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Hashable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ageray.audit import near_duplicates
from ageray.prepare.inspect import INSPECTED_SCHEMA
from ageray.prepare.manifest import Problem


def choose(photos: pa.Table, inspected: pa.Table) -> tuple[pa.Table, list[Problem]]:
    """The photos to keep, and the dropped ones with a reason each.

    photos: a manifest sorted by key. inspected: a row of INSPECTED_SCHEMA for each photo, in any
    order. The kept rows have the columns of both, with the inspected points, in an order fixed by a
    hash of their keys.

    A photo is dropped if inspection found a fault, if another has the same bytes and the same
    points (`copies`), or, with fingerprints, if another is nearly the same picture (`near_copies`).
    """
    inspected = inspected.sort_by("key")
    assert inspected.column("key").equals(photos.column("key")), "every photo is inspected once"
    table = photos.drop_columns(["landmarks"])
    for field in list(INSPECTED_SCHEMA)[1:]:
        table = table.append_column(field, inspected.column(field.name))
    columns = table.select(["key", "sha256", "landmarks", "age", "kind", "reason"]).to_pydict()
    keys = columns["key"]
    # a photo with several rows, each with its own points, shows several people: those are no copies
    faces: list[Hashable | None] = []
    for sha256, points in zip(columns["sha256"], columns["landmarks"], strict=True):
        faces.append((sha256, tuple(points or ())) if sha256 else None)
    problems = dict(copies(keys, faces, columns["age"]))
    for row, kind in enumerate(columns["kind"]):
        if kind is not None:
            problems.setdefault(row, Problem(keys[row], kind, columns["reason"][row]))
    for row, problem in near_copies(table, problems.keys()):
        problems[row] = problem
    kept = sorted(set(range(len(keys))) - problems.keys(), key=lambda row: _order(keys[row]))
    return table.take(pa.array(kept, pa.int64())), [problems[row] for row in sorted(problems)]


def copies(
    keys: Sequence[str], faces: Sequence[Hashable | None], ages: Sequence[float | None]
) -> Iterator[tuple[int, Problem]]:
    """The rows to drop because another row has the same face (equal and not None), with reasons.

    If the ages agree, the first row by key stays, one with an age before one without; the others
    are of kind 'duplicate copy'. If the ages differ, nobody knows which is right: all rows are
    dropped, of kind 'conflicting ages'.
    """
    groups: dict[Hashable, list[int]] = {}
    for row, face in enumerate(faces):
        if face is not None:
            groups.setdefault(face, []).append(row)
    for rows in groups.values():
        if len(rows) == 1:
            continue
        values = sorted({age for row in rows if (age := ages[row]) is not None})
        rows.sort(key=lambda row: (ages[row] is None, keys[row]))
        kind, reason, dropped = "duplicate copy", f"identical to {keys[rows[0]]}", rows[1:]
        if len(values) > 1:
            kind, dropped = "conflicting ages", rows
            reason = f"{len(rows)} identical files, ages {', '.join(f'{age:g}' for age in values)}"
        for row in dropped:
            yield row, Problem(keys[row], kind, reason)


def near_copies(table: pa.Table, dropped: Collection[int]) -> Iterator[tuple[int, Problem]]:
    """The rows to drop because another row is nearly the same picture, with reasons.

    None without fingerprints. If the ages of a pair agree, or are not both known, the second row by
    key is dropped, of kind 'near duplicate'. If the ages differ, both are dropped, of kind 'near
    duplicate, other age'. A photo with several rows shows several people and stays.
    """
    columns = table.select(["key", "sha256", "age", "phash"]).to_pydict()
    keys, ages, rows_of_file = columns["key"], columns["age"], Counter(columns["sha256"])
    candidates = []
    for row, (sha256, phash) in enumerate(zip(columns["sha256"], columns["phash"], strict=True)):
        if row not in dropped and phash is not None and rows_of_file[sha256] == 1:
            candidates.append(row)
    rows = np.array(candidates, np.int64)
    fingerprints = _fingerprints(table, rows)
    while len(rows):  # a row that stays may have another near duplicate
        problems: dict[int, Problem] = {}
        for first, second in _pairs(fingerprints, keys, rows):
            if first not in problems and second not in problems:
                problems |= _resolve(int(first), int(second), keys, ages)
        if not problems:
            return
        yield from problems.items()
        stay = np.flatnonzero(~np.isin(rows, list(problems)))
        fingerprints, rows = fingerprints.only(stay), rows[stay]


def _fingerprints(table: pa.Table, rows: NDArray[np.int64]) -> near_duplicates.Fingerprints:
    chosen = table.select(["phash", "thumbnail"]).take(pa.array(rows))
    pixels = np.empty((0, 1), np.uint8)
    if len(rows):
        thumbnails = b"".join(chosen.column("thumbnail").to_pylist())
        pixels = np.frombuffer(thumbnails, np.uint8).reshape(len(rows), -1)
    hashes = np.array(chosen.column("phash").to_pylist(), np.uint64)
    return near_duplicates.Fingerprints(hashes, pixels)


def _pairs(
    fingerprints: near_duplicates.Fingerprints, keys: Sequence[str], rows: NDArray[np.int64]
) -> list[tuple[int, int]]:
    """Each row with its nearest duplicate, lower row first, every pair once, sorted by keys."""
    pairs = set()
    for index, other in enumerate(near_duplicates.nearest_within(fingerprints)):
        if other >= 0:
            pairs.add((int(rows[min(index, other)]), int(rows[max(index, other)])))
    return sorted(pairs, key=lambda pair: (keys[pair[0]], keys[pair[1]]))


def _resolve(first: int, second: int, keys: Sequence[str], ages: Sequence[Any]) -> dict[int, Problem]:
    """The rows of a pair to drop, with reasons."""
    if None not in (ages[first], ages[second]) and ages[first] != ages[second]:
        problems = {}
        for row, other in ((first, second), (second, first)):
            reason = f"nearly the same picture as {keys[other]}, ages {ages[row]:g} and {ages[other]:g}"
            problems[row] = Problem(keys[row], "near duplicate, other age", reason)
        return problems
    kept, lost = first, second
    if ages[first] is None and ages[second] is not None:
        kept, lost = second, first
    return {lost: Problem(keys[lost], "near duplicate", f"nearly the same picture as {keys[kept]}")}


def cut(sizes: Sequence[int], parts: int) -> list[int]:
    """Where to cut rows of these sizes into `parts` runs of about equal sums.

    Returns parts + 1 ascending positions from 0 to len(sizes); fewer if the rows are too few or too
    unequal. No run is empty.
    """
    ends = np.cumsum(sizes, dtype=np.int64)
    positions = np.searchsorted(ends, ends[-1] * np.arange(1, parts) / parts) + 1
    return np.unique([0, *positions, len(sizes)]).tolist()  # type: ignore[no-any-return]


def _order(key: str) -> bytes:
    # `person` makes this order independent of the splits, which hash the same keys
    return hashlib.blake2b(key.encode(), digest_size=8, person=b"ageray-order").digest()
