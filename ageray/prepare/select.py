"""Which photos become rows of the shards, in which order and in which file: decided on light tables, without bytes."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Hashable, Iterator, Sequence

import numpy as np
import pyarrow as pa

from ageray.audit import near_duplicates
from ageray.prepare.inspect import INSPECTED_SCHEMA
from ageray.prepare.manifest import Problem


def choose(photos: pa.Table, seen: pa.Table) -> tuple[pa.Table, list[Problem]]:
    """The photos to keep, with what was seen of them (columns of MANIFEST and INSPECTED_SCHEMA; the points are those seen), and the
    dropped ones with a reason each.

    `photos` is a manifest sorted by key; `seen` holds a row of INSPECTED_SCHEMA for each, in any order. A photo is dropped for what
    was seen of it, as a copy (see `copies`) if another has the same bytes and the same points, or, where there are fingerprints, as
    nearly the same picture as another (see `near_copies`). The kept rows come in an order fixed by a hash of their keys.
    """
    seen = seen.sort_by("key")
    assert seen.column("key").equals(photos.column("key")), "every photo is seen once"
    table = photos.drop_columns(["landmarks"])
    for field in list(INSPECTED_SCHEMA)[1:]:
        table = table.append_column(field, seen.column(field.name))
    wanted = ("key", "sha256", "landmarks", "age", "kind", "reason")
    keys, hashes, points, ages, kinds, reasons = (table.column(name).to_pylist() for name in wanted)
    # One photo with several rows, each with points of its own, shows several people: those are no copies.
    faces = [digest and (digest, tuple(own or ())) for digest, own in zip(hashes, points, strict=True)]
    faults = dict(copies(keys, faces, ages))
    for row, kind in enumerate(kinds):
        if kind is not None:
            faults.setdefault(row, Problem(keys[row], kind, reasons[row]))
    for row, problem in near_copies(table, faults.keys()):
        faults[row] = problem
    kept = sorted((row for row in range(len(keys)) if row not in faults), key=lambda row: _rank(keys[row]))
    return table.take(pa.array(kept, pa.int64())), [faults[row] for row in sorted(faults)]


def copies(
    keys: Sequence[str], faces: Sequence[Hashable | None], ages: Sequence[float | None]
) -> Iterator[tuple[int, Problem]]:
    """The rows to drop because others are the same face (equal and not None), with reasons.

    If their ages agree the first by key is kept, one with an age before one without, and the rest are of kind
    'duplicate copy'; if the ages differ, nobody knows which is right, and all are of kind 'conflicting ages'.
    """
    groups: dict[Hashable, list[int]] = {}
    for row, face in enumerate(faces):
        if face is not None:
            groups.setdefault(face, []).append(row)
    for rows in groups.values():
        if len(rows) == 1:
            continue
        known = sorted({age for row in rows if (age := ages[row]) is not None})
        rows.sort(key=lambda row: (ages[row] is None, keys[row]))
        if len(known) > 1:
            reason = f"{len(rows)} identical files, ages {', '.join(f'{age:g}' for age in known)}"
            yield from ((row, Problem(keys[row], "conflicting ages", reason)) for row in rows)
        else:
            reason = f"identical to {keys[rows[0]]}"
            yield from ((row, Problem(keys[row], "duplicate copy", reason)) for row in rows[1:])


def near_copies(table: pa.Table, dropped: Collection[int]) -> Iterator[tuple[int, Problem]]:
    """The rows to drop because another that stays is nearly the same picture (`ageray.audit.near_duplicates`), with reasons; none without fingerprints.

    Of a pair whose ages agree (or are not both known) the second by key goes, of kind 'near duplicate'; if the ages differ, nobody knows which is
    right, and both go, of kind 'near duplicate, other age'. A photo with several rows shows several people and is left alone.
    """
    keys, hashes, ages, phash = (table.column(name).to_pylist() for name in ("key", "sha256", "age", "phash"))
    often = Counter(hashes)
    left = [
        row
        for row in range(len(keys))
        if row not in dropped and phash[row] is not None and often[hashes[row]] == 1
    ]
    thumbnails = table.column("thumbnail").take(pa.array(left, pa.int64())).to_pylist()
    pixels = (
        np.frombuffer(b"".join(thumbnails), np.uint8).reshape(len(left), -1)
        if left
        else np.empty((0, 1), np.uint8)
    )
    prints, rows = (
        near_duplicates.Fingerprints(np.array([phash[row] for row in left], np.uint64), pixels),
        np.array(left, np.int64),
    )
    while len(rows):  # what stays may have another twin
        pairs = {
            (min(one, other), max(one, other))
            for one, other in enumerate(near_duplicates.nearest_within(prints))
            if other >= 0
        }
        gone: dict[int, Problem] = {}
        for one, other in sorted(pairs, key=lambda pair: (keys[rows[pair[0]]], keys[rows[pair[1]]])):
            if one in gone or other in gone:
                continue
            first, second = rows[one], rows[other]
            if None not in (ages[first], ages[second]) and ages[first] != ages[second]:
                reason = "nearly the same picture as {}, ages {:g} and {:g}"
                gone[one] = Problem(
                    keys[first],
                    "near duplicate, other age",
                    reason.format(keys[second], ages[first], ages[second]),
                )
                gone[other] = Problem(
                    keys[second],
                    "near duplicate, other age",
                    reason.format(keys[first], ages[second], ages[first]),
                )
            else:
                kept, lost = (one, other) if ages[second] is None or ages[first] is not None else (other, one)
                gone[lost] = Problem(
                    keys[rows[lost]], "near duplicate", f"nearly the same picture as {keys[rows[kept]]}"
                )
        if not gone:
            return
        yield from ((int(rows[place]), problem) for place, problem in gone.items())
        stay = np.array([place for place in range(len(rows)) if place not in gone], np.int64)
        prints, rows = prints.only(stay), rows[stay]


def cut(sizes: Sequence[int], parts: int) -> list[int]:
    """Where to cut rows of these sizes into `parts` runs of about equal sums: ascending positions from 0 to len(sizes).

    There are parts + 1 of them, or fewer if the rows are too few or too unequal; no run is empty.
    """
    ends = np.cumsum(sizes, dtype=np.int64)
    marks = np.searchsorted(ends, ends[-1] * np.arange(1, parts) / parts) + 1
    return sorted({0, *(int(mark) for mark in marks), len(sizes)})


def _rank(key: str) -> bytes:
    # `person` keeps this order independent of the splits', which hash the same keys.
    return hashlib.blake2b(key.encode(), digest_size=8, person=b"ageray-order").digest()
