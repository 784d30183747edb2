"""The audit of a split: who and what is on both sides, and what knowing only that would score.

Takes the tables of both sides (faces with fingerprints), gives an `Audit`.
Shape letters: N training faces, M test faces, P pairs.
"""

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
MEDIAN_LINE = "always the training median"
"""The line on the floor begins with this."""


@dataclass(frozen=True)
class Audit:
    """The findings of `audit`.

    Counts are of images unless they say otherwise, shares are of all test images, ages in years.
    Null means that the tables do not tell (no subjects, no hashes, no ages).
    """

    images: dict[str, int]
    """Images of `train` and `test`."""
    subjects: dict[str, Any]
    """`train` and `test`: distinct subjects; `unknown_train` and `unknown_test`: images without
    one; `shared`: test images whose subject is in training, and their `share`."""
    byte_identical: dict[str, Any]
    """`across`: test images of which a training image is a copy, and their `share`; `train` and
    `test`: images with a copy in the same part."""
    near_identical: dict[str, Any]
    """The same for near-identical pictures (see `ageray.audit.near_duplicates`), byte-identical
    ones included. `confirmed` says whether thumbnails confirmed it; `examples`: keys of a test
    image and of its nearest training image."""
    leaked: dict[str, Any]
    """Test images that share a subject or a picture with training, and their `share`."""
    oracle: dict[str, float | None]
    """`mae` of answering the mean training age of the test face's subject; the training median
    where the subject is not in training."""
    constant: dict[str, float | None]
    """`mae` of always answering the training `median`."""
    conflicts: dict[str, Any]
    """`identical`: groups of byte-identical images with different ages (`groups`, `images`).
    `near`: near-identical `pairs`, how many of them `differ` in age, and their `mean_difference`.
    `examples` of both, with ages."""
    ages: dict[str, dict[str, int]]
    """Images of each decade, of `train` and `test`."""
    groups: dict[str, dict[str, int]]
    genders: dict[str, dict[str, int]]

    def to_dict(self) -> dict[str, Any]:
        """For a report."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The findings as sentences. Leaks begin with `leak:`, wrong labels with `labels:`."""
        return [
            f"{self.images['train']:,} training and {self.images['test']:,} test images",
            *self._subject_lines(),
            *_copy_lines(self.byte_identical, "byte-identical"),
            *_copy_lines(self.near_identical, "near-identical"),
            *self._label_lines(),
            *self._floor_lines(),
        ]

    def _subject_lines(self) -> list[str]:
        if self.subjects["shared"] is None:
            return ["subjects are not known: the same person may be on both sides of the split"]
        lines = [_leak_line(self.subjects, "shared", "show a person who is in the training set")]
        train, test = self.subjects["unknown_train"], self.subjects["unknown_test"]
        if train or test:
            lines.append(f"{train:,} training and {test:,} test images have no subject")
        return lines

    def _label_lines(self) -> list[str]:
        lines, identical, near = [], self.conflicts["identical"], self.conflicts["near"]
        if identical is not None and identical["groups"]:
            lines.append(
                f"labels: {identical['images']:,} byte-identical images in {identical['groups']:,} groups "
                f"have different ages"
            )
        if near is not None and near["differ"]:
            lines.append(
                f"labels: {near['differ']:,} of {near['pairs']:,} near-identical pairs have different ages, "
                f"by {near['mean_difference']:.1f} years on average"
            )
        return lines

    def _floor_lines(self) -> list[str]:
        lines, median = [], self.constant["median"]
        if self.constant["mae"] is not None:
            lines.append(f"{MEDIAN_LINE}, {median:g} years: MAE {self.constant['mae']:.2f}")
        if self.oracle["mae"] is not None and self.subjects["shared"]:
            lines.append(
                f"leak: knowing only who it is (the subject's mean training age) has MAE "
                f"{self.oracle['mae']:.2f}"
            )
        return lines


