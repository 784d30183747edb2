"""Splits that sets ship with: by a table, by the keys that `jobs.prepare` gave, by a celebrity's rank."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from ageray.data import splits
from ageray.data.protocols.units import Face, Unit
from ageray.data.splits import PARTS
from ageray.errors import UserError

Parts = dict[str, list[Face]]

VAL_RANKS, TEST_RANKS = 2, 5
"""CACD: celebrities of rank up to 2 validate, up to 5 test, the others train (80, 120 and 1,800 people)."""

_RANK = re.compile(r"(?:rank[_ ]?)?([1-9]\d*)(?:\.0*)?", re.IGNORECASE)
_FOLD = re.compile(r"fold_(\d+)")


def by_table(faces: Sequence[Face], uri: str) -> tuple[Parts, list[str]]:
    """The parts of a table of keys and parts, and notes on keys and faces without each other.

    Raises UserError if it is no such table or names none of the faces.
    """
    named = splits.load(uri)
    part = {key: name for name in PARTS for key in named[name]}
    dealt = _dealt(faces, lambda face: part.get(face.key))
    found = sum(map(len, dealt.values()))
    if found == 0:
        examples = f"its keys are like '{next(iter(part), '')}', theirs like '{min((face.key for face in faces), default='')}'"
        raise UserError(f"protocol.file={uri}: names none of the {len(faces)} faces; {examples}")
    notes = []
    if len(part) > found:
        notes.append(f"fixed: {len(part) - found:,} of {len(part):,} keys in {uri} are no face of this set")
    if len(faces) > found:
        notes.append(f"fixed: {len(faces) - found:,} of {len(faces):,} faces are not in {uri} and left out")
    return dealt, notes


def by_key(faces: Sequence[Face], fold: int) -> tuple[Parts, list[str]]:
    """The parts that the keys name, `<dataset>/train/...`, or the folds, `<dataset>/fold_0/...`, of which `fold` tests; and notes.

    Raises UserError if the keys name neither, or not this fold.
    """
    numbers = fold_numbers(faces)
    if numbers:
        if fold not in numbers:
            raise UserError(f"protocol.fold={fold}: the keys name the folds {', '.join(map(str, numbers))}")
        return _dealt(
            faces,
            lambda face: None if (number := _fold(face)) is None else "test" if number == fold else "train",
        ), []
    dealt = _dealt(faces, lambda face: place if (place := _place(face)) in PARTS else None)
    found = sum(map(len, dealt.values()))
    if found == 0:
        example = min((face.key for face in faces), default="")
        raise UserError(
            f"protocol.name=fixed: the keys name no part (like '{example}', not '<dataset>/train/...'); set protocol.file to a table of key and part"
        )
    if fold:
        raise UserError(
            f"protocol.fold={fold}: this set ships with one split, not with folds; set protocol.fold=0"
        )
    left = len(faces) - found
    return dealt, [
        f"fixed: {left:,} of {len(faces):,} keys name no part; these faces are left out"
    ] if left else []


def fold_numbers(faces: Sequence[Face]) -> list[int]:
    """The folds that the keys name, sorted; none if they name no fold."""
    return sorted({number for face in faces if (number := _fold(face)) is not None})


def by_rank(faces: Sequence[Face]) -> Parts:
    """CACD's parts, by the celebrity's rank in the column `group` (`rank_3`, or `3`).

    Raises UserError if a face has no rank, or a person two.
    """
    ranks: dict[Unit, int] = {}
    for face in faces:
        rank = _celebrity_rank(face)
        if ranks.setdefault(face.person, rank) != rank:
            raise UserError(
                f"protocol.name=cacd: subject '{face.subject}' has ranks {ranks[face.person]} and {rank}; give each person one"
            )

    def part(face: Face) -> str:
        rank = ranks[face.person]
        return "val" if rank <= VAL_RANKS else "test" if rank <= TEST_RANKS else "train"

    return _dealt(faces, part)


def _dealt(faces: Sequence[Face], part: Callable[[Face], str | None]) -> Parts:
    dealt: Parts = {name: [] for name in PARTS}
    for face in faces:
        if (name := part(face)) is not None:
            dealt[name].append(face)
    return dealt


def _place(face: Face) -> str:
    """The first folder of a key below its data set."""
    return face.key.removeprefix(f"{face.dataset}/").split("/")[0]


def _fold(face: Face) -> int | None:
    found = _FOLD.fullmatch(_place(face))
    return None if found is None else int(found[1])


def _celebrity_rank(face: Face) -> int:
    found = _RANK.fullmatch((face.group or "").strip())
    if found is None:
        given = "empty" if face.group is None else f"'{face.group}'"
        raise UserError(
            f"protocol.name=cacd: needs the celebrity's rank in the column group, like rank_3; it is {given} for key '{face.key}'"
        )
    return int(found[1])
