"""Manifests: every row is kept or told by its number with a reason."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ageray.errors import UserError
from ageray.experiment import Data
from ageray.prepare import manifest, sources
from ageray.prepare.manifest import MANIFEST, Problem

POINTS = [float(value) for value in range(10)]


def read(source: Path) -> sources.Source:
    return sources.read(Data.model_validate({"name": "set", "source": str(source)}))


def told(source: sources.Source) -> dict[str, str]:
    return {problem.where: problem.reason for problem in source.problems}


def test_csv_manifest(tmp_path: Path) -> None:
    (tmp_path / "faces.csv").write_bytes(
        "\ufeffimage,age,age_std,subject,gender,group,note,x0,y0,x1,y1,x2,y2,x3,y3,x4,y4\n"
        'a/one.jpg,31.5,2,s1,female,Asian,"a, b",0,1,2,3,4,5,6,7,8,9\r\n'
        "./a/../two.jpg,,,s2,,,,,,,,,,,,,\n"
        "/abs/three.jpg,0,,s2,,,,,,,,,,,,,\n"
        "s3://bucket/four.jpg,123,,s3,,,,,,,,,,,,,\n".encode()
    )
    source = read(tmp_path / "faces.csv")
    assert (source.layout, source.photos, source.problems) == ("manifest", 4, [])
    assert source.table.schema == MANIFEST
    rows = {row["key"]: row for row in source.table.to_pylist()}
    root = str(tmp_path.resolve())
    assert {key: row["uri"] for key, row in rows.items()} == {
        "set/a/one.jpg": f"{root}/a/one.jpg",
        "set/two.jpg": f"{root}/./a/../two.jpg",
        "set/abs/three.jpg": "/abs/three.jpg",
        "set/s3:/bucket/four.jpg": "s3://bucket/four.jpg",
    }
    one = rows["set/a/one.jpg"]
    assert (one["age"], one["age_std"], one["subject"], one["gender"], one["group"]) == (
        31.5,
        2,
        "s1",
        "female",
        "Asian",
    )
    assert one["landmarks"] == POINTS
    assert rows["set/two.jpg"]["age"] is rows["set/two.jpg"]["landmarks"] is None


def test_bad_rows_are_told_by_number(tmp_path: Path) -> None:
    rows = [
        ("a.jpg,k1,30", None),
        ("b.jpg,k2,250", "age 250 is not within 0..123"),
        ("c.jpg,k3,-1", "age -1 is not within 0..123"),
        (",k4,30", "no image path"),
        ("d.jpg,k1,30", "key 'k1' came before"),
        ("e.jpg,k5,old", "age 'old' is not a number"),
        ("f.jpg,k6,inf", "age inf is not within"),
        ("g.jpg,k7,30,surplus", "more values than columns"),
        ("h.jpg,k8", None),  # a short row: the rest is empty
    ]
    (tmp_path / "faces.csv").write_text("image,key,age\n" + "\n".join(row for row, _ in rows) + "\n")
    source = read(tmp_path / "faces.csv")
    assert source.photos == len(rows)
    assert source.table.column("key").to_pylist() == ["k1", "k8"]
    reasons = told(source)
    assert sorted(reasons) == [f"row {number}" for number in range(2, 9)]
    for number, (_, reason) in enumerate(rows, start=1):
        assert reason is None or reason in reasons[f"row {number}"]


@pytest.mark.parametrize(
    ("value", "reason"),
    [("1 2 3", "got 3"), ("1,2,3,4,5,6,7,8,9,nan", "got 10"), ("a b", "not all numbers")],
)
def test_bad_landmarks_are_bad_rows(tmp_path: Path, value: str, reason: str) -> None:
    good = "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]"
    (tmp_path / "faces.csv").write_text(f'uri,landmarks\na.jpg,"{value}"\nb.jpg,"{good}"\n')
    source = read(tmp_path / "faces.csv")
    assert source.table.column("landmarks").to_pylist() == [POINTS]
    assert [problem.where for problem in source.problems] == ["row 1"]
    assert reason in source.problems[0].reason


def test_parquet_manifest(tmp_path: Path) -> None:
    table = pa.table(
        {
            "uri": ["a.jpg", "b.jpg", "c.jpg", None],
            "age": pa.array([3, None, 200, 4], pa.int64()),
            "subject": pa.array([7, None, 8, 9], pa.int32()),
            "landmarks": [POINTS, None, POINTS, POINTS],
            "blob": [b"1", b"2", b"3", b"4"],
        }
    )
    pq.write_table(table, tmp_path / "faces.parquet")
    source = read(tmp_path / "faces.parquet")
    first, second = source.table.to_pylist()
    assert (first["age"], first["subject"], first["landmarks"]) == (3, "7", POINTS)
    assert (second["age"], second["subject"], second["landmarks"]) == (None, None, None)
    assert [problem.where for problem in source.problems] == ["row 3", "row 4"]
    assert [(note.where, note.kind) for note in source.notes] == [("row 2", "no subject")]


def test_an_empty_subject_is_a_bad_row_where_others_have_one(tmp_path: Path) -> None:
    (tmp_path / "faces.csv").write_text(
        "image,age,subject\na.jpg,3,s1\nb.jpg,4,\nc.jpg,5,  \nd.jpg,6,s1\ne.jpg,7\n"
    )
    source = read(tmp_path / "faces.csv")
    assert source.table.column("key").to_pylist() == ["set/a.jpg", "set/d.jpg"]
    assert sorted(told(source)) == ["row 2", "row 3", "row 5"]
    assert "subject is empty, but other rows have one" in told(source)["row 2"]
    assert source.notes == []


def test_a_column_of_empty_subjects_names_nobody(tmp_path: Path) -> None:
    (tmp_path / "faces.csv").write_text("image,subject\na.jpg,\nb.jpg,\n")
    source = read(tmp_path / "faces.csv")
    assert (source.table.column("subject").null_count, source.problems, source.notes) == (2, [], [])


def test_empty_and_null_subjects_differ_in_parquet(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"image": ["a.jpg", "b.jpg", "c.jpg"], "subject": ["s", "", None]}),
        tmp_path / "faces.parquet",
    )
    source = read(tmp_path / "faces.parquet")
    assert source.table.column("subject").to_pylist() == ["s", None]
    assert list(told(source)) == ["row 2"]
    assert [note.where for note in source.notes] == ["row 3"]


def test_duplicate_places_and_bad_deviations_have_row_numbers(tmp_path: Path) -> None:
    rows = "a.jpg,3,1\nb.jpg,3,-1\n./a.jpg,4,1\nc.jpg,3,200\nd.jpg,3,wide\n"
    (tmp_path / "faces.csv").write_text("image,age,age_std\n" + rows)
    source = read(tmp_path / "faces.csv")
    assert source.table.column("key").to_pylist() == ["set/a.jpg"]
    assert told(source) == {
        "row 2": "age_std -1 is not within 0..123",
        "row 3": "key 'set/a.jpg' came before; keys must be unique",
        "row 4": "age_std 200 is not within 0..123",
        "row 5": "age_std 'wide' is not a number",
    }


def test_empty_values_beyond_the_last_column_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / "faces.csv").write_text("image,age,\na.jpg,3,\nb.jpg,4,,\n\nc.jpg,5,,x\n")
    source = read(tmp_path / "faces.csv")
    assert source.table.column("age").to_pylist() == [3, 4]
    assert list(told(source)) == ["row 3"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("images,age\na.jpg,3\n", r"needs a column 'image'.*it has images, age; rename 'images'"),
        ("", r"needs a column 'image'.*it has none"),
        ("image,x0,y0\na.jpg,1,2\n", r"five points need.*x1, y1, x2"),
        ('image,age\n"a.jpg,3\n', r"line 2 is not CSV"),
        ("image,age\n", r"holds no photos"),
        ("image,Age\na.jpg,3\n", r"column 'Age' would not be read; rename it 'age'"),
        ("image,age,age\na.jpg,3,4\n", r"has 2 columns 'age'; leave one"),
        ("image,age\na.jpg,300\n", r"none of 1 photos.*row 1: age 300"),
    ],
)
def test_csv_files_that_are_no_manifest(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "faces.csv").write_text(text)
    with pytest.raises(UserError, match=reason):
        read(tmp_path / "faces.csv")


def test_face_shards_are_no_manifest(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [b"jpeg"]}), tmp_path / "faces.parquet")
    with pytest.raises(UserError, match="face shards already"):
        read(tmp_path / "faces.parquet")
    (tmp_path / "text.parquet").write_text("image\n")
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        read(tmp_path / "text.parquet")


def test_build_sorts_and_keeps_the_first_of_a_key() -> None:
    problems: list[Problem] = []
    rows = [{"key": key, "uri": uri, "dataset": "d"} for key, uri in (("b", "1"), ("a", "2"), ("b", "3"))]
    table = manifest.build(rows, problems)
    assert table.column("uri").to_pylist() == ["2", "1"]
    assert [problem.where for problem in problems] == ["b"]