def _copy_lines(copies: dict[str, Any], kind: str) -> list[str]:
    if copies["across"] is None:
        return [f"no fingerprints: {kind} images were not looked for"]
    return [
        _leak_line(copies, "across", f"are {kind} to a training image"),
        f"{copies['train']:,} training and {copies['test']:,} test images have a {kind} copy "
        f"in their own part",
    ]


def _leak_line(counts: dict[str, Any], name: str, what: str) -> str:
    if not counts[name]:
        return f"no test images {what}"
    return f"leak: {counts[name]:,} test images ({counts['share']:.1%}) {what}"


@dataclass(frozen=True, eq=False)
class _Part:
    """Columns of one side; a number of -1 means unknown."""

    table: pa.Table
    age_N: Ages
    subject_N: Rows
    digest_N: Rows


def audit(train: pa.Table, test: pa.Table) -> Audit:
    """Audits a split.

    Both tables have the faces table's columns `key`, `age`, `subject`, `group`, `gender`, `dataset`
    and each image's fingerprint: `digest` (string), `phash` (uint64), `thumbnail` (binary). Only
    `key` is needed; a column or value that is missing counts as unknown. `train` holds everything
    that training used, validation included if it chose anything. Subjects are compared within a
    dataset. Without thumbnails, near-identity rests on hashes alone, which among aligned faces
    often collide by chance. Raises ValueError if a table has no row or no `key`.
    """
    sides = {"train": train, "test": test}
    for name, table in sides.items():
        if table.num_rows == 0 or "key" not in table.column_names:
            raise ValueError(
                f"{name}: an audit needs rows with a key; "
                f"got {table.num_rows} rows with {', '.join(table.column_names)}"
            )
    train_part, test_part = _parts(train, test)
    keys = _both(train, test, "key", pa.string()).to_pylist()
    subjects, shared_M = _subjects(train_part, test_part)
    identical, copied_M = _identical(train_part, test_part)
    near, nearest_M, pairs = _near(train, test, keys)
    leaked_M: NDArray[np.bool_] | None = shared_M | copied_M | (nearest_M >= 0)
    if subjects["shared"] is None and identical["across"] is None and near["across"] is None:
        leaked_M = None
    constant, oracle = _floors(train_part, test_part)
    return Audit(
        images={name: table.num_rows for name, table in sides.items()},
        subjects=subjects,
        byte_identical=identical,
        near_identical=near,
        leaked=_counts("images", leaked_M),
        oracle=oracle,
        constant=constant,
        conflicts=_conflicts(train_part, test_part, keys, identical, near, pairs),
        ages={"train": _decades(train_part.age_N), "test": _decades(test_part.age_N)},
        groups={name: _histogram(table, "group") for name, table in sides.items()},
        genders={name: _histogram(table, "gender") for name, table in sides.items()},
    )


def _counts(name: str, chosen_M: NDArray[np.bool_] | None) -> dict[str, Any]:
    """A number of test images and its share; null where it cannot be known."""
    if chosen_M is None:
        return {name: None, "share": None}
    return {name: int(chosen_M.sum()), "share": float(chosen_M.mean())}


# --- columns --------------------------------------------------------------------------------------


def _column(table: pa.Table, name: str, kind: pa.DataType) -> pa.Array:
    """A column as one array; nulls where the table has no such column."""
    if name not in table.column_names:
        return pa.nulls(table.num_rows, kind)
    column = table.column(name).cast(kind)
    return column if isinstance(column, pa.Array) else column.combine_chunks()


def _both(train: pa.Table, test: pa.Table, name: str, kind: pa.DataType) -> pa.Array:
    """A column of train and then test."""
    return pa.concat_arrays([_column(train, name, kind), _column(test, name, kind)])


def _numbers(column: pa.Array) -> Rows:
    """Equal strings as equal numbers; null as -1."""
    encoded = column.dictionary_encode().indices.cast(pa.int64())
    numbers: Rows = pc.fill_null(encoded, -1).to_numpy(zero_copy_only=False)
    return numbers


