"""The audit of a split: who and what is on both sides, and what knowing only that would score. Shape letters: N faces, M test faces."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ageray.audit import near_duplicates
from ageray.audit.conflicts import EXAMPLES, Ages, Rows, identical_conflicts, near_conflicts
from ageray.audit.near_duplicates import Fingerprints

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Audit:
    """What `audit` found; counts are of images unless they say otherwise, shares of all test images, ages in years.

    Null means that the table does not tell (no subjects, no hashes, no ages).
    """

    images: dict[str, int]
    """Of `train` and `test`."""
    subjects: dict[str, Any]
    """`train` and `test`: distinct subjects; `unknown_train` and `unknown_test`: images without one; `shared`: test images whose subject is in
    training, `share` of them."""
    byte_identical: dict[str, Any]
    """`across`: test images of which a training image is a copy, `share` of them; `train` and `test`: images with a copy in the same part."""
    near_identical: dict[str, Any]
    """The same for pictures that are nearly the same (see `ageray.audit.near_duplicates`), byte-identical ones included; `confirmed` says whether
    thumbnails confirmed it; `examples`: keys of a test image and of its nearest training image."""
    leaked: dict[str, Any]
    """Test images that share a subject or a picture with training, `share` of them."""
    oracle: dict[str, float | None]
    """`mae` of answering with the mean training age of the test face's subject, the training median where the subject is not in training."""
    constant: dict[str, float | None]
    """`mae` of always answering with the training `median`."""
    conflicts: dict[str, Any]
    """`identical`: groups of byte-identical images with different ages (`groups`, `images`); `near`: nearest near-identical pairs (`pairs`), how
    many of them differ in age (`differ`) and by how much on average (`mean_difference`, over those); `examples` of both, with ages."""
    ages: dict[str, dict[str, int]]
    """Images of each decade, of `train` and `test`."""
    groups: dict[str, dict[str, int]]
    genders: dict[str, dict[str, int]]

    def to_dict(self) -> dict[str, Any]:
        """For a report."""
        return asdict(self)

    def lines(self) -> list[str]:
        """A few sentences; those about a leak begin with `leak:`, those about wrong labels with `labels:`."""
        said = [f"{self.images['train']:,} training and {self.images['test']:,} test images"]
        if self.subjects["shared"] is None:
            said.append("subjects are not known: the same person may be on both sides of the split")
        else:
            said.append(_finding(self.subjects, "shared", "show a person who is in the training set"))
            if self.subjects["unknown_test"] or self.subjects["unknown_train"]:
                said.append(
                    f"{self.subjects['unknown_train']:,} training and {self.subjects['unknown_test']:,} test images have no subject"
                )
        for found, what in ((self.byte_identical, "byte-identical"), (self.near_identical, "near-identical")):
            if found["across"] is None:
                said.append(f"no fingerprints: {what} images were not looked for")
                continue
            said.append(_finding(found, "across", f"are {what} to a training image"))
            said.append(
                f"{found['train']:,} training and {found['test']:,} test images have a {what} copy in their own part"
            )
        said += self._labels()
        if self.constant["mae"] is not None:
            said.append(
                f"always the training median, {self.constant['median']:g} years: MAE {self.constant['mae']:.2f}"
            )
        if self.oracle["mae"] is not None and self.subjects["shared"]:
            said.append(
                f"leak: knowing only who it is (the subject's mean training age) has MAE {self.oracle['mae']:.2f}"
            )
        return said

    def _labels(self) -> list[str]:
        said, identical, near = [], self.conflicts["identical"], self.conflicts["near"]
        if identical is not None and identical["groups"]:
            said.append(
                f"labels: {identical['images']:,} byte-identical images in {identical['groups']:,} groups have different ages"
            )
        if near is not None and near["differ"]:
            by = f"by {near['mean_difference']:.1f} years on average"
            said.append(
                f"labels: {near['differ']:,} of {near['pairs']:,} near-identical pairs have different ages, {by}"
            )
        return said


@dataclass(frozen=True, eq=False)
class _Part:
    """Columns of one side; a number of -1 means unknown."""

    table: pa.Table
    age_N: Ages
    subject_N: Rows
    digest_N: Rows


