"""The parts of a split: exact, disjoint, whole subjects, the same whatever the order of the rows."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ageray.data.splits import PARTS, load, save, split
from ageray.errors import UserError
from ageray.experiment import Protocol

SUBJECTS = st.lists(st.none() | st.sampled_from([f"{number:03d}" for number in range(40)]), min_size=20, max_size=200)
SHARES = st.tuples(st.floats(0, 0.4), st.floats(0, 0.4))


def keys_for(subjects: list[str | None]) -> list[str]:
    return [f"set/{number}.jpg" for number in range(len(subjects))]


def units(keys: list[str], subjects: dict[str, str | None]) -> set[str]:
    return {subjects[key] or key for key in keys}


@settings(deadline=None)
@given(subjects=SUBJECTS, shares=SHARES, seed=st.integers(0, 9), order=st.randoms(use_true_random=False))
def test_random_split(subjects: list[str | None], shares: tuple[float, float], seed: int, order: random.Random) -> None:
    keys = keys_for(subjects)
    protocol = Protocol(val=shares[0], test=shares[1], seed=seed)
    known = dict(zip(keys, subjects, strict=True))
    total = len(units(keys, known))
    wanted = {"val": round(shares[0] * total), "test": round(shares[1] * total)}
    if any(wanted[name] == 0 and getattr(protocol, name) > 0 for name in wanted) or sum(wanted.values()) >= total:
        with pytest.raises(UserError, match="no face is left"):
            split(keys, subjects, protocol)
        return
    parts = split(keys, subjects, protocol)
    assert sorted(key for name in PARTS for key in parts[name]) == sorted(keys)
    for name, count in wanted.items():
        assert len(units(parts[name], known)) == count
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        assert not units(parts[one], known) & units(parts[other], known)
    rows = list(zip(keys, subjects, strict=True))
    order.shuffle(rows)
    assert split([key for key, _ in rows], [subject for _, subject in rows], protocol) == parts


def test_shares_are_of_subjects_where_known() -> None:
    subjects = [f"{number % 10:03d}" for number in range(100)]
    keys = keys_for(list(subjects))
    parts = split(keys, subjects, Protocol(val=0.1, test=0.2))
    assert {name: len(parts[name]) for name in PARTS} == {"train": 70, "val": 10, "test": 20}


def test_a_subject_named_like_a_key_is_not_that_face() -> None:
    keys = ["a", "b", *(f"k{number}" for number in range(18))]
    parts = split(keys, [None, "a", *[None] * 18], Protocol(val=0.25, test=0.25))
    assert {name: len(parts[name]) for name in PARTS} == {"train": 10, "val": 5, "test": 5}


def test_the_seed_changes_the_split_and_nothing_else_does() -> None:
    keys = [f"set/{number}" for number in range(1000)]
    none = [None] * len(keys)
    first = split(keys, none, Protocol(seed=0))
    assert first == split(keys, none, Protocol(seed=0))
    second = split(keys, none, Protocol(seed=1))
    shared = len(set(first["test"]) & set(second["test"]))
    assert len(first["test"]) == len(second["test"]) == 100
    assert shared < 30  # 10 expected of two independent tenths; 30 is 7 standard deviations away
    assert first["test"][:3] == ["set/109", "set/11", "set/123"]  # pinned: the split of published figures must not move


def test_a_larger_test_share_contains_the_smaller() -> None:
    keys = [f"set/{number}" for number in range(200)]
    small = split(keys, [None] * 200, Protocol(val=0, test=0.1))["test"]
    large = split(keys, [None] * 200, Protocol(val=0, test=0.3))["test"]
    assert set(small) < set(large)


def test_all_tests_on_every_face() -> None:
    assert split(["b", "a"], [None, "s"], Protocol(name="all")) == {"train": [], "val": [], "test": ["a", "b"]}
    with pytest.raises(UserError, match=r"no face is left for 'test' \(0 faces"):
        split([], [], Protocol(name="all"))


def test_repeated_keys_are_refused() -> None:
    with pytest.raises(UserError, match=r"'b' is there twice"):
        split(["c", "b", "a", "b"], [None] * 4, Protocol())


def test_save_and_load(tmp_path: Path) -> None:
    keys = [f"set/{number}" for number in range(50)]
    parts = split(keys, [None] * 50, Protocol())
    file = str(tmp_path / "run" / "split.parquet")
    save(file, parts)
    assert load(file) == parts
    assert pq.read_table(file).column_names == ["key", "part"]


def test_load_refuses_other_files(tmp_path: Path) -> None:
    file = tmp_path / "x.parquet"
    file.write_bytes(b"not parquet")
    with pytest.raises(UserError, match=r"x\.parquet: not a split table"):
        load(str(file))
    pq.write_table(pa.table({"key": ["a"], "part": ["dev"]}), file)
    with pytest.raises(UserError, match=r"unknown part 'dev' of key 'a'"):
        load(str(file))
    pq.write_table(pa.table({"name": ["a"]}), file)
    with pytest.raises(UserError, match=r"not a split table"):
        load(str(file))
    with pytest.raises(UserError, match=r"not found"):
        load(str(tmp_path / "none.parquet"))
