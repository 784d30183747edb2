"""Splits that sets ship with: by a table, by the keys that ageray prepare gave, by a celebrity's
rank.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from ageray.data import splits
from ageray.data.protocols.units import Face, Unit
from ageray.errors import UserError

Parts = dict[str, list[Face]]

VAL_RANKS, TEST_RANKS = 2, 5
"""CACD: celebrities of rank up to 2 validate, up to 5 test, the others train (80, 120, 1,800
people).
"""

_RANK = re.compile(r"(?:rank[_ ]?)?([1-9]\d*)(?:\.0*)?", re.IGNORECASE)
_FOLD = re.compile(r"fold_(\d+)")


def by_table(faces: Sequence[Face], uri: str) -> tuple[Parts, list[str]]:
    """The parts of a table of keys and parts, and notes on keys without a face and faces without a
    key.

    Raises UserError if it is no such table, or names none of the faces.
    """
    part: dict[str, str] = {}
    for name, keys in splits.load(uri).items():
        part |= dict.fromkeys(keys, name)
    parts = _by_part(faces, lambda face: part.get(face.key))
    count = sum(map(len, parts.values()))
    if count == 0:
        raise UserError(
            f"protocol.file={uri}: names none of the {len(faces)} faces; "
            f"its keys are like '{next(iter(part), '')}', theirs like '{_example(faces)}'"
        )
    notes = []
    if len(part) > count:
        notes.append(f"fixed: {len(part) - count:,} of {len(part):,} keys in {uri} are no face of this set")
    if len(faces) > count:
        notes.append(f"fixed: {len(faces) - count:,} of {len(faces):,} faces are not in {uri} and left out")
    return parts, notes


def by_key(faces: Sequence[Face], fold: int) -> tuple[Parts, list[str]]:
    """The parts or folds that the keys name, and notes.

    Keys are like `<dataset>/train/...` or `<dataset>/fold_0/...`; the fold `fold` tests. Raises
    UserError if the keys name neither, or not this fold.
    """
    numbers = fold_numbers(faces)
    if numbers:
        if fold not in numbers:
            raise UserError(f"protocol.fold={fold}: the keys name the folds {', '.join(map(str, numbers))}")
        return _by_part(faces, lambda face: _part_of_fold(face, fold)), []
    parts = _by_part(faces, _folder)
    count = sum(map(len, parts.values()))
    if count == 0:
        raise UserError(
            f"protocol.name=fixed: the keys name no part (like '{_example(faces)}', "
            "not '<dataset>/train/...'); set protocol.file to a table of key and part"
        )
    if fold:
        raise UserError(
            f"protocol.fold={fold}: this set ships with one split, not with folds; set protocol.fold=0"
        )
    without = len(faces) - count
    notes = []
    if without:
        notes.append(f"fixed: {without:,} of {len(faces):,} keys name no part; these faces are left out")
    return parts, notes


def fold_numbers(faces: Sequence[Face]) -> list[int]:
    """The folds that the keys name, sorted; empty if they name no fold."""
    numbers = set()
    for face in faces:
        number = _fold(face)
        if number is not None:
            numbers.add(number)
    return sorted(numbers)


def by_rank(faces: Sequence[Face]) -> Parts:
    """CACD's parts, by the celebrity's rank in the column `group` (`rank_3`, or `3`).

    Raises UserError if a face has no rank, or a person two.
    """
    ranks: dict[Unit, int] = {}
    for face in faces:
        rank = _celebrity_rank(face)
        if ranks.setdefault(face.person, rank) != rank:
            raise UserError(
                f"protocol.name=cacd: subject '{face.subject}' has ranks {ranks[face.person]} and {rank}; "
                "give each person one"
            )

    def part(face: Face) -> str:
        rank = ranks[face.person]
        if rank <= VAL_RANKS:
            return "val"
        return "test" if rank <= TEST_RANKS else "train"

    return _by_part(faces, part)


def _by_part(faces: Sequence[Face], part: Callable[[Face], str | None]) -> Parts:
    """The faces by what `part` says of each; those of no part are left out."""
    parts: Parts = {"train": [], "val": [], "test": []}
    for face in faces:
        name = part(face)
        if name in parts:
            parts[name].append(face)
    return parts


def _example(faces: Sequence[Face]) -> str:
    """The first key in alphabetical order."""
    return min((face.key for face in faces), default="")


def _folder(face: Face) -> str:
    """The first folder of a key below its data set."""
    return face.key.removeprefix(f"{face.dataset}/").split("/")[0]


def _fold(face: Face) -> int | None:
    match = _FOLD.fullmatch(_folder(face))
    if match is None:
        return None
    return int(match[1])


def _part_of_fold(face: Face, fold: int) -> str | None:
    number = _fold(face)
    if number is None:
        return None
    return "test" if number == fold else "train"


def _celebrity_rank(face: Face) -> int:
    match = _RANK.fullmatch((face.group or "").strip())
    if match is None:
        value = f"'{face.group}'"
        if face.group is None:
            value = "empty"
        raise UserError(
            "protocol.name=cacd: needs the celebrity's rank in the column group, like rank_3; "
            f"it is {value} for key '{face.key}'"
        )
    return int(match[1])
