"""The protocols: exact parts, no person in two parts, every face tested once over the folds.

The order of the rows changes nothing.
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ageray.data import splits
from ageray.data.protocols import folds, split
from ageray.data.protocols.official import TEST_RANKS, VAL_RANKS
from ageray.data.splits import PARTS, train_digest
from ageray.errors import UserError
from ageray.experiment import Protocol
from ageray.prepare.sources import read_fgnet

Row = dict[str, Any]
UNKNOWN = "no subject is known: a person may be in training and test alike, and nothing tells"
SUBJECTS = st.lists(
    st.none() | st.sampled_from([f"{number:03d}" for number in range(40)]), min_size=20, max_size=200
)
SHARES = st.tuples(st.floats(0, 0.4), st.floats(0, 0.4))
LABELS = st.fixed_dictionaries(
    {
        "subject": st.none() | st.sampled_from([f"p{number}" for number in range(30)]),
        "gender": st.sampled_from(["male", "female", "F", "M", None]),
        "group": st.sampled_from(["White", "Black", "Caucasian", "black ", "Asian", None]),
        "dataset": st.sampled_from(["one", "two"]),
    }
)
ROWS = st.lists(LABELS, min_size=30, max_size=120).map(
    lambda rows: [row | {"key": f"k{n}"} for n, row in enumerate(rows)]
)


def table(rows: list[Row]) -> pa.Table:
    names = ("key", "subject", "gender", "group", "dataset")
    return pa.table(
        {
            name: pa.array([row.get(name, "set" if name == "dataset" else None) for row in rows], pa.string())
            for name in names
        }
    )


def faces(subjects: list[str | None], **labels: list[str]) -> pa.Table:
    columns = {name: values.__getitem__ for name, values in labels.items()}
    rows = [
        {"key": f"set/{n}.jpg", "subject": subject, **{name: get(n) for name, get in columns.items()}}
        for n, subject in enumerate(subjects)
    ]
    return table(rows)


def people(keys: list[str], faces: pa.Table) -> set[tuple[str, str]]:
    """The persons of the faces; a face without subject is a person alone."""
    chosen = set(keys)
    rows = [row for row in faces.to_pylist() if row["key"] in chosen]
    return {
        ("face", row["key"]) if row["subject"] is None else (row["dataset"], row["subject"]) for row in rows
    }


def check_apart(parts: dict[str, list[str]], faces: pa.Table, *pairs: tuple[str, str]) -> None:
    for first, second in pairs:
        assert not people(parts[first], faces) & people(parts[second], faces), (first, second)


def sizes(parts: dict[str, list[str]]) -> dict[str, int]:
    return {name: len(parts[name]) for name in PARTS}


def mistake(faces: pa.Table, **protocol: Any) -> str:
    with pytest.raises(UserError) as caught:
        split(faces, Protocol(**protocol))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- shares -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["subject_exclusive", "random"])
@settings(deadline=None)
@given(subjects=SUBJECTS, shares=SHARES, seed=st.integers(0, 9), order=st.randoms(use_true_random=False))
def test_shares(
    name: str, subjects: list[str | None], shares: tuple[float, float], seed: int, order: random.Random
) -> None:
    table = faces(subjects if name == "subject_exclusive" else [None] * len(subjects))
    protocol = Protocol(name=name, val=shares[0], test=shares[1], seed=seed)  # type: ignore[arg-type]
    keys = table.column("key").to_pylist()
    total = len(people(keys, table))
    expected = {"val": round(shares[0] * total), "test": round(shares[1] * total)}
    if (
        any(expected[part] == 0 and getattr(protocol, part) > 0 for part in expected)
        or sum(expected.values()) >= total
    ):
        with pytest.raises(UserError, match="no face is left"):
            split(table, protocol)
        return
    parts = split(table, protocol).parts
    assert sorted(key for part in PARTS for key in parts[part]) == sorted(keys)
    for part, count in expected.items():
        assert len(people(parts[part], table)) == count
    check_apart(parts, table, ("train", "val"), ("train", "test"), ("val", "test"))
    shuffled = list(range(len(keys)))
    order.shuffle(shuffled)
    assert split(table.take(shuffled), protocol).parts == parts


def test_shares_are_of_subjects_where_known() -> None:
    table = faces([f"{number % 10:03d}" for number in range(100)])
    assert sizes(split(table, Protocol(val=0.1, test=0.2)).parts) == {"train": 70, "val": 10, "test": 20}


def test_a_subject_named_like_a_key_is_not_that_face() -> None:
    rows = [{"key": "a"}, {"key": "b", "subject": "a"}, *({"key": f"k{number}"} for number in range(18))]
    assert sizes(split(table(rows), Protocol(val=0.25, test=0.25)).parts) == {
        "train": 10,
        "val": 5,
        "test": 5,
    }


def test_equal_subjects_of_two_sets_are_two_people() -> None:
    rows = [
        {"key": f"{dataset}{number}", "dataset": dataset, "subject": f"{number % 4}"}
        for dataset in "ab"
        for number in range(8)
    ]
    assert sizes(split(table(rows), Protocol(val=0, test=0.125)).parts) == {"train": 14, "val": 0, "test": 2}
    assert len(folds(table(rows), Protocol(name="lopo"))) == 8
    assert (
        mistake(table(rows), name="lopo", fold="3")
        == "protocol.fold=3: 2 data sets have this subject; write protocol.fold=a/3, say"
    )
    assert split(table(rows), Protocol(name="lopo", fold="b/3", val=0)).parts["test"] == ["b3", "b7"]


@pytest.mark.parametrize("name", ["subject_exclusive", "random"])
def test_the_splits_of_published_figures_do_not_move(name: str) -> None:
    """Golden values: the code that split the training faces of zoo:default gave them.

    Without subjects both protocols give that split.
    """
    result = split(
        table([{"key": f"set/{n}"} for n in range(1000)]), Protocol(name=name, val=0.05, test=0.1, seed=0)
    )  # type: ignore[arg-type]
    assert {part: train_digest(keys) for part, keys in result.parts.items()} == {
        "train": "cf29ad3028830476",
        "val": "006cd82ee0107a3c",
        "test": "e684227bc33e5245",
    }
    assert sizes(result.parts) == {"train": 850, "val": 50, "test": 100}
    assert result.notes == [UNKNOWN]


def test_the_splits_of_people_do_not_move() -> None:
    result = split(
        table([{"key": f"set/{n}", "subject": f"{n % 97:03d}"} for n in range(1000)]), Protocol(seed=3)
    )
    assert {part: train_digest(keys) for part, keys in result.parts.items()} == {
        "train": "c1302a102670871c",
        "val": "4ec210d6ff02b04e",
        "test": "70df4118f51b0d85",
    }
    assert result.notes == []


def test_the_default_is_the_split_that_old_settings_name_where_no_subject_is_known() -> None:
    table = faces([None] * 200)
    stored = Protocol.model_validate({"name": "random", "val": 0.05, "test": 0.1, "seed": 0})
    assert Protocol().name == "subject_exclusive"
    assert split(table, stored) == split(table, Protocol())


@pytest.mark.parametrize("name", ["subject_exclusive", "random"])
def test_the_seed_changes_the_split(name: Any) -> None:
    table = faces([None] * 1000)
    first, second = (set(split(table, Protocol(name=name, seed=seed)).parts["test"]) for seed in (0, 1))
    assert len(first) == len(second) == 100
    assert len(first & second) < 30  # 10 expected of two independent tenths; 30 is 7 standard deviations away


def test_a_larger_test_share_contains_the_smaller() -> None:
    small, large = (
        split(faces([None] * 200), Protocol(val=0, test=share)).parts["test"] for share in (0.1, 0.3)
    )
    assert set(small) < set(large)


def test_random_tells_what_it_leaks() -> None:
    table = faces([f"{number % 50:02d}" for number in range(500)])
    result = split(table, Protocol(name="random", val=0.1, test=0.2))
    assert sizes(result.parts) == {"train": 350, "val": 50, "test": 100}
    trained = people(result.parts["train"], table)
    tested = [
        row
        for row in table.to_pylist()
        if row["key"] in set(result.parts["test"]) and ("set", row["subject"]) in trained
    ]
    assert len(tested) > 90
    assert result.notes == [
        f"{len(tested)}.0 % of the test faces ({len(tested)} of 100) "
        f"show one of {len({row['subject'] for row in tested})} subjects who are in "
        "training too: the figures measure recognition as well"
    ]
    assert split(table, Protocol(val=0.1, test=0.2)).notes == []


def test_faces_without_subject_are_told() -> None:
    result = split(faces([None] * 10 + [f"{number}" for number in range(90)]), Protocol(val=0, test=0.2))
    assert result.notes == [
        "10 of 100 training and test faces have no subject: a person may be in both, and nothing tells"
    ]


def test_all_tests_on_every_face() -> None:
    rows = [{"key": "b"}, {"key": "a", "subject": "s"}]
    assert split(table(rows), Protocol(name="all")) == splits.Split(
        {"train": [], "val": [], "test": ["a", "b"]}, []
    )
    assert "no face is left for 'test' (0 faces" in mistake(table([]), name="all")


def test_repeated_keys_are_refused() -> None:
    assert "'b' is there twice" in mistake(table([{"key": key} for key in "cbab"]))


# --- folds --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["subject_exclusive", "random"])
@settings(deadline=None, max_examples=40)
@given(rows=ROWS, count=st.integers(2, 9), seed=st.integers(0, 3), order=st.randoms(use_true_random=False))
def test_folds_test_every_face_once(
    name: Any, rows: list[Row], count: int, seed: int, order: random.Random
) -> None:
    faces = table(rows)
    keys = faces.column("key").to_pylist()
    protocol = Protocol(name=name, folds=count, seed=seed, val=0.2)
    each = folds(faces, protocol)
    assert [fold.fold for fold in each] == list(range(count))
    order.shuffle(rows)
    tested = Counter[str]()
    counts = []
    for fold in each:
        parts = split(faces, fold).parts
        assert split(table(rows), fold).parts == parts
        assert sorted(key for part in PARTS for key in parts[part]) == sorted(keys)
        tested.update(parts["test"])
        if name == "subject_exclusive":
            check_apart(parts, faces, ("train", "val"), ("train", "test"), ("val", "test"))
            counts.append(len(people(parts["test"], faces)))
            missing = len(people(keys, faces)) - counts[-1]
            assert len(people(parts["val"], faces)) == round(0.2 * missing)
    assert tested == dict.fromkeys(keys, 1)
    assert not counts or max(counts) - min(counts) <= 1


def test_the_first_fold_of_ten_is_a_tenth() -> None:
    table = faces([f"{number % 60}" for number in range(300)])
    assert (
        split(table, Protocol(folds=10, fold=0)).parts["test"]
        == split(table, Protocol(test=0.1)).parts["test"]
    )


def test_folds_validate_on_different_people() -> None:
    table = faces([f"{number % 40}" for number in range(200)])
    chosen = [
        frozenset(people(split(table, fold).parts["val"], table))
        for fold in folds(table, Protocol(folds=4, val=0.2))
    ]
    assert len(set(chosen)) == 4


@settings(deadline=None, max_examples=25)
@given(rows=ROWS, seed=st.integers(0, 3), order=st.randoms(use_true_random=False))
def test_lopo_tests_every_known_face_once(rows: list[Row], seed: int, order: random.Random) -> None:
    faces = table(rows)
    subjects = {(row["dataset"], row["subject"]) for row in rows if row["subject"] is not None}
    if len(subjects) < 6:
        return
    each = folds(faces, Protocol(name="lopo", seed=seed, val=0.2))
    assert len(each) == len(subjects)
    order.shuffle(rows)
    tested = Counter[str]()
    for fold in each:
        result = split(faces, fold)
        assert split(table(rows), fold) == result
        assert people(result.parts["test"], faces) < subjects
        assert len(people(result.parts["test"], faces)) == 1
        assert len(people(result.parts["val"], faces)) == round(0.2 * (len(subjects) - 1))
        check_apart(result.parts, faces, ("train", "val"), ("train", "test"), ("val", "test"))
        assert sum(sizes(result.parts).values()) == len(rows)
        assert result.notes[0].endswith(f"(fold {fold.fold} of {len(subjects)}, counted from 0)")
        tested.update(result.parts["test"])
    assert tested == dict.fromkeys([row["key"] for row in rows if row["subject"] is not None], 1)


def test_lopo_by_place_and_by_name() -> None:
    table = faces(["002", "001", "010", "002", None] * 3)
    first = split(table, Protocol(name="lopo", fold=1, val=0))
    assert first.parts["test"] == [
        "set/0.jpg",
        "set/10.jpg",
        "set/13.jpg",
        "set/3.jpg",
        "set/5.jpg",
        "set/8.jpg",
    ]
    assert first == split(table, Protocol(name="lopo", fold="002", val=0))
    assert first.notes == [
        "lopo: tests subject 002 (fold 1 of 3, counted from 0)",
        "3 of 15 training and test faces have no subject: a person may be in both, and nothing tells",
    ]


def test_folds_of_protocols_without() -> None:
    table = faces([None] * 20)
    for protocol in (Protocol(), Protocol(name="random"), Protocol(name="all")):
        assert folds(table, protocol) == [protocol]
    assert [fold.fold for fold in folds(table, Protocol(name="s1_s2_s3"))] == [0, 1]


def test_folds_that_are_not_there() -> None:
    table = faces(["001", "002", "003"])
    assert (
        mistake(table, folds=5)
        == "protocol.folds=5: there are only 3 subjects and faces without one; give fewer folds"
    )
    assert (
        mistake(table, name="lopo", fold=3)
        == "protocol.fold=3: there are 3 subjects; fold 0 is '001', fold 2 '003'"
    )
    expected = "protocol.fold='0001': none of the 3 subjects has this name; did you mean '001'?"
    assert mistake(table, name="lopo", fold="0001") == expected
    assert mistake(table, name="lopo", fold="x").endswith("has this name; '001' is the first")
    assert mistake(faces([None] * 9), name="lopo").startswith(
        "protocol.name=lopo: no face has a subject; set protocol.name=random"
    )
    assert mistake(table, name="lopo", val=0.1).startswith(
        "protocol: no face is left for 'val' (3 faces, val=0.1); change"
    )


def test_the_real_fgnet(fgnet: Path) -> None:
    """82 people. Every photo is tested once; no test person was trained on."""
    faces = read_fgnet(str(fgnet), "fgnet").table
    each = folds(faces, Protocol(name="lopo"))
    assert len(each) == 82
    tested = [key for fold in each for key in split(faces, fold).parts["test"]]
    assert sorted(tested) == sorted(faces.column("key").to_pylist())
    last = split(faces, each[-1])
    assert sizes(last.parts) | {"test": len(last.parts["test"])} == sizes(
        split(faces, Protocol(name="lopo", fold="082")).parts
    )
    assert sum(sizes(last.parts).values()) == 1002
    assert len(people(last.parts["val"], faces)) == 4
    assert last.notes == ["lopo: tests subject 082 (fold 81 of 82, counted from 0)"]
    five = [split(faces, fold) for fold in folds(faces, Protocol(folds=5))]
    assert sorted(key for result in five for key in result.parts["test"]) == sorted(tested)
    for result in five:
        assert result.notes == []
        check_apart(result.parts, faces, ("train", "val"), ("train", "test"), ("val", "test"))
    assert split(faces, Protocol(name="random")).notes[0].startswith("100.0 % of the test faces (100 of 100)")


# --- MORPH II -----------------------------------------------------------------------------------

MORPH = {
    ("White", "female"): 2598,
    ("White", "male"): 7961,
    ("Black", "female"): 5757,
    ("Black", "male"): 36832,
    ("Asian", "male"): 1986,
}


def morph(counts: dict[tuple[str, str], int], per_person: int = 4) -> pa.Table:
    rows: list[Row] = []
    for (group, gender), count in counts.items():
        for number in range(count):
            subject = f"{group}{gender}{number // per_person}"
            rows.append(
                {"key": f"m/{group}-{gender}-{number}", "subject": subject, "group": group, "gender": gender}
            )
    return table(rows)


@pytest.fixture(scope="module")
def whole_morph() -> pa.Table:
    """About as many faces of each race and gender as MORPH II has."""
    return morph(MORPH)


def cells(keys: list[str]) -> Counter[str]:
    return Counter("-".join(key.split("/")[1].split("-")[:2]) for key in keys)


def test_s1_s2_s3_of_the_whole_set(whole_morph: pa.Table) -> None:
    first, second = (
        split(whole_morph, fold) for fold in folds(whole_morph, Protocol(name="s1_s2_s3", val=0))
    )
    s1, s2 = (set(result.parts["train"]) for result in (first, second))
    assert len(s1) == len(s2) == 10_530
    assert not s1 & s2
    keys = set(whole_morph.column("key").to_pylist())
    assert len(keys) == 55_134
    assert set(first.parts["test"]) == keys - s1
    assert set(second.parts["test"]) == keys - s2
    assert len(keys - s1 - s2) == 34_074
    for result in (first, second):
        counts = cells(result.parts["train"])
        assert (
            counts["White-female"] + counts["White-male"]
            == counts["Black-female"] + counts["Black-male"]
            == 5265
        )
        for race in ("White", "Black"):
            assert 3 <= counts[f"{race}-male"] / counts[f"{race}-female"] <= 3.1
        [note] = result.notes
        assert note.startswith(f"{len_shared(result.parts, whole_morph):.1f} % of the test faces")


def len_shared(parts: dict[str, list[str]], faces: pa.Table) -> float:
    subjects = dict(zip(faces.column("key").to_pylist(), faces.column("subject").to_pylist(), strict=True))
    trained = {subjects[key] for key in parts["train"]}
    return 100 * sum(subjects[key] in trained for key in parts["test"]) / len(parts["test"])


def test_s1_s2_s3_validates_on_people_of_the_training_set(whole_morph: pa.Table) -> None:
    bare, validated = (split(whole_morph, Protocol(name="s1_s2_s3", val=val)) for val in (0, 0.1))
    assert validated.parts["test"] == bare.parts["test"]
    assert sorted(validated.parts["train"] + validated.parts["val"]) == bare.parts["train"]
    check_apart(validated.parts, whole_morph, ("train", "val"))
    share = len(people(validated.parts["val"], whole_morph)) / len(people(bare.parts["train"], whole_morph))
    assert share == pytest.approx(0.1, abs=1e-3)
    # not the first of the draw that made S1: that would be nearly all of the largest cell
    assert cells(validated.parts["val"])["White-male"] / len(validated.parts["val"]) == pytest.approx(
        0.375, abs=0.06
    )


@settings(deadline=None, max_examples=40)
@given(
    counts=st.fixed_dictionaries({cell: st.integers(0, 60) for cell in MORPH}),
    seed=st.integers(0, 3),
    order=st.randoms(use_true_random=False),
)
def test_s1_s2_s3_of_small_sets(counts: dict[tuple[str, str], int], seed: int, order: random.Random) -> None:
    faces = morph(counts)
    each = [Protocol(name="s1_s2_s3", fold=fold, val=0, seed=seed) for fold in (0, 1)]
    women = min(counts["White", "female"], counts["Black", "female"]) // 2
    men = min(counts["White", "male"], counts["Black", "male"]) // 2
    if women < 1 or men < 2:
        assert mistake(faces, name="s1_s2_s3").startswith(
            "protocol.name=s1_s2_s3: needs White and Black women and men"
        )
        return
    first, second = (split(faces, protocol) for protocol in each)
    shuffled = list(range(faces.num_rows))
    order.shuffle(shuffled)
    assert split(faces.take(shuffled), each[0]).parts == first.parts
    s1, s2, keys = set(first.parts["train"]), set(second.parts["train"]), set(faces.column("key").to_pylist())
    assert len(s1) == len(s2)
    assert not s1 & s2
    assert set(first.parts["test"]) == keys - s1
    assert set(second.parts["test"]) == keys - s2
    assert (
        first.notes[0]
        == f"s1_s2_s3: this set has too few faces for S1 and S2 of 10,530; they have {len(s1)} each"
    )
    fair = max(3, round(5265 * len(keys) / 55_134))
    allowed = [
        half
        for half in range(1, fair + 1)
        for share in range(1, round(half / 4) + 1)
        if share <= women and half - share <= men and share >= min(round(half / 4), 0.97 * half / 4)
    ]
    assert len(s1) == 2 * max(allowed)
    for training in (first.parts["train"], second.parts["train"]):
        cell, half = cells(training), len(training) // 2
        for race in ("White", "Black"):
            assert cell[f"{race}-female"] + cell[f"{race}-male"] == half
            assert 0.97 * half / 4 <= cell[f"{race}-female"] or cell[f"{race}-female"] == round(half / 4)
            assert cell[f"{race}-female"] <= round(half / 4)


def test_s1_s2_s3_needs_labels() -> None:
    message = mistake(faces(["1"] * 40), name="s1_s2_s3")
    assert message.endswith("there are 0 white female, 0 white male, 0 black female, 0 black male faces")


def test_partial_80_20(whole_morph: pa.Table) -> None:
    result = split(whole_morph, Protocol(name="partial_80_20", val=0))
    assert sizes(result.parts) == {"train": 4394, "val": 0, "test": 1099}
    assert set(cells(result.parts["train"] + result.parts["test"])) == {"White-female", "White-male"}
    validated = split(whole_morph, Protocol(name="partial_80_20", seed=1))
    assert len(result.notes) == 1
    assert result.notes[0].startswith(f"{len_shared(result.parts, whole_morph):.1f} % of the test faces")
    assert (
        len(set(result.parts["test"]) & set(validated.parts["test"])) < 200
    )  # 114 expected of independent draws
    result = split(whole_morph, Protocol(name="partial_80_20", val=0, seed=1))
    assert validated.parts["test"] == result.parts["test"]
    assert sorted(validated.parts["train"] + validated.parts["val"]) == result.parts["train"]
    check_apart(validated.parts, whole_morph, ("train", "val"))


@settings(deadline=None, max_examples=40)
@given(rows=ROWS, seed=st.integers(0, 3), order=st.randoms(use_true_random=False))
def test_partial_80_20_of_small_sets(rows: list[Row], seed: int, order: random.Random) -> None:
    protocol = Protocol(name="partial_80_20", seed=seed, val=0)
    white = {row["key"] for row in rows if row["group"] in ("White", "Caucasian")}
    if len(white) < 3:
        return
    result = split(table(rows), protocol)
    assert set(result.parts["train"] + result.parts["test"]) == white
    assert len(result.parts["test"]) == round(0.2 * len(white))
    assert result.notes[0] == f"partial_80_20: only {len(white)} White faces, not 5,493; all of them are used"
    order.shuffle(rows)
    assert split(table(rows), protocol) == result


def test_partial_80_20_needs_groups() -> None:
    start = "protocol.name=partial_80_20: no face has the group White or Caucasian"
    assert (
        mistake(faces(["1"] * 9), name="partial_80_20")
        == f"{start} (the column group is empty); choose another protocol"
    )
    message = mistake(faces(["1"] * 9, group=["Asian", "Black", "Indian"] * 3), name="partial_80_20")
    assert message == f"{start} (groups: Asian, Black, Indian); choose another protocol"


# --- splits that sets ship with -----------------------------------------------------------------


@pytest.mark.parametrize("form", ["rank_{}", "{}", "{}.0", " Rank {}"])
def test_cacd(form: str) -> None:
    """50 celebrities of each of 40 years: 80 people validate, 120 test, 1,800 train."""
    rows = [
        {"key": f"c/{year}-{rank}-{photo}", "subject": f"{year}-{rank}", "group": form.format(rank)}
        for year in range(40)
        for rank in range(1, 51)
        for photo in range(2)
    ]
    faces = table(rows)
    result = split(faces, Protocol(name="cacd"))
    assert {part: len(people(keys, faces)) for part, keys in result.parts.items()} == {
        "train": 1800,
        "val": 80,
        "test": 120,
    }
    ranks = {part: {int(key.split("-")[1]) for key in keys} for part, keys in result.parts.items()}
    assert ranks == {"train": set(range(6, 51)), "val": {1, VAL_RANKS}, "test": {3, 4, TEST_RANKS}}
    assert result.notes == []
    assert split(faces, Protocol(name="cacd", seed=7)) == result


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (
            [None, "1"],
            "needs the celebrity's rank in the column group, like rank_3; it is empty for key 'set/0.jpg'",
        ),
        (["1", "White"], "it is 'White' for key 'set/1.jpg'"),
        (["1", "0"], "it is '0' for key"),
        (["1", "2.5"], "it is '2.5' for key"),
        (["1", "2"], "subject 's' has ranks 1 and 2; give each person one"),
    ],
)
def test_cacd_needs_ranks(groups: list[Any], message: str) -> None:
    assert message in mistake(faces(["s", "s"], group=groups), name="cacd")


def test_a_set_of_test_celebrities_alone() -> None:
    result = split(faces(["a", "b"], group=["rank_3", "rank_5"]), Protocol(name="cacd"))
    assert sizes(result.parts) == {"train": 0, "val": 0, "test": 2}


def test_fixed_by_a_table(tmp_path: Path) -> None:
    file = tmp_path / "parts.csv"
    file.write_text(
        "key,part\n"
        + "\n".join(
            f"set/{n}.jpg,{'test' if n % 4 == 0 else 'val' if n % 4 == 1 else 'train'}" for n in range(42)
        )
    )
    result = split(faces(["a"] * 50), Protocol(name="fixed", file=str(file)))
    assert sizes(result.parts) == {"train": 20, "val": 11, "test": 11}
    assert "set/0.jpg" in result.parts["test"]
    assert result.notes[0] == f"fixed: 8 of 50 faces are not in {file} and left out"
    assert result.notes[1].startswith("100.0 % of the test faces (11 of 11) show one of 1 subjects")
    fewer = split(faces([None] * 40), Protocol(name="fixed", file=str(file)))
    assert fewer.notes == [f"fixed: 2 of 42 keys in {file} are no face of this set", UNKNOWN]
    message = mistake(table([{"key": "other/1"}]), name="fixed", file=str(file))
    assert (
        message == f"protocol.file={file}: names none of the 1 faces; its keys are like 'set/2.jpg', "
        "theirs like 'other/1'"
    )
    assert "nowhere.csv: not found" in mistake(
        table([{"key": "k"}]), name="fixed", file=str(tmp_path / "nowhere.csv")
    )


def test_a_table_without_validation_faces(tmp_path: Path) -> None:
    """They are drawn from the training part, person by person."""
    file = str(tmp_path / "parts.parquet")
    table = faces([f"{n % 20}" for n in range(100)])
    parts = {
        "train": [f"set/{n}.jpg" for n in range(100) if n % 20 >= 4],
        "val": [],
        "test": [f"set/{n}.jpg" for n in range(100) if n % 20 < 4],
    }
    splits.save(file, parts)
    result = split(table, Protocol(name="fixed", file=file, val=0.25))
    assert sizes(result.parts) == {"train": 60, "val": 20, "test": 20}
    check_apart(result.parts, table, ("train", "val"), ("train", "test"), ("val", "test"))
    assert result.notes == [
        "fixed: no face is set apart for validation; the share 0.25 of the training part's people validate"
    ]
    assert split(table, Protocol(name="fixed", file=file, val=0)).parts == {
        name: sorted(keys) for name, keys in parts.items()
    }


def test_the_split_of_a_run_can_be_given_again(tmp_path: Path) -> None:
    table = faces([f"{n % 30}" for n in range(90)])
    result = split(table, Protocol(seed=5))
    splits.save(str(tmp_path / "split.parquet"), result.parts)
    assert split(table, Protocol(name="fixed", file=str(tmp_path / "split.parquet"))) == result


def test_fixed_by_the_keys() -> None:
    """As `ageray prepare` leaves ChaLearn LAP."""
    rows = [
        {"key": f"lap/{part}/{n}.jpg", "dataset": "lap"}
        for part, count in (("train", 9), ("val", 4), ("test", 5))
        for n in range(count)
    ]
    result = split(table(rows), Protocol(name="fixed"))
    assert sizes(result.parts) == {"train": 9, "val": 4, "test": 5}
    assert all(key.startswith(f"lap/{part}/") for part in PARTS for key in result.parts[part])
    assert result.notes == [UNKNOWN]
    more = split(table([*rows, {"key": "lap/extra.jpg", "dataset": "lap"}]), Protocol(name="fixed"))
    assert more.parts == result.parts
    assert more.notes[0] == "fixed: 1 of 19 keys name no part; these faces are left out"
    assert (
        mistake(table(rows), name="fixed", fold=1)
        == "protocol.fold=1: this set ships with one split, not with folds; set protocol.fold=0"
    )
    assert "set protocol.file to a table of key and part" in mistake(faces(["a"] * 3), name="fixed")


def test_the_sets_validation_part_may_be_tested() -> None:
    """ChaLearn LAP's validation columns: the test part is left out, some of training validate."""
    rows = [{"key": f"lap/train/{n}.jpg", "dataset": "lap"} for n in range(20)]
    rows += [{"key": f"lap/val/{n}.jpg", "dataset": "lap"} for n in range(5)]
    rows += [{"key": f"lap/test/{n}.jpg", "dataset": "lap"} for n in range(7)]
    result = split(table(rows), Protocol(name="fixed", tests="val", val=0.25))
    assert {name: len(keys) for name, keys in result.parts.items()} == {"train": 15, "val": 5, "test": 5}
    assert all("/val/" in key for key in result.parts["test"])
    assert "7 faces of the test part are left out" in result.notes[0]
    assert "has no validation part" in mistake(table(rows[:20] + rows[25:]), name="fixed", tests="val")