def _parts(train: pa.Table, test: pa.Table) -> tuple[_Part, _Part]:
    dataset = pc.fill_null(_both(train, test, "dataset", pa.string()), "")
    subject = _both(train, test, "subject", pa.string())
    subject_numbers = _numbers(pc.binary_join_element_wise(dataset, subject, "\0"))
    digest_numbers = _numbers(_both(train, test, "digest", pa.string()))
    ages = _both(train, test, "age", pa.float64()).to_numpy(zero_copy_only=False)
    end = train.num_rows
    return (
        _Part(train, ages[:end], subject_numbers[:end], digest_numbers[:end]),
        _Part(test, ages[end:], subject_numbers[end:], digest_numbers[end:]),
    )


# --- who and what is on both sides ----------------------------------------------------------------


def _subjects(train: _Part, test: _Part) -> tuple[dict[str, Any], NDArray[np.bool_]]:
    """The audit's `subjects`, and which test images show a subject of the training part (M,)."""
    train_known_N, test_known_M = train.subject_N >= 0, test.subject_N >= 0
    shared_M = np.isin(test.subject_N, train.subject_N[train_known_N])
    comparable = train_known_N.any() and test_known_M.any()
    counts = {
        "train": len(np.unique(train.subject_N[train_known_N])),
        "unknown_train": int((~train_known_N).sum()),
        "test": len(np.unique(test.subject_N[test_known_M])),
        "unknown_test": int((~test_known_M).sum()),
    }
    return {**counts, **_counts("shared", shared_M if comparable else None)}, shared_M


def _identical(train: _Part, test: _Part) -> tuple[dict[str, Any], NDArray[np.bool_]]:
    """The audit's `byte_identical`, and which test images have a copy in training (M,)."""
    train_known_N = train.digest_N >= 0
    copied_M = np.isin(test.digest_N, train.digest_N[train_known_N])
    if not train_known_N.any() or not (test.digest_N >= 0).any():
        return {**_counts("across", None), "train": None, "test": None}, copied_M
    within = {"train": _repeated(train.digest_N), "test": _repeated(test.digest_N)}
    return {**_counts("across", copied_M), **within}, copied_M


def _repeated(number_N: Rows) -> int:
    """How many rows have a number that occurs more than once; -1 does not count."""
    _, counts = np.unique(number_N[number_N >= 0], return_counts=True)
    return int(counts[counts > 1].sum())


def _near(train: pa.Table, test: pa.Table, keys: list[str]) -> tuple[dict[str, Any], Rows, Rows]:
    """The audit's `near_identical`; each test image's nearest training image, -1 if none (M,).

    And the near-identical pairs, as rows of train and then test (P, 2).
    """
    train_pictures, train_rows = _fingerprints(train)
    test_pictures, test_rows = _fingerprints(test)
    nearest_M = np.full(test.num_rows, -1)
    if len(train_pictures) == 0 or len(test_pictures) == 0:
        counts = {**_counts("across", None), "train": None, "test": None, "confirmed": None, "examples": []}
        return counts, nearest_M, np.empty((0, 2), np.int64)
    offset = train.num_rows
    test_rows = test_rows + offset
    across = _pairs(test_rows, train_rows, near_duplicates.nearest_in(test_pictures, train_pictures))
    in_train = _pairs(train_rows, train_rows, near_duplicates.nearest_within(train_pictures))
    in_test = _pairs(test_rows, test_rows, near_duplicates.nearest_within(test_pictures))
    nearest_M[across[:, 0] - offset] = across[:, 1]
    counts = {
        **_counts("across", nearest_M >= 0),
        "train": len(in_train),
        "test": len(in_test),
        "confirmed": train_pictures.thumbnail_N is not None and test_pictures.thumbnail_N is not None,
        "examples": [(keys[tested], keys[trained]) for tested, trained in across[:EXAMPLES].tolist()],
    }
    return counts, nearest_M, np.unique(np.sort(np.concatenate([across, in_train, in_test]), 1), axis=0)


