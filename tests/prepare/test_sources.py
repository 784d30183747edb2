"""What is read of each kind of source, and that everything left out is listed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from ageray.commands.prepare import parser
from ageray.errors import UserError
from ageray.experiment import Data, Filters
from ageray.experiment.data import Layout
from ageray.prepare import sources
from ageray.prepare.layouts.catalog import LAYOUTS
from ageray.prepare.manifest import Problem


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


# --- UTKFace --------------------------------------------------------------------------------------


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
    assert (rows["set/35_1_2_2017.JPG"]["gender"], rows["set/35_1_2_2017.JPG"]["group"]) == (
        "female",
        "Asian",
    )
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


# --- FG-NET ---------------------------------------------------------------------------------------


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


# --- folders and what is what ---------------------------------------------------------------------


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
    assert [(problem.kind, problem.reason) for problem in source.problems] == [
        ("malformed name", "not UTF-8")
    ]
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
    assert (
        sources.recognise(
            str(touch(tmp_path / "a", "0_MariaCallas_35_f.jpg", "x.jpg", "9_Jr._Downey_5_m.JPG"))
        )
        == "agedb"
    )
    assert sources.recognise(str(touch(tmp_path / "c", "CACD2000/53_Robin_Williams_0001.jpg"))) == "cacd"
    assert sources.recognise(str(touch(tmp_path / "o", "Album2/009055_1M54.JPG"))) == "morph"
    assert (
        sources.recognise(str(touch(tmp_path / "d", "15/111/638660-1.jpg", "15/112/1-0.jpg", "Thumbs.db")))
        == "afad"
    )
    with pytest.raises(UserError, match="neither a folder nor a manifest"):
        sources.recognise(str(touch(tmp_path, "faces.tar") / "faces.tar"))


@pytest.mark.parametrize(
    ("list_file", "layout"),
    [
        ("imdb_crop/imdb.mat", "imdb_wiki"),
        ("wiki.mat", "imdb_wiki"),
        ("celebrity2000_meta.mat", "cacd"),
        ("celebrity2000.mat", "cacd"),
        ("fold_3_data.txt", "adience"),
        ("folds/fold_frontal_0_data.txt", "adience"),
        ("list/train_age.txt", "megaage_asian"),
        ("gt/train_gt.csv", "chalearn_lap"),
        ("gt_avg_train.csv", "chalearn_lap"),
        ("MORPH_2008_nonCommercial.csv", "morph"),
        ("faces.csv", "utkface"),  # may be anything
    ],
)
def test_a_set_is_recognised_by_its_own_list(tmp_path: Path, list_file: str, layout: str) -> None:
    touch(tmp_path, "deep/20_0_0_1.jpg", list_file)
    assert sources.recognise(str(tmp_path)) == layout


def test_lists_of_several_sets_are_ambiguous(tmp_path: Path) -> None:
    touch(tmp_path, "morph/morph_2008_nonCommercial.csv", "megaage/list/train_age.txt", "x.jpg")
    with pytest.raises(UserError, match=r"holds lists of megaage_asian and morph; set data\.layout"):
        read(tmp_path)


def test_ages_that_are_filtered_are_listed(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{age}_0_0_1.jpg" for age in (15, 16, 60, 61, 99)))
    data = {"name": "set", "source": str(tmp_path), "filters": {"min_age": 16, "max_age": 60}}
    source = sources.read(Data.model_validate(data))
    assert source.table.column("age").to_pylist() == [16, 60]
    assert source.photos == 5
    assert [(problem.where, problem.kind) for problem in source.problems] == [
        (f"set/{age}_0_0_1.jpg", "filtered") for age in (15, 61, 99)
    ]
    assert source.problems[0].reason == "age 15 is not within data.filters.min_age=16 to max_age=60"
    with pytest.raises(UserError, match=r"none of 5 photos.*set/15_0_0_1\.jpg: age 15 is not within"):
        sources.read(Data.model_validate({**data, "filters": {"min_age": 100}}))
    with pytest.raises(ValueError, match="min_age must not be above max_age; got 30 and 20"):
        Data.model_validate({"filters": {"min_age": 30, "max_age": 20}})


def test_faces_of_unknown_age_pass_every_filter(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    source = sources.read(Data.model_validate({"source": str(tmp_path), "filters": {"min_age": 16}}))
    assert (source.table.num_rows, source.problems) == (1, [])


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


# --- the list of layouts --------------------------------------------------------------------------


def test_every_layout_has_a_reader_a_setting_and_its_line_in_the_texts() -> None:
    names = [layout.name for layout in LAYOUTS]
    assert {"auto", *names} == set(get_args(Layout))
    assert len(set(names)) == len(names)
    help_text = parser().format_help()
    root = Path(__file__).parents[2]
    readme, page = (root / "README.md").read_text(), (root / "docs" / "prepare.md").read_text()
    for layout in LAYOUTS:
        assert callable(sources.reader(layout.name, Filters()))
        assert f"  {layout.name} " in help_text
        assert f"| `{layout.name}` |" in page
        assert layout.title in readme


def test_every_pattern_recognises_a_layout_of_the_list() -> None:
    names = {layout.name for layout in LAYOUTS}
    assert {*sources._LISTS, *sources._PATHS} <= names
