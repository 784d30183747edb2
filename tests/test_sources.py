"""What is read of each kind of source, and that everything left out is listed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ageray.data import manifest, sources
from ageray.data.manifest import MANIFEST, Problem
from ageray.errors import UserError
from ageray.experiment import Data

POINTS = [float(value) for value in range(10)]


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def read(source: Path, name: str = "set", **options: str) -> sources.Source:
    return sources.read(Data.model_validate({"name": name, "source": str(source), **options}))


def pts(points: np.ndarray | None = None) -> str:
    places = np.stack([np.arange(68), np.arange(68) + 0.5], 1) if points is None else points
    return "version: 1\nn_points: 68\n{\n" + "\n".join(f"{x} {y}" for x, y in places) + "\n}\n"


# --- UTKFace ----------------------------------------------------------------------------------------------------------


def test_utkface_names(tmp_path: Path) -> None:
    good = ["1_0_0_20170109.jpg.chip.jpg", "part2/116_1_4_20170112213500903.jpg.chip.jpg", "35_1_2_2017.JPG"]
    bad = [
        "39_1_20170116174525125.jpg.chip.jpg",  # gender or race missing
        "24_0_1_20170116220224657 .jpg.chip.jpg",  # a space
        "55_0_0_20170116232725357jpg.chip.jpg",  # a lost dot
        "30_2_0_2017.jpg.chip.jpg",  # no such gender
        "30_0_5_2017.jpg.chip.jpg",  # no such group
        "0_0_0_2017.jpg.chip.jpg",
        "200_0_0_2017.jpg.chip.jpg",  # nobody is that old
    ]
    source = read(touch(tmp_path, *good, *bad, "readme.txt", ".DS_Store"), layout="utkface")
    assert source.photos == 10
    rows = {row["key"]: row for row in source.table.to_pylist()}
    assert sorted(rows) == sorted(f"set/{name}" for name in good)
    old = rows["set/part2/116_1_4_20170112213500903.jpg.chip.jpg"]
    assert (old["age"], old["gender"], old["group"], old["subject"]) == (116, "female", "Other", None)
    assert old["uri"] == str(tmp_path.resolve() / "part2/116_1_4_20170112213500903.jpg.chip.jpg")
    assert (rows["set/35_1_2_2017.JPG"]["gender"], rows["set/35_1_2_2017.JPG"]["group"]) == ("female", "Asian")
    assert rows["set/1_0_0_20170109.jpg.chip.jpg"]["gender"] == "male"
    assert sorted(problem.where for problem in source.problems) == sorted(f"set/{name}" for name in bad)
    assert {problem.kind for problem in source.problems} == {"malformed name"}


def test_the_real_utkface(utkface: Path) -> None:
    source = read(utkface, "utkface")
    assert (source.layout, source.photos, source.table.num_rows) == ("utkface", 21420, 21415)
    assert [problem.where for problem in source.problems] == [
        "utkface/24_0_1_20170116220224657 .jpg.chip.jpg",
        "utkface/39_1_20170116174525125.jpg.chip.jpg",
        "utkface/55_0_0_20170116232725357jpg.chip.jpg",
        "utkface/61_1_20170109142408075.jpg.chip.jpg",
        "utkface/61_1_20170109150557335.jpg.chip.jpg",
    ]
    ages = source.table.column("age").to_pylist()
    assert (min(ages), max(ages)) == (1, 116)


# --- FG-NET -----------------------------------------------------------------------------------------------------------


def test_fgnet_names_and_points(tmp_path: Path) -> None:
    names = ["001A02.JPG", "082A43a.jpg", "003A07.JPG", "004A08.JPG", "005A09.JPG", "photo.jpg"]
    touch(tmp_path, *(f"images/{name}" for name in names))
    touch(tmp_path, "points/x")
    (tmp_path / "points/001a02.pts").write_text(pts())
    (tmp_path / "points/082A43A.PTS").write_text(pts())
    (tmp_path / "points/004a08.pts").write_text(pts()[:100])
    (tmp_path / "points/005a09.pts").write_bytes(b"\xff\xfe")
    source = read(tmp_path)
    assert (source.layout, source.photos) == ("fgnet", 6)
    rows = {row["key"]: row for row in source.table.to_pylist()}
    assert (rows["set/images/001A02.JPG"]["subject"], rows["set/images/001A02.JPG"]["age"]) == ("001", 2)
    assert (rows["set/images/082A43a.jpg"]["subject"], rows["set/images/082A43a.jpg"]["age"]) == ("082", 43)
    five = [31, 31.5, 36, 36.5, 67, 67.5, 48, 48.5, 54, 54.5]
    assert rows["set/images/001A02.JPG"]["landmarks"] == rows["set/images/082A43a.jpg"]["landmarks"] == five
    assert source.problems == [Problem("set/images/photo.jpg", "malformed name", "not like 001A02.JPG")]
    assert {note.where for note in source.notes} == {f"set/images/{name}" for name in names[2:5]}
    assert all(rows[note.where]["landmarks"] is None for note in source.notes)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not 'x y' lines"),
        ("{\n1 2\n}", "1 lines of points, not 68"),
        ("{\n" + "1 2 3\n" * 68 + "}", "68 of x and y"),
        (pts().replace("31 31.5", "x 31.5").replace("31.0 31.5", "x 31.5"), "not 'x y' lines"),
        (pts().replace("67.0 67.5", "nan 67.5"), "not finite"),
        (pts(np.stack([68 - np.arange(68.0), np.arange(68.0)], 1)), "left pupil"),
    ],
)
def test_broken_points_say_why(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        sources.five_points(text)


def test_the_real_fgnet(fgnet: Path) -> None:
    source = read(fgnet, "fgnet")
    assert (source.layout, source.photos, source.table.num_rows) == ("fgnet", 1002, 1002)
    assert source.problems == source.notes == []
    assert len(set(source.table.column("subject").to_pylist())) == 82
    points = np.array(source.table.column("landmarks").to_pylist()).reshape(-1, 5, 2)
    left_eye, right_eye, nose, left_mouth, right_mouth = points.transpose(1, 0, 2)
    assert (left_eye[:, 0] < right_eye[:, 0]).all()
    assert (left_mouth[:, 0] < right_mouth[:, 0]).all()
    assert (nose[:, 1] > (left_eye + right_eye)[:, 1] / 2).all()
    # One head lies at 45 degrees, one nose was placed on the moustache.
    assert (nose[:, 1] >= (left_mouth + right_mouth)[:, 1] / 2).sum() == 2


# --- manifests --------------------------------------------------------------------------------------------------------


def test_csv_manifest(tmp_path: Path) -> None:
    (tmp_path / "faces.csv").write_bytes(
        "\ufeffimage,age,age_std,subject,gender,group,note,x0,y0,x1,y1,x2,y2,x3,y3,x4,y4\n"
        'a/one.jpg,31.5,2,s1,female,Asian,"a, b",0,1,2,3,4,5,6,7,8,9\r\n'
        "./a/../two.jpg,,,,,,,,,,,,,,,,\n"
        "/abs/three.jpg,0,,,,,,,,,,,,,,,\n"
        "s3://bucket/four.jpg,123,,,,,,,,,,,,,,,\n".encode()
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
    assert (one["age"], one["age_std"], one["subject"], one["gender"], one["group"]) == (31.5, 2, "s1", "female", "Asian")
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
    told = {problem.where: problem.reason for problem in source.problems}
    assert sorted(told) == [f"row {number}" for number in range(2, 9)]
    for number, (_, reason) in enumerate(rows, start=1):
        assert reason is None or reason in told[f"row {number}"]


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


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("images,age\na.jpg,3\n", r"needs a column 'image'.*it has images, age; rename 'images'"),
        ("", r"needs a column 'image'.*it has none"),
        ("image,x0,y0\na.jpg,1,2\n", r"five points need.*x1, y1, x2"),
        ('image,age\n"a.jpg,3\n', r"line 2 is not CSV"),
        ("image,age\n", r"holds no photos"),
        ("image,age\na.jpg,300\n", r"none of 1 photos.*row 1: age 300"),
    ],
)
def test_csv_files_that_are_no_manifest(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "faces.csv").write_text(text)
    with pytest.raises(UserError, match=told):
        read(tmp_path / "faces.csv")


def test_face_shards_are_no_manifest(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [b"jpeg"]}), tmp_path / "faces.parquet")
    with pytest.raises(UserError, match="face shards already"):
        read(tmp_path / "faces.parquet")
    (tmp_path / "text.parquet").write_text("image\n")
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        read(tmp_path / "text.parquet")


# --- folders and what is what -----------------------------------------------------------------------------------------


def test_folder_knows_nothing_but_the_photos(tmp_path: Path) -> None:
    source = read(touch(tmp_path, "b.PNG", "a/ünï.jpeg", "notes.txt"))
    assert (source.layout, source.photos) == ("folder", 2)
    assert source.table.column("key").to_pylist() == ["set/a/ünï.jpeg", "set/b.PNG"]
    assert source.table.column("age").null_count == 2


def test_a_name_that_is_not_utf8_is_listed(tmp_path: Path) -> None:
    touch(tmp_path, "good.jpg")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/b\xe4d.jpg")).touch()
    source = read(tmp_path)
    assert source.table.column("key").to_pylist() == ["set/good.jpg"]
    assert [(problem.kind, problem.reason) for problem in source.problems] == [("malformed name", "not UTF-8")]
    assert "b\\udce4d.jpg" in source.problems[0].where


def test_keys_do_not_depend_on_where_the_set_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = []
    for place in ("here", "there"):
        folder = touch(tmp_path / place, "20_0_0_1.jpg", "in/30_1_1_2.jpg")
        keys.append(read(folder).table.column("key").to_pylist())
    monkeypatch.chdir(tmp_path)
    keys.append(read(Path("here/")).table.column("key").to_pylist())
    assert keys[0] == keys[1] == keys[2] == ["set/20_0_0_1.jpg", "set/in/30_1_1_2.jpg"]


def test_recognise(tmp_path: Path) -> None:
    assert sources.recognise(str(touch(tmp_path / "u", "20_0_0_1.jpg", "21_0_0_1.jpg", "x.jpg"))) == "utkface"
    assert sources.recognise(str(touch(tmp_path / "p", "20_0_0_1.jpg", "y.jpg", "x.jpg"))) == "folder"
    assert sources.recognise(str(touch(tmp_path / "f", "images/a.jpg", "points/a.pts"))) == "fgnet"
    assert sources.recognise(str(touch(tmp_path, "m.CSV") / "m.CSV")) == "manifest"
    with pytest.raises(UserError, match="neither a folder nor a manifest"):
        sources.recognise(str(touch(tmp_path, "faces.tar") / "faces.tar"))


def test_sources_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.source is not set"):
        sources.read(Data())
    with pytest.raises(UserError, match=r"data\.source=.*nowhere: does not exist"):
        read(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: holds no photos"):
        read(tmp_path / "empty")
    touch(tmp_path / "photos", "x.jpg")
    with pytest.raises(UserError, match=r"layout 'manifest' needs a CSV or Parquet file"):
        read(tmp_path / "photos", layout="manifest")
    with pytest.raises(UserError, match=r"none of 1 photos can be used as layout 'utkface'.*x\.jpg"):
        read(tmp_path / "photos", layout="utkface")
    with pytest.raises(UserError, match=r"images: there is no such folder"):
        read(tmp_path / "photos", layout="fgnet")
    (tmp_path / "m.csv").write_text("image\nx.jpg\n")
    with pytest.raises(UserError, match=r"layout 'folder' needs a folder"):
        read(tmp_path / "m.csv", layout="folder")


def test_build_sorts_and_keeps_the_first_of_a_key() -> None:
    problems: list[Problem] = []
    rows = [{"key": key, "uri": uri, "dataset": "d"} for key, uri in (("b", "1"), ("a", "2"), ("b", "3"))]
    table = manifest.build(rows, problems)
    assert table.column("uri").to_pylist() == ["2", "1"]
    assert [problem.where for problem in problems] == ["b"]