def audit(train: pa.Table, test: pa.Table) -> Audit:
    """Audits tables with the faces table's columns `key`, `age`, `subject`, `group`, `gender` and `dataset`, and each image's fingerprint: `digest`
    (string), `phash` (uint64) and `thumbnail` (binary). Only `key` is needed; what is missing or null counts as unknown.

    `train` is everything that training saw, validation included if it chose anything. Subjects are compared within a dataset.
    Without thumbnails near-identity rests on hashes alone, which among aligned faces often meet by chance.
    Raises ValueError if a table has no row or no `key`.
    """
    for name, table in (("train", train), ("test", test)):
        if table.num_rows == 0 or "key" not in table.column_names:
            raise ValueError(
                f"{name}: an audit needs rows with a key; got {table.num_rows} rows with {', '.join(table.column_names)}"
            )
    seen, tested = _parts(train, test)
    keys = pa.concat_arrays([_column(table, "key", pa.string()) for table in (train, test)]).to_pylist()
    subjects, shared_M = _subjects(seen, tested)
    identical, copied_M = _identical(seen, tested)
    near, twin_M, pairs = _near(train, test, keys)
    leaked_M = shared_M | copied_M | (twin_M >= 0)
    unknown = subjects["shared"] is None and identical["across"] is None and near["across"] is None
    constant, oracle = _floors(seen, tested)
    age_N, digest_N = (
        np.concatenate([seen.age_N, tested.age_N]),
        np.concatenate([seen.digest_N, tested.digest_N]),
    )
    sides = {"train": train, "test": test}
    return Audit(
        images={name: table.num_rows for name, table in sides.items()},
        subjects=subjects,
        byte_identical=identical,
        near_identical=near,
        leaked=_counted("images", None if unknown else leaked_M),
        oracle=oracle,
        constant=constant,
        conflicts={
            "identical": None if identical["across"] is None else identical_conflicts(digest_N, age_N, keys),
            "near": None if near["across"] is None else near_conflicts(pairs, age_N, keys),
        },
        ages={name: _decades(part.age_N) for name, part in (("train", seen), ("test", tested))},
        groups={name: _histogram(table, "group") for name, table in sides.items()},
        genders={name: _histogram(table, "gender") for name, table in sides.items()},
    )


def _finding(found: dict[str, Any], name: str, what: str) -> str:
    if not found[name]:
        return f"no test images {what}"
    return f"leak: {found[name]:,} test images ({found['share']:.1%}) {what}"


def _counted(name: str, chosen_M: NDArray[np.bool_] | None) -> dict[str, Any]:
    """A number and the share of all test images; null where it cannot be known."""
    return (
        {name: None, "share": None}
        if chosen_M is None
        else {name: int(chosen_M.sum()), "share": float(chosen_M.mean())}
    )


def _column(table: pa.Table, name: str, kind: pa.DataType) -> pa.Array:
    if name not in table.column_names:
        return pa.nulls(table.num_rows, kind)
    column = table.column(name).cast(kind)
    return column.combine_chunks() if not isinstance(column, pa.Array) else column


def _numbers(columns: list[pa.Array]) -> list[Rows]:
    """Equal strings of both sides as equal numbers; null as -1."""
    encoded = pa.concat_arrays(columns).dictionary_encode().indices.cast(pa.int64())
    numbers = pc.fill_null(encoded, -1).to_numpy(zero_copy_only=False)
    return [numbers[: len(columns[0])], numbers[len(columns[0]) :]]


def _parts(train: pa.Table, test: pa.Table) -> tuple[_Part, _Part]:
    tables, names = (train, test), []
    for table in tables:
        dataset = pc.fill_null(_column(table, "dataset", pa.string()), "")
        names.append(pc.binary_join_element_wise(dataset, _column(table, "subject", pa.string()), "\0"))
    subjects, digests = _numbers(names), _numbers([_column(table, "digest", pa.string()) for table in tables])
    ages = [_column(table, "age", pa.float64()).to_numpy(zero_copy_only=False) for table in tables]
    first, second = (
        _Part(table, *columns) for table, *columns in zip(tables, ages, subjects, digests, strict=True)
    )
    return first, second


def _subjects(seen: _Part, tested: _Part) -> tuple[dict[str, Any], NDArray[np.bool_]]:
    shared_M = np.isin(tested.subject_N, seen.subject_N[seen.subject_N >= 0])
    known = (seen.subject_N >= 0).any() and (tested.subject_N >= 0).any()
    figures: dict[str, Any] = {}
    for name, part in (("train", seen), ("test", tested)):
        figures[name] = len(np.unique(part.subject_N[part.subject_N >= 0]))
        figures[f"unknown_{name}"] = int((part.subject_N < 0).sum())
    return {**figures, **_counted("shared", shared_M if known else None)}, shared_M


def _identical(seen: _Part, tested: _Part) -> tuple[dict[str, Any], NDArray[np.bool_]]:
    copied_M = np.isin(tested.digest_N, seen.digest_N[seen.digest_N >= 0])
    known = (seen.digest_N >= 0).any() and (tested.digest_N >= 0).any()
    if not known:
        return {**_counted("across", None), "train": None, "test": None}, copied_M
    return {
        **_counted("across", copied_M),
        "train": _repeated(seen.digest_N),
        "test": _repeated(tested.digest_N),
    }, copied_M


