"""The protocols of the field: the faces table and `protocol` in, a split out.

Pure functions of keys, labels and the seed (and of the table that `fixed` may read); the order of
the rows changes nothing. Validation faces are drawn person by person from what is not tested,
except with `random`, which draws all parts face by face.
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

COLUMNS = pa.schema(map(schema.FACES.field, Face._fields))
"""The columns of the faces table that protocols use."""


class Parts(NamedTuple):
    """The faces of each part, and notes on how they were chosen."""

    train: list[Face]
    val: list[Face]
    test: list[Face]
    notes: list[str]


def split(faces: pa.Table, protocol: Protocol) -> Split:
    """The split of a faces table under `protocol`, with notes on what it leaks.

    faces: the columns COLUMNS; subject, gender and group may be missing. Raises UserError if keys
    repeat, a part that the protocol asks for would be empty, labels that it needs are missing, or
    the fold does not exist.
    """
    rows = _rows(faces)
    by_part = _PROTOCOLS[protocol.name](rows, protocol)
    parts = {}
    for name in PARTS:
        parts[name] = sorted(face.key for face in getattr(by_part, name))
    for name in _required(protocol):
        if not parts[name]:
            shares = f"val={protocol.val:g}"
            if _has_test_share(protocol):
                shares += f", test={protocol.test:g}"
            raise UserError(
                f"protocol: no face is left for '{name}' ({len(rows)} faces, {shares}); "
                "change the shares or add faces"
            )
    return Split(parts, [*by_part.notes, *leaks(by_part.train, by_part.test)])


def folds(faces: pa.Table, protocol: Protocol) -> list[Protocol]:
    """The protocol once for each of its folds; itself alone if it has none.

    `lopo` has 82 on FG-NET, `fixed` 5 on Adience. Raises UserError for `lopo` if no face has a
    subject.
    """
    numbers: Sequence[int] = range(protocol.folds)
    if protocol.name == "s1_s2_s3":
        numbers = range(2)
    elif protocol.name == "lopo":
        numbers = range(len(_people(_rows(faces))))
    elif protocol.name == "fixed" and protocol.file is None:
        numbers = official.fold_numbers(_rows(faces))
    return [protocol.model_copy(update={"fold": number}) for number in numbers] or [protocol]


def leaks(train: Sequence[Face], test: Sequence[Face]) -> list[str]:
    """Notes on how many test faces show a person of the training part, and for how many nobody can
    tell.
    """
    if not train or not test:
        return []
    people = set(_persons(train))
    shared = [person for person in _persons(test) if person in people]
    total = len(train) + len(test)
    unknown = sum(face.subject is None for face in (*train, *test))
    notes = []
    if shared:
        notes.append(
            f"{100 * len(shared) / len(test):.1f} % of the test faces ({len(shared):,} of {len(test):,}) "
            f"show one of {len(set(shared)):,} subjects who are in training too: "
            "the figures measure recognition as well"
        )
    if unknown == total:
        notes.append("no subject is known: a person may be in training and test alike, and nothing tells")
    elif unknown:
        notes.append(
            f"{unknown:,} of {total:,} training and test faces have no subject: a person may be in both, "
            "and nothing tells"
        )
    return notes


def _rows(table: pa.Table) -> list[Face]:
    columns = schema.check(table, COLUMNS, "faces")
    rows = [Face(**row) for row in columns.to_pylist()]
    keys = sorted(face.key for face in rows)
    for key, after in pairwise(keys):
        if key == after:
            raise UserError(
                f"data.shards: key '{key}' is there twice; keys must be unique, so prepare the shards again"
            )
    return rows


def _persons(faces: Iterable[Face]) -> list[Unit]:
    return [face.person for face in faces]


def _has_test_share(protocol: Protocol) -> bool:
    return protocol.name in ("subject_exclusive", "random") and not protocol.folds


def _required(protocol: Protocol) -> list[str]:
    """The parts that must not be empty."""
    if protocol.name in ("cacd", "fixed"):
        return []  # a set may have one of the parts alone
    if protocol.name == "all":
        return ["test"]
    required = ["train"]
    if protocol.val > 0:
        required.append("val")
    if protocol.test > 0 or not _has_test_share(protocol):
        required.append("test")
    return required


# --- shares and folds ---------------------------------------------------------------------------


def _subject_exclusive(faces: list[Face], protocol: Protocol) -> Parts:
    return _shares(faces, _persons(faces), protocol)


def _random(faces: list[Face], protocol: Protocol) -> Parts:
    return _shares(faces, [face.single for face in faces], protocol)


def _shares(faces: list[Face], units: list[Unit], protocol: Protocol) -> Parts:
    """The first units test, the next validate.

    With folds, the units of the fold test and the next ones, in a circle, validate.
    """
    order = ranked(units, protocol.seed)
    count = len(order)
    if not protocol.folds:
        test = round(protocol.test * count)
        return _assign(faces, units, order[:test], order[test:], round(protocol.val * count), [])
    if protocol.folds > count:
        what = "faces" if protocol.name == "random" else "subjects and faces without one"
        raise UserError(f"protocol.folds={protocol.folds}: there are only {count} {what}; give fewer folds")
    assert isinstance(protocol.fold, int)
    start = protocol.fold * count // protocol.folds
    end = (protocol.fold + 1) * count // protocol.folds
    rest = order[end:] + order[:start]
    return _assign(faces, units, order[start:end], rest, round(protocol.val * len(rest)), [])


def _assign(
    faces: list[Face],
    units: list[Unit],
    test: Sequence[Unit],
    rest: Sequence[Unit],
    val: int,
    notes: list[str],
) -> Parts:
    """Each face to the part of its unit, given in `units`; the first `val` of `rest` validate."""
    part = dict.fromkeys(test, "test") | dict.fromkeys(rest[:val], "val")
    by_part: dict[str, list[Face]] = {"train": [], "val": [], "test": []}
    for face, unit in zip(faces, units, strict=True):
        by_part[part.get(unit, "train")].append(face)
    return Parts(**by_part, notes=notes)


def _hold_out(side: list[Face], test: list[Face], protocol: Protocol, notes: list[str]) -> Parts:
    """The training side, of which some people validate, and the test faces."""
    units = _persons(side)
    order = ranked(units, protocol.seed, "val")
    parts = _assign(side, units, [], order, round(protocol.val * len(order)), notes)
    return parts._replace(test=test)


# --- one person out -----------------------------------------------------------------------------


def _lopo(faces: list[Face], protocol: Protocol) -> Parts:
    """Tests the person `fold`; faces without subject, if any, train in every fold."""
    people = _people(faces)
    left_out = _person(people, protocol.fold)
    order = ranked(people, protocol.seed)
    index = order.index(left_out)
    rest = order[index + 1 :] + order[:index]
    fold = f"fold {people.index(left_out)} of {len(people)}, counted from 0"
    notes = [f"lopo: tests subject {left_out[1]} ({fold})"]
    units = _persons(faces)
    return _assign(faces, units, [left_out], rest, round(protocol.val * len(rest)), notes)


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
    matches = [unit for unit in people if fold in (unit[1], f"{unit[2]}/{unit[1]}")]
    if len(matches) > 1:
        raise UserError(
            f"protocol.fold={fold}: {len(matches)} data sets have this subject; "
            f"write protocol.fold={matches[0][2]}/{fold}, say"
        )
    if not matches:
        near = get_close_matches(fold, [unit[1] for unit in people], n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"'{people[0][1]}' is the first"
        raise UserError(f"protocol.fold='{fold}': none of the {len(people)} subjects has this name; {hint}")
    return matches[0]


# --- protocols of one data set ------------------------------------------------------------------


def _partial_80_20(faces: list[Face], protocol: Protocol) -> Parts:
    side, test, notes = morph.partial(faces, protocol.seed)
    return _hold_out(side, test, protocol, notes)


def _s1_s2_s3(faces: list[Face], protocol: Protocol) -> Parts:
    s1, s2, s3, notes = morph.three_sets(faces, protocol.seed)
    side, other = (s1, s2) if protocol.fold == 0 else (s2, s1)
    return _hold_out(side, other + s3, protocol, notes)


def _cacd(faces: list[Face], protocol: Protocol) -> Parts:
    parts = official.by_rank(faces)
    if protocol.tests == "val":
        return _test_the_validation_part(parts, protocol, [])
    return Parts(**parts, notes=[])


def _test_the_validation_part(parts: dict[str, list[Face]], protocol: Protocol, notes: list[str]) -> Parts:
    """The set's validation part tests, its test part is left out, and a share of the training
    part's people validate."""
    if not parts["val"]:
        raise UserError(
            f"protocol.tests=val: the set has no validation part for {protocol.name}; set tests=test"
        )
    left_out = (
        f"{protocol.name}: the validation part is tested; {len(parts['test']):,} faces of the test part are "
        "left out"
    )
    return _hold_out(parts["train"], parts["val"], protocol, [*notes, left_out])


