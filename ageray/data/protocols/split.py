"""The protocols of the field: from the faces table and `protocol` to a split.

Pure functions of keys, labels and the seed (and of the table that `fixed` may read): the order of the rows changes nothing. Validation is drawn
person by person from what is not tested, but for `random`, whose parts are all dealt out by the face.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from itertools import pairwise
from typing import NamedTuple

import pyarrow as pa

from ageray import schema
from ageray.data.protocols import morph, official
from ageray.data.protocols.units import Face, Unit, ranked
from ageray.data.splits import PARTS, Split
from ageray.errors import UserError
from ageray.experiment import Protocol

COLUMNS = pa.schema([schema.FACES.field(name) for name in Face._fields])
"""What of the faces table a protocol looks at."""


class Dealt(NamedTuple):
    """The faces of each part, and notes on how they were dealt out."""

    train: list[Face]
    val: list[Face]
    test: list[Face]
    notes: list[str]


def split(faces: pa.Table, protocol: Protocol) -> Split:
    """The split of a faces table (the columns COLUMNS; subject, gender and group may be missing) under `protocol`, and what it leaks.

    Raises UserError if keys repeat, a part that the protocol asks for would be empty, the labels that it needs are missing, or the fold does
    not exist.
    """
    rows = _rows(faces)
    dealt = _PROTOCOLS[protocol.name](rows, protocol)
    parts = {name: sorted(face.key for face in getattr(dealt, name)) for name in PARTS}
    for name in _needed(protocol):
        if not parts[name]:
            shares = f"val={protocol.val:g}" + (
                f", test={protocol.test:g}" if _has_test_share(protocol) else ""
            )
            raise UserError(
                f"protocol: no face is left for '{name}' ({len(rows)} faces, {shares}); change the shares or add faces"
            )
    return Split(parts, [*dealt.notes, *leaks(dealt.train, dealt.test)])


def folds(faces: pa.Table, protocol: Protocol) -> list[Protocol]:
    """The protocol once for each of its folds (82 for `lopo` on FG-NET, 5 for `fixed` on Adience); itself alone where it has none.

    Raises UserError for `lopo` where no face has a subject.
    """
    count = 2 if protocol.name == "s1_s2_s3" else protocol.folds
    if protocol.name == "lopo":
        count = len(_people(_rows(faces)))
    if protocol.name == "fixed" and protocol.file is None:
        numbers = official.fold_numbers(_rows(faces))
        return [protocol.model_copy(update={"fold": number}) for number in numbers] or [protocol]
    return [protocol.model_copy(update={"fold": number}) for number in range(count)] or [protocol]


def leaks(train: Sequence[Face], test: Sequence[Face]) -> list[str]:
    """How much of the test the training knows by person, and for how many faces nobody can tell."""
    if not train or not test:
        return []
    known = {face.person for face in train}
    shared = [face.person for face in test if face.person in known]
    unknown, total = sum(face.subject is None for face in (*train, *test)), len(train) + len(test)
    notes = []
    if shared:
        notes.append(
            f"{100 * len(shared) / len(test):.1f} % of the test faces ({len(shared):,} of {len(test):,}) show one of "
            f"{len(set(shared)):,} subjects who are in training too: the figures measure recognition as well"
        )
    if unknown == total:
        notes.append("no subject is known: a person may be in training and test alike, and nothing tells")
    elif unknown:
        notes.append(
            f"{unknown:,} of {total:,} training and test faces have no subject: a person may be in both, and nothing tells"
        )
    return notes


def _rows(table: pa.Table) -> list[Face]:
    columns = schema.check(table, COLUMNS, "faces")
    rows = [Face(*values) for values in zip(*(column.to_pylist() for column in columns.columns), strict=True)]
    keys = sorted(face.key for face in rows)
    twice = next((key for key, after in pairwise(keys) if key == after), None)
    if twice is not None:
        raise UserError(
            f"data.shards: key '{twice}' is there twice; keys must be unique, so prepare the shards again"
        )
    return rows


def _has_test_share(protocol: Protocol) -> bool:
    return protocol.name in ("subject_exclusive", "random") and not protocol.folds


def _needed(protocol: Protocol) -> list[str]:
    """The parts that must not be empty."""
    if protocol.name in ("cacd", "fixed"):
        return []  # a set may have one of the parts alone
    if protocol.name == "all":
        return ["test"]
    wanted = {
        "train": True,
        "val": protocol.val > 0,
        "test": protocol.test > 0 or not _has_test_share(protocol),
    }
    return [name for name in PARTS if wanted[name]]


# --- shares and folds ---------------------------------------------------------------------------------------------------


def _subject_exclusive(faces: list[Face], protocol: Protocol) -> Dealt:
    return _shares(faces, [face.person for face in faces], protocol)


def _random(faces: list[Face], protocol: Protocol) -> Dealt:
    return _shares(faces, [face.single for face in faces], protocol)


def _shares(faces: list[Face], units: list[Unit], protocol: Protocol) -> Dealt:
    """The first units test, the next validate; with folds, those of the fold test and the next after them, in a circle, validate."""
    order = ranked(units, protocol.seed)
    count = len(order)
    if not protocol.folds:
        test = round(protocol.test * count)
        return _deal(faces, units, order[:test], order[test:], round(protocol.val * count), [])
    if protocol.folds > count:
        what = "faces" if protocol.name == "random" else "subjects and faces without one"
        raise UserError(f"protocol.folds={protocol.folds}: there are only {count} {what}; give fewer folds")
    assert isinstance(protocol.fold, int)
    start, end = (number * count // protocol.folds for number in (protocol.fold, protocol.fold + 1))
    rest = order[end:] + order[:start]
    return _deal(faces, units, order[start:end], rest, round(protocol.val * len(rest)), [])


def _deal(
    faces: list[Face],
    units: list[Unit],
    test: Sequence[Unit],
    rest: Sequence[Unit],
    val: int,
    notes: list[str],
) -> Dealt:
    """Each face to the part of its unit, given in `units`; the first `val` of `rest` validate."""
    part = dict.fromkeys(test, "test") | dict.fromkeys(rest[:val], "val")
    dealt: dict[str, list[Face]] = {name: [] for name in PARTS}
    for face, unit in zip(faces, units, strict=True):
        dealt[part.get(unit, "train")].append(face)
    return Dealt(**dealt, notes=notes)


def _hold_out(side: list[Face], test: list[Face], protocol: Protocol, notes: list[str]) -> Dealt:
    """A training side without the people who validate."""
    units = [face.person for face in side]
    order = ranked(units, protocol.seed, "val")
    dealt = _deal(side, units, [], order, round(protocol.val * len(order)), notes)
    return dealt._replace(test=test)


# --- one person out -----------------------------------------------------------------------------------------------------


def _lopo(faces: list[Face], protocol: Protocol) -> Dealt:
    """Tests the person `fold`; faces without subject, if any, train in every fold."""
    people = _people(faces)
    left_out = _person(people, protocol.fold)
    order = ranked(people, protocol.seed)
    place = order.index(left_out)
    rest = order[place + 1 :] + order[:place]
    note = (
        f"lopo: tests subject {left_out[1]} (fold {people.index(left_out)} of {len(people)}, counted from 0)"
    )
    return _deal(
        faces, [face.person for face in faces], [left_out], rest, round(protocol.val * len(rest)), [note]
    )


def _people(faces: Iterable[Face]) -> list[Unit]:
    """The known subjects, sorted by name."""
    people = sorted({face.person for face in faces if face.subject is not None})
    if not people:
        raise UserError(
            "protocol.name=lopo: no face has a subject; set protocol.name=random, with protocol.folds=5, say"
        )
    return people


def _person(people: list[Unit], fold: int | str) -> Unit:
    if isinstance(fold, int):
        if fold >= len(people):
            ends = f"fold 0 is '{people[0][1]}', fold {len(people) - 1} '{people[-1][1]}'"
            raise UserError(f"protocol.fold={fold}: there are {len(people)} subjects; {ends}")
        return people[fold]
    found = [unit for unit in people if fold in (unit[1], f"{unit[2]}/{unit[1]}")]
    if len(found) > 1:
        raise UserError(
            f"protocol.fold={fold}: {len(found)} data sets have this subject; write protocol.fold={found[0][2]}/{fold}, say"
        )
    if not found:
        near = get_close_matches(fold, [unit[1] for unit in people], n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"'{people[0][1]}' is the first"
        raise UserError(f"protocol.fold='{fold}': none of the {len(people)} subjects has this name; {hint}")
    return found[0]


# --- protocols of one data set ------------------------------------------------------------------------------------------


def _partial_80_20(faces: list[Face], protocol: Protocol) -> Dealt:
    side, test, notes = morph.partial(faces, protocol.seed)
    return _hold_out(side, test, protocol, notes)


def _s1_s2_s3(faces: list[Face], protocol: Protocol) -> Dealt:
    s1, s2, s3, notes = morph.three_sets(faces, protocol.seed)
    side, other = (s1, s2) if protocol.fold == 0 else (s2, s1)
    return _hold_out(side, other + s3, protocol, notes)


def _cacd(faces: list[Face], protocol: Protocol) -> Dealt:
    return Dealt(**official.by_rank(faces), notes=[])


def _fixed(faces: list[Face], protocol: Protocol) -> Dealt:
    """The parts of `file`, or those of the keys; where none is for validation, a share of the people of the training part."""
    if protocol.file is None:
        assert isinstance(protocol.fold, int)
        parts, notes = official.by_key(faces, protocol.fold)
    else:
        parts, notes = official.by_table(faces, protocol.file)
    if parts["val"] or not parts["train"] or protocol.val == 0:
        return Dealt(**parts, notes=notes)
    drawn = f"fixed: no face is set apart for validation; the share {protocol.val:g} of the training part's people validate"
    return _hold_out(parts["train"], parts["test"], protocol, [*notes, drawn])


def _all(faces: list[Face], protocol: Protocol) -> Dealt:
    return Dealt([], [], faces, [])


_PROTOCOLS: dict[str, Callable[[list[Face], Protocol], Dealt]] = {
    "subject_exclusive": _subject_exclusive,
    "random": _random,
    "partial_80_20": _partial_80_20,
    "s1_s2_s3": _s1_s2_s3,
    "lopo": _lopo,
    "cacd": _cacd,
    "fixed": _fixed,
    "all": _all,
}
