"""Which photos become rows of the shards, in which order and in which file: decided on light tables, without bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator, Sequence

import numpy as np
import pyarrow as pa

from ageray.data.inspection import SEEN
from ageray.data.manifest import Problem


def choose(photos: pa.Table, seen: pa.Table) -> tuple[pa.Table, list[Problem]]:
    """The photos to keep, with what was seen of them (columns of MANIFEST and SEEN; the points are those seen), and the
    dropped ones with a reason each.

    `photos` is a manifest sorted by key; `seen` holds a row of SEEN for each, in any order. A photo is dropped for what
    was seen of it, or as a copy (see `copies`) if another has the same bytes and the same points. The kept rows come in
    an order fixed by a hash of their keys.
    """
    seen = seen.sort_by("key")
    assert seen.column("key").equals(photos.column("key")), "every photo is seen once"
    table = photos.drop_columns(["landmarks"])
    for field in list(SEEN)[1:]:
        table = table.append_column(field, seen.column(field.name))
    wanted = ("key", "sha256", "landmarks", "age", "kind", "reason")
    keys, hashes, points, ages, kinds, reasons = (table.column(name).to_pylist() for name in wanted)
    # One photo with several rows, each with points of its own, shows several people: those are no copies.
    faces = [digest and (digest, tuple(own or ())) for digest, own in zip(hashes, points, strict=True)]
    faults = dict(copies(keys, faces, ages))
    for row, kind in enumerate(kinds):
        if kind is not None:
            faults.setdefault(row, Problem(keys[row], kind, reasons[row]))
    kept = sorted((row for row in range(len(keys)) if row not in faults), key=lambda row: _rank(keys[row]))
    return table.take(pa.array(kept, pa.int64())), [faults[row] for row in sorted(faults)]


def copies(keys: Sequence[str], faces: Sequence[Hashable | None], ages: Sequence[float | None]) -> Iterator[tuple[int, Problem]]:
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