def _fingerprints(table: pa.Table) -> tuple[Fingerprints, Rows]:
    """Fingerprints of the images that have one, and their rows."""
    phash, thumbnail = _column(table, "phash", pa.uint64()), _column(table, "thumbnail", pa.binary())
    rows = np.flatnonzero(phash.is_valid().to_numpy(zero_copy_only=False))
    thumbnails = None
    if len(rows) and thumbnail.take(rows).null_count == 0:
        pixels = b"".join(thumbnail.take(rows).to_pylist())
        thumbnails = np.frombuffer(pixels, np.uint8).reshape(len(rows), -1)
    return Fingerprints(phash.take(rows).to_numpy(zero_copy_only=False).astype(np.uint64), thumbnails), rows


def _pairs(rows: Rows, others: Rows, nearest_N: Rows) -> Rows:
    """(P, 2): `rows` that have a nearest one, and its row in `others`."""
    near_N = nearest_N >= 0
    return np.stack([rows[near_N], others[nearest_N[near_N]]], 1).astype(np.int64)


# --- labels, floors, histograms -------------------------------------------------------------------


def _conflicts(
    train: _Part,
    test: _Part,
    keys: list[str],
    identical: dict[str, Any],
    near: dict[str, Any],
    pairs: Rows,
) -> dict[str, Any]:
    """The audit's `conflicts`; null where there are no fingerprints."""
    ages = np.concatenate([train.age_N, test.age_N])
    conflicts: dict[str, Any] = {"identical": None, "near": None}
    if identical["across"] is not None:
        digests = np.concatenate([train.digest_N, test.digest_N])
        conflicts["identical"] = identical_conflicts(digests, ages, keys)
    if near["across"] is not None:
        conflicts["near"] = near_conflicts(pairs, ages, keys)
    return conflicts


def _floors(train: _Part, test: _Part) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """The audit's `constant` and `oracle`."""
    labelled_N, labelled_M = np.isfinite(train.age_N), np.isfinite(test.age_N)
    if not labelled_N.any() or not labelled_M.any():
        return {"median": None, "mae": None}, {"mae": None}
    true_M, median = test.age_N[labelled_M], float(np.median(train.age_N[labelled_N]))
    subject_N = labelled_N & (train.subject_N >= 0)
    subjects = int(max(train.subject_N.max(), test.subject_N.max(), 0)) + 1
    images = np.bincount(train.subject_N[subject_N], minlength=subjects)
    sums = np.bincount(train.subject_N[subject_N], train.age_N[subject_N], minlength=subjects)
    means = np.where(images > 0, sums / np.maximum(images, 1), median)
    answers = np.append(means, median)  # the last entry is that of number -1, an unknown subject
    oracle = float(np.abs(answers[test.subject_N[labelled_M]] - true_M).mean())
    return {"median": median, "mae": float(np.abs(median - true_M).mean())}, {"mae": oracle}


def _decades(age_N: Ages) -> dict[str, int]:
    """Images of each decade that occurs, youngest first, then `unknown`."""
    labelled = age_N[np.isfinite(age_N)]
    numbers, counts = np.unique(np.floor(labelled / 10).astype(int), return_counts=True)
    histogram: dict[str, int] = {}
    for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
        histogram[f"{10 * number}-{10 * number + 9}"] = count
    if len(labelled) < len(age_N):
        histogram[UNKNOWN] = len(age_N) - len(labelled)
    return histogram


def _histogram(table: pa.Table, name: str) -> dict[str, int]:
    """Images of each label, sorted by name, `unknown` last."""
    counted = pc.value_counts(pc.fill_null(_column(table, name, pa.string()), UNKNOWN)).to_pylist()
    counted.sort(key=lambda row: (row["values"] == UNKNOWN, row["values"]))
    return {row["values"]: row["counts"] for row in counted}
