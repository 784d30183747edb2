"""The table of a split: what is saved loads, and other files are told."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ageray.data.splits import Split, load, save, used_faces
from ageray.errors import UserError

PARTS = {"train": ["set/1", "set/3"], "val": ["set/2"], "test": []}


def test_save_and_load(tmp_path: Path) -> None:
    file = str(tmp_path / "run" / "split.parquet")
    save(file, PARTS)
    assert load(file) == PARTS
    table = pq.read_table(file)
    assert table.column_names == ["key", "part"]
    assert table.to_pylist() == [
        {"key": "set/1", "part": "train"},
        {"key": "set/3", "part": "train"},
        {"key": "set/2", "part": "val"},
    ]
    save(file, {name: keys[::-1] for name, keys in PARTS.items()})
    assert load(file) == PARTS


def test_a_users_table(tmp_path: Path) -> None:
    """CSV with other columns, in another order; keys that look like numbers stay text."""
    file = tmp_path / "parts.CSV"
    file.write_text("note,part,key\na,test,007\nb,train,08\n")
    assert load(str(file)) == {"train": ["08"], "val": [], "test": ["007"]}
    pq.write_table(pa.table({"part": ["val"], "age": [3.0], "key": ["k"]}), tmp_path / "parts.parquet")
    assert load(str(tmp_path / "parts.parquet")) == {"train": [], "val": ["k"], "test": []}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not parquet", r"x: not a split table with the columns key and part"),
        (pa.table({"name": ["a"]}), r"x: not a split table"),
        (pa.table({"key": ["a"], "part": pa.array([None], pa.string())}), r"x: not a split table"),
        (
            pa.table({"key": ["a"], "part": ["dev"]}),
            r"x: unknown part 'dev' of key 'a'; parts are train, val, test",
        ),
        (pa.table({"key": ["a", "b", "a"], "part": ["val", "val", "test"]}), r"x: key 'a' is there twice"),
    ],
)
def test_load_refuses_other_files(content: bytes | pa.Table, message: str, tmp_path: Path) -> None:
    if isinstance(content, bytes):
        (tmp_path / "x").write_bytes(content)
    else:
        pq.write_table(content, tmp_path / "x")
    with pytest.raises(UserError, match=message) as caught:
        load(str(tmp_path / "x"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["key,parts\na,val\n", "", 'key,part\n"a,val\n', "key,part\na,\n", "key,part\na\n"]
)
def test_load_refuses_other_csv(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(UserError, match=r"x\.csv: (not a split table|unknown part '')"):
        load(str(tmp_path / "x.csv"))


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.parquet: not found"):
        load(str(tmp_path / "none.parquet"))


def test_a_split_without_notes() -> None:
    assert Split(PARTS).notes == []


def test_the_faces_of_some_splits_are_those_in_any_of_their_parts() -> None:
    labelled = pa.table({"key": ["d", "a", "c", "b"], "age": [4, 1, 3, 2]})
    first = Split({"train": ["a"], "val": [], "test": ["b"]})
    second = Split({"train": ["d"], "val": ["a"], "test": []})
    assert used_faces(labelled, [first]).column("key").to_pylist() == ["a", "b"]
    assert used_faces(labelled, [first, second]).column("age").to_pylist() == [4, 1, 2]