def _fixed(faces: list[Face], protocol: Protocol) -> Parts:
    """The parts of `file`, or those of the keys.

    If they have none for validation, a share of the training part's people validate.
    """
    if protocol.file is None:
        assert isinstance(protocol.fold, int)
        parts, notes = official.by_key(faces, protocol.fold)
    else:
        parts, notes = official.by_table(faces, protocol.file)
    if protocol.tests == "val":
        return _test_the_validation_part(parts, protocol, notes)
    if parts["val"] or not parts["train"] or protocol.val == 0:
        return Parts(**parts, notes=notes)
    drawn = (
        "fixed: no face is set apart for validation; "
        f"the share {protocol.val:g} of the training part's people validate"
    )
    return _hold_out(parts["train"], parts["test"], protocol, [*notes, drawn])


def _all(faces: list[Face], protocol: Protocol) -> Parts:
    return Parts([], [], faces, [])


_PROTOCOLS: dict[str, Callable[[list[Face], Protocol], Parts]] = {
    "subject_exclusive": _subject_exclusive,
    "random": _random,
    "partial_80_20": _partial_80_20,
    "s1_s2_s3": _s1_s2_s3,
    "lopo": _lopo,
    "cacd": _cacd,
    "fixed": _fixed,
    "all": _all,
}