def test_fixed_by_the_folds_of_the_keys() -> None:
    """As `ageray prepare` leaves Adience."""
    rows = [{"key": f"adi/fold_{n % 5}/u/{n}", "dataset": "adi", "subject": f"{n % 50}"} for n in range(200)]
    each = folds(table(rows), Protocol(name="fixed"))
    assert [fold.fold for fold in each] == [0, 1, 2, 3, 4]
    tested = []
    for fold in each:
        result = split(table(rows), fold)
        assert {key.split("/")[1] for key in result.parts["test"]} == {f"fold_{fold.fold}"}
        assert sizes(result.parts) == {"train": 152, "val": 8, "test": 40}
        check_apart(result.parts, table(rows), ("train", "val"), ("train", "test"))
        tested += result.parts["test"]
    assert sorted(tested) == sorted(row["key"] for row in rows)
    assert (
        mistake(table(rows), name="fixed", fold=5) == "protocol.fold=5: the keys name the folds 0, 1, 2, 3, 4"
    )


# --- options ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val": 0.5, "test": 0.5}, "val + test must leave faces to train on; got 0.5 + 0.5"),
        ({"folds": 5, "val": 1}, "val must leave faces to train on; got 1.0"),
        ({"folds": 5, "fold": 5}, "fold=5: there are 5 folds, 0 to 4"),
        ({"name": "random", "folds": 2, "fold": 2}, "fold=2: there are 2 folds, 0 to 1"),
        ({"folds": 1}, "folds=1: one fold leaves no face to train on; give 2 or more, or 0 for shares"),
        ({"fold": 2}, "fold=2: subject_exclusive has no folds here; set folds=5, say"),
        ({"folds": 5, "fold": "001"}, "fold='001': only lopo names a person; give the fold's number, from 0"),
        ({"name": "s1_s2_s3", "fold": 2}, "fold=2: there are 2 folds, 0 to 1"),
        ({"name": "cacd", "fold": 1}, "fold=1: cacd has no folds here; set fold=0"),
        (
            {"name": "lopo", "folds": 5},
            "folds=5: only subject_exclusive and random have folds to choose the number of; set folds=0",
        ),
        ({"name": "fixed", "file": "x.csv", "fold": 1}, "fold=1: fixed has no folds here; set fold=0"),
        ({"file": "x.csv"}, "file=x.csv: only fixed reads it; set name=fixed or take file away"),
    ],
)
def test_options_that_do_not_go_together(options: Row, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Protocol(**options)
    [error] = caught.value.errors()
    assert error["msg"] == f"Value error, {message}"


@pytest.mark.parametrize(
    "options",
    [{"name": "fold"}, {"val": -0.1}, {"test": 1.5}, {"folds": -1}, {"fold": -1}, {"fold": ""}, {"seed": -1}],
)
def test_values_that_are_refused(options: Row) -> None:
    with pytest.raises(ValidationError):
        Protocol(**options)


def test_shares_that_a_protocol_does_not_use_are_free() -> None:
    assert Protocol(name="lopo", val=0.5, test=0.9).fold == 0
    assert Protocol(folds=3, fold=2, val=0.5, test=0.9).folds == 3