def _repeated(number_N: Rows) -> int:
    counts = np.bincount(number_N[number_N >= 0]) if (number_N >= 0).any() else np.zeros(1, np.int64)
    return int(counts[counts > 1].sum())


def _near(train: pa.Table, test: pa.Table, keys: list[str]) -> tuple[dict[str, Any], Rows, NDArray[np.int64]]:
    """Figures, each test image's nearest training image (-1: none), and the pairs of nearest ones as rows of train and then test (P, 2)."""
    (seen, seen_rows), (tested, tested_rows) = (_prints(table) for table in (train, test))
    twin_M = np.full(test.num_rows, -1)
    if len(seen) == 0 or len(tested) == 0:
        figures = {**_counted("across", None), "train": None, "test": None, "confirmed": None, "examples": []}
        return figures, twin_M, np.empty((0, 2), np.int64)
    offset = train.num_rows
    found = [
        _pairs(tested_rows + offset, seen_rows, near_duplicates.across(tested, seen)),
        _pairs(seen_rows, seen_rows, near_duplicates.within(seen)),
        _pairs(tested_rows + offset, tested_rows + offset, near_duplicates.within(tested)),
    ]
    twin_M[found[0][:, 0] - offset] = found[0][:, 1]
    figures = {
        **_counted("across", twin_M >= 0),
        "train": len(found[1]),
        "test": len(found[2]),
        "confirmed": seen.thumbnail_N is not None and tested.thumbnail_N is not None,
        "examples": [(keys[mine], keys[other]) for mine, other in found[0][:EXAMPLES]],
    }
    return figures, twin_M, np.unique(np.sort(np.concatenate(found), 1), axis=0)


def _prints(table: pa.Table) -> tuple[Fingerprints, Rows]:
    """Fingerprints of the images that have one, and their rows."""
    phash, thumbnail = _column(table, "phash", pa.uint64()), _column(table, "thumbnail", pa.binary())
    rows = np.flatnonzero(phash.is_valid().to_numpy(zero_copy_only=False))
    thumbnails = None
    if len(rows) and thumbnail.take(rows).null_count == 0:
        pixels = b"".join(thumbnail.take(rows).to_pylist())
        thumbnails = np.frombuffer(pixels, np.uint8).reshape(len(rows), -1)
    return Fingerprints(phash.take(rows).to_numpy(zero_copy_only=False).astype(np.uint64), thumbnails), rows


def _pairs(rows: Rows, others: Rows, twin_N: Rows) -> NDArray[np.int64]:
    there = twin_N >= 0
    return np.stack([rows[there], others[twin_N[there]]], 1).astype(np.int64)


def _floors(seen: _Part, tested: _Part) -> tuple[dict[str, float | None], dict[str, float | None]]:
    known_N, known_M = np.isfinite(seen.age_N), np.isfinite(tested.age_N)
    if not known_N.any() or not known_M.any():
        return {"median": None, "mae": None}, {"mae": None}
    true_M, median = tested.age_N[known_M], float(np.median(seen.age_N[known_N]))
    taught_N = known_N & (seen.subject_N >= 0)
    subjects = int(max(seen.subject_N.max(), tested.subject_N.max(), 0)) + 1
    images = np.bincount(seen.subject_N[taught_N], minlength=subjects)
    sums = np.bincount(seen.subject_N[taught_N], seen.age_N[taught_N], minlength=subjects)
    answers = np.append(
        np.where(images > 0, sums / np.maximum(images, 1), median), median
    )  # the last for -1, unknown
    oracle = float(np.abs(answers[tested.subject_N[known_M]] - true_M).mean())
    return {"median": median, "mae": float(np.abs(median - true_M).mean())}, {"mae": oracle}


def _decades(age_N: Ages) -> dict[str, int]:
    known = age_N[np.isfinite(age_N)]
    numbers, counts = np.unique(np.floor(known / 10).astype(int), return_counts=True)
    found = {
        f"{10 * number}-{10 * number + 9}": int(count) for number, count in zip(numbers, counts, strict=True)
    }
    return found | ({UNKNOWN: len(age_N) - len(known)} if len(known) < len(age_N) else {})


def _histogram(table: pa.Table, name: str) -> dict[str, int]:
    counted = pc.value_counts(pc.fill_null(_column(table, name, pa.string()), UNKNOWN)).to_pylist()
    return {
        row["values"]: row["counts"]
        for row in sorted(counted, key=lambda row: (row["values"] == UNKNOWN, row["values"]))
    }
