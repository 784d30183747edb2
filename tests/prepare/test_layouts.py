"""Readers of the sets of the field, on tiny folders in the official layouts: what is kept, and that
the rest is listed.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from scipy.io import savemat

from ageray.errors import UserError
from ageray.experiment import Data, Experiment, Scale
from ageray.prepare import run, sources
from ageray.prepare.layouts import adience, chalearn_lap, matlab, morph
from ageray.synthetic import faces as synthetic_faces

Row = dict[str, Any]


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def write(file: Path, *lines: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines))


def read(folder: Path, layout: str = "auto", **filters: Any) -> sources.Source:
    return sources.read(
        Data.model_validate({"name": "set", "source": str(folder), "layout": layout, "filters": filters})
    )


def rows(source: sources.Source) -> dict[str, Row]:
    return {row["key"].removeprefix("set/"): row for row in source.table.to_pylist()}


def told(source: sources.Source) -> dict[str, tuple[str, str]]:
    return {problem.where.removeprefix("set/"): (problem.kind, problem.reason) for problem in source.problems}


def labels(row: Row) -> tuple[Any, ...]:
    return row["age"], row["age_std"], row["subject"], row["gender"], row["group"]


def cell(values: Sequence[Any], shape: tuple[int, int]) -> NDArray[Any]:
    """A MATLAB cell array."""
    made = np.empty(len(values), object)
    made[:] = values
    return made.reshape(shape)


# --- MORPH II -------------------------------------------------------------------------------------

MORPH = "id_num,picture_num,dob,doa,race,gender,facial_hair,age,age_diff,glasses,photo"


def test_morph_csv(tmp_path: Path) -> None:
    write(
        tmp_path / "morph_2008_nonCommercial.csv",
        MORPH,
        "009055,1,1949-12-11,2004-06-18,B,M,1,54,0,0,Album2/009055_1M54.JPG",
        "9055,2,1949-12-11,2005-01-02,B,M,1,55,198,0,Album2\\009055_2M55.jpg",
        "012345,0,1980-01-01,2003-01-02,W,F,0,23,0,0,Album2/012345_0F23.JPG",
        "012345,1,1980-01-01,2004-01-02,W,F,0,,365,0,Album2/012345_1F24.JPG",
        "000003,1,1980-01-01,2004-01-02,Q,X,0,24,365,0,Album2/photo.JPG",
    )
    touch(
        tmp_path,
        *(
            f"album2/{name}.jpg"
            for name in ("009055_1M54", "009055_2M55", "012345_0F23", "012345_1F24", "photo")
        ),
    )
    source = read(tmp_path)
    assert (source.layout, source.photos, source.problems) == ("morph", 5, [])
    found = rows(source)
    assert labels(found["album2/009055_1M54.jpg"]) == (54, None, "009055", "male", "Black")
    assert labels(found["album2/009055_2M55.jpg"]) == (
        55,
        None,
        "009055",
        "male",
        "Black",
    )  # the zeros lost in a spreadsheet
    assert labels(found["album2/012345_0F23.jpg"]) == (23, None, "012345", "female", "White")
    assert found["album2/012345_1F24.jpg"]["age"] == 24  # from the name: the column is empty
    assert labels(found["album2/photo.jpg"]) == (24, None, "000003", None, "Q")
    assert found["album2/009055_1M54.jpg"]["uri"] == str(tmp_path.resolve() / "album2/009055_1M54.jpg")


def test_morph_rows_that_cannot_be_used_have_numbers(tmp_path: Path) -> None:
    good = "009055,1,1949-12-11,2004-06-18,B,M,1,54,0,0,Album2/009055_1M54.JPG"
    write(
        tmp_path / "list.csv",
        MORPH,
        good,
        good.replace(",54,", ",45,"),
        good.replace("009055_1M54", "009055_9M54"),
        good.replace("009055_1M54", "a").replace(",54,", ",250,"),
        good.replace("009055_1M54", "a").replace(",54,", ",-4,"),
        good.replace("009055_1M54", "a").replace(",54,", ",old,"),
        good.replace("009055_1M54", "a").replace("009055", ""),
        good,
        good.replace("Album2/009055_1M54.JPG", ""),
        good + ",surplus",
    )
    touch(tmp_path, "Album2/009055_1M54.JPG", "Album2/a.JPG", "Album2/b.JPG")
    source = read(tmp_path, "morph")
    assert (source.photos, source.table.num_rows) == (11, 1)
    reasons = {where: reason for where, (_, reason) in told(source).items()}
    assert reasons == {
        "row 2 of list.csv": "age 45 contradicts the photo's name, 009055_1M54.JPG",
        "row 3 of list.csv": "there is no photo 'Album2/009055_9M54.JPG' below the source",
        "row 4 of list.csv": "age 250 is not within 0..123",
        "row 5 of list.csv": "age -4 is not within 0..123",
        "row 6 of list.csv": "age 'old' is not a number",
        "row 7 of list.csv": "no id_num",
        "row 8 of list.csv": "key 'set/Album2/009055_1M54.JPG' came before; keys must be unique",
        "row 9 of list.csv": "no image path",
        "row 10 of list.csv": "more values than columns; quote values that contain the separator",
        "Album2/b.JPG": "no list names this photo",
    }
    assert told(source)["row 3 of list.csv"][0] == "unreadable"
    assert told(source)["Album2/b.JPG"][0] == "not in a list"


def test_morph_ages_from_dates_and_other_columns(tmp_path: Path) -> None:
    write(
        tmp_path / "a.csv",
        "ID_num;DOB;DOA;Photo",
        "1;06/19/1949;06/18/2004 00:00:00;x.jpg",
        "2;19.6.49;2004-01-01;y.jpg",
    )
    write(tmp_path / "b.csv", "filename,age,gender", "Train/012345_0F23.JPG,23,0")
    write(tmp_path / "c.csv", "anything,else", "1,2")
    touch(tmp_path, "x.jpg", "y.jpg", "Images/Train/012345_0F23.JPG")
    source = read(tmp_path, "morph")
    assert labels(rows(source)["x.jpg"]) == (54, None, "000001", None, None)
    assert labels(rows(source)["Images/Train/012345_0F23.JPG"]) == (23, None, "012345", None, None)
    assert told(source) == {
        "row 2 of a.csv": ("bad row", "'19.6.49' is no date like 1954-12-31 or 12/31/1954")
    }
    assert morph.years(date(2000, 2, 29), date(2001, 2, 28)) == 0
    assert morph.years(date(2000, 2, 29), date(2001, 3, 1)) == 1


def test_morph_names_alone(tmp_path: Path) -> None:
    touch(tmp_path, "Album2/009055_1M54.JPG", "Album2/224896_00F25.jpg", "Album2/x.jpg")
    source = read(tmp_path)
    assert source.layout == "morph"
    assert labels(rows(source)["Album2/009055_1M54.JPG"]) == (54, None, "009055", "male", None)
    assert labels(rows(source)["Album2/224896_00F25.jpg"]) == (25, None, "224896", "female", None)
    assert list(told(source)) == ["Album2/x.jpg"]
    with pytest.raises(UserError, match=r"layout 'morph' needs a CSV with the columns photo and age"):
        read(touch(tmp_path / "other", "x.jpg"), "morph")


# --- CACD -----------------------------------------------------------------------------------------

ZOE = "23_Zoë_Saldana_0003.jpg"


def cacd_set(folder: Path) -> Path:
    """Three celebrities in the shapes of `celebrity2000_meta.mat`: columns, and cells of file
    names.
    """
    names = [
        "53_Robin_Williams_0001.jpg",
        "54_Robin_Williams_0002.jpg",
        ZOE,
        "30_Lost_Photo_0001.jpg",
        "40_Wrong_Age_0001.jpg",
    ]
    people = {
        "name": cell(["Robin Williams", "Zoë Saldana", "Lost"], (3, 1)),
        "identity": np.array([[1], [2], [3]], np.uint16),
        "birth": np.array([[1951], [1978], [1980]], np.uint16),
        "rank": np.array([[1], [34], [5]], np.uint8),
        "lfw": np.array([[1], [0], [0]], np.uint8),
    }
    photos = {
        "age": np.array([[53], [54], [23], [30], [41]], np.uint8),
        "identity": np.array([[1], [1], [2], [3], [3]], np.uint16),
        "year": np.array([[2004], [2005], [2004], [2010], [2013]], np.uint16),
        "feature": np.zeros((5, 2), np.float32),
        "rank": np.array([[1], [1], [34], [5], [5]], np.uint8),
        "lfw": np.array([[1], [1], [0], [0], [0]], np.uint8),
        "birth": np.array([[1951], [1951], [1978], [1980], [1980]], np.uint16),
        "name": cell(names, (5, 1)),
    }
    folder.mkdir(parents=True, exist_ok=True)
    savemat(folder / "celebrity2000_meta.mat", {"celebrityData": people, "celebrityImageData": photos})
    present = [
        *names[:2],
        unicodedata.normalize("NFD", ZOE),
        names[4],
        "x.jpg",
    ]  # some systems decompose the names of files
    return touch(folder, *(f"CACD2000/{name}" for name in present))


def test_cacd_matlab(tmp_path: Path) -> None:
    source = read(cacd_set(tmp_path))
    assert (source.layout, source.photos) == ("cacd", 6)
    found = rows(source)
    assert labels(found["CACD2000/53_Robin_Williams_0001.jpg"]) == (53, None, "1", None, "rank_1")
    assert labels(found["CACD2000/54_Robin_Williams_0002.jpg"]) == (54, None, "1", None, "rank_1")
    assert labels(found["CACD2000/" + unicodedata.normalize("NFD", ZOE)]) == (23, None, "2", None, "rank_34")
    assert told(source) == {
        "row 4 of celebrity2000_meta.mat": (
            "unreadable",
            "there is no photo '30_Lost_Photo_0001.jpg' below the source",
        ),
        "row 5 of celebrity2000_meta.mat": (
            "bad row",
            "age 41 contradicts the photo's name, 40_Wrong_Age_0001.jpg",
        ),
        "CACD2000/x.jpg": ("not in a list", "no list names this photo"),
    }


def test_cacd_csv_and_names(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "53_Robin_Williams_0001.jpg",
        "54_Robin_Williams_0002.jpg",
        "14_Dakota_Fanning_0001.jpg",
        "x.jpg",
    )
    source = read(tmp_path)
    assert (source.layout, source.photos) == ("cacd", 4)
    assert labels(rows(source)["53_Robin_Williams_0001.jpg"]) == (53, None, "Robin_Williams", None, None)
    assert list(told(source)) == ["x.jpg"]
    write(
        tmp_path / "cacd_train.csv",
        ",file,age,rank",
        "0,53_Robin_Williams_0001.jpg,53,1",
        "1,14_Dakota_Fanning_0001.jpg,0,7",  # a class, counted from 0, that is called age
        "2,54_Robin_Williams_0002.jpg,54,first",
        "3,x.jpg,20,3",
    )
    source = read(tmp_path)
    assert labels(rows(source)["53_Robin_Williams_0001.jpg"]) == (53, None, "Robin_Williams", None, "rank_1")
    assert {where: reason for where, (_, reason) in told(source).items()} == {
        "row 2 of cacd_train.csv": "age 0 contradicts the photo's name, 14_Dakota_Fanning_0001.jpg",
        "row 3 of cacd_train.csv": "rank 'first' is not a whole number",
        "row 4 of cacd_train.csv": "no identity",
    }


def test_matlab_files_that_cannot_be_read(tmp_path: Path) -> None:
    file = tmp_path / "celebrity2000.mat"
    touch(tmp_path, "53_Robin_Williams_0001.jpg")
    file.write_bytes(b"MATLAB 7.3 MAT-file, Platform: GLNXA64" + bytes(600))
    with pytest.raises(
        UserError,
        match=r"celebrity2000\.mat: is a MATLAB 7\.3 file \(HDF5\), which would need h5py; save it .* -v7",
    ):
        read(tmp_path)
    file.write_bytes(b"not a MATLAB file at all" * 20)
    with pytest.raises(UserError, match=r"celebrity2000\.mat: cannot be read as a MATLAB file"):
        read(tmp_path)
    savemat(file, {"celebrityImageData": {"age": np.ones((1, 1))}})
    with pytest.raises(UserError, match=r"has no struct 'celebrityData' with the fields identity, rank"):
        read(tmp_path)
    data = {"identity": np.ones((2, 1)), "rank": np.ones((3, 1))}
    savemat(file, {"celebrityData": data})
    with pytest.raises(UserError, match=r"differ in length \(2 identity, 3 rank\)"):
        read(tmp_path)


# --- AFAD, AgeDB ----------------------------------------------------------------------------------


def test_afad_folders(tmp_path: Path) -> None:
    good = ["AFAD-Full/15/111/638660-1.jpg", "AFAD-Full/15/111/638660-2.jpg", "AFAD-Full/72/112/7-0.jpg"]
    bad = ["AFAD-Full/15/113/1-0.jpg", "AFAD-Full/15/111/nameless.jpg", "AFAD-Full/155/111/1-0.jpg"]
    source = read(touch(tmp_path, *good, *bad, "AFAD-Full/15/111/Thumbs.db", "AFAD-Full.txt"), "afad")
    assert source.photos == 6
    assert labels(rows(source)[good[0]]) == (15, None, "638660", "male", None)
    assert labels(rows(source)[good[2]]) == (72, None, "7", "female", None)
    assert set(told(source)) == set(bad)
    assert set(told(source).values()) == {("malformed name", "not age/111/person-number.jpg (112: a woman)")}


def test_agedb_names(tmp_path: Path) -> None:
    good = ["0_MariaCallas_35_f.jpg", "id_1/1000_StephenHawking_1_m.jpg", "12_Mary_AnnBlack_101_F.JPG"]
    bad = ["MariaCallas_35_f.jpg", "1_MariaCallas_35_x.jpg", "1_MariaCallas_f.jpg", "2_MariaCallas_135_f.jpg"]
    source = read(touch(tmp_path, *good, *bad), "agedb")
    assert labels(rows(source)[good[0]]) == (35, None, "MariaCallas", "female", None)
    assert labels(rows(source)[good[1]]) == (1, None, "StephenHawking", "male", None)
    assert labels(rows(source)[good[2]]) == (101, None, "Mary_AnnBlack", "female", None)
    assert set(told(source)) == set(bad)


# --- ChaLearn LAP ---------------------------------------------------------------------------------


def chalearn_set(folder: Path) -> Path:
    """The form of 2016: names of columns, and training photos in two folders."""
    write(
        folder / "train_gt.csv",
        "image,mean,stdv",
        "000001.jpg,25.5,3.1",
        "000002.jpg,3,0.5",
        "000003.jpg,4,1",
        "000009.jpg,4,",
    )
    write(folder / "valid_gt.csv", "image,mean,stdv", "004001.jpg,40.2,5")
    write(folder / "test_gt.csv", "image,mean,stdv", "005001.jpg,-1,5", "005002.jpg,60.25,7.5")
    names = [
        "train_1/000001.jpg",
        "train_2/000002.jpg",
        "train_2/000009.jpg",
        "valid/004001.jpg",
        "test/005001.jpg",
        "test/005002.jpg",
    ]
    return touch(folder, *names, "test/005003.jpg")


def test_chalearn_2016(tmp_path: Path) -> None:
    source = read(chalearn_set(tmp_path))
    assert (source.layout, source.photos) == ("chalearn_lap", 8)
    found = rows(source)
    assert set(found) == {"train/000001.jpg", "train/000002.jpg", "val/004001.jpg", "test/005002.jpg"}
    assert found["train/000001.jpg"]["age_std"] == pytest.approx(3.1)
    assert found["train/000001.jpg"]["uri"].endswith("/train_1/000001.jpg")
    assert labels(found["test/005002.jpg"]) == (60.25, 7.5, None, None, None)
    assert told(source) == {
        "row 3 of train_gt.csv": ("unreadable", "there is no photo '000003.jpg' below the source"),
        "row 4 of train_gt.csv": ("bad row", "no standard deviation"),
        "row 1 of test_gt.csv": ("bad row", "age -1 is not within 0..123"),
        "test/005003.jpg": ("not in a list", "no list names this photo"),
    }


def test_chalearn_2015(tmp_path: Path) -> None:
    write(tmp_path / "Train/Train.csv", "image_1.jpg;20;3.01", "image_2.jpg;old;1")
    write(tmp_path / "Validation/Reference.csv", "image_1;50;4.5")
    touch(tmp_path, "Train/image_1.jpg", "Train/image_2.jpg", "Validation/image_1.jpg")
    source = read(tmp_path, "chalearn_lap")
    found = rows(source)
    assert {key: row["age"] for key, row in found.items()} == {"train/image_1.jpg": 20, "val/image_1.jpg": 50}
    assert found["val/image_1.jpg"]["uri"].endswith("/Validation/image_1.jpg")
    assert told(source) == {"row 2 of Train/Train.csv": ("bad row", "age 'old' is not a number")}


def test_appa_real(tmp_path: Path) -> None:
    write(
        tmp_path / "gt_avg_valid.csv",
        "file_name,num_ratings,apparent_age_avg,apparent_age_std,real_age",
        "000000.jpg,36,5.19,3.99,4",
    )
    write(
        tmp_path / "gt_valid.csv",
        "file_name,apparent_age,worker_age,worker_gender,real_age",
        "000000.jpg,5,40,male,4",
    )
    touch(tmp_path, "valid/000000.jpg", "valid/000000.jpg_face.jpg")
    source = read(tmp_path)
    assert (source.layout, source.photos, source.problems) == ("chalearn_lap", 1, [])
    assert rows(source)["val/000000.jpg"]["age"] == pytest.approx(5.19)


def test_chalearn_without_lists(tmp_path: Path) -> None:
    touch(tmp_path, "train/1.jpg")
    with pytest.raises(UserError, match=r"layout 'chalearn_lap' needs lists such as train_gt\.csv"):
        read(tmp_path, "chalearn_lap")
    write(tmp_path / "train_gt.csv", "photo,age", "1.jpg,3")
    with pytest.raises(
        UserError, match=r"layout 'chalearn_lap' needs a CSV with the columns image, mean and stdv"
    ):
        read(tmp_path)
    assert [chalearn_lap.part_of(path) for path in ("a/Test.csv", "val/x.csv", "x.csv")] == [
        "test",
        "val",
        None,
    ]


# --- IMDB-WIKI ------------------------------------------------------------------------------------


def datenum(day: date) -> int:
    return day.toordinal() + 366


PEOPLE = [  # path, day of birth, year of the photo, gender, scores
    ("01/nm0000001_rm1_1960-7-1_2000.jpg", datenum(date(1960, 7, 1)), 2000, 1.0, 4.5, math.nan),
    ("01/nm0000001_rm2_1960-7-1_2001.jpg", datenum(date(1960, 7, 2)), 2001, 0.0, 1.0, math.nan),
    ("02/nm0000002_rm3_1960-7-1_2001.jpg", datenum(date(1980, 1, 1)), 2001, math.nan, 2.0, math.nan),
    ("02/nm0000002_rm4_1960-7-1_2001.jpg", datenum(date(1980, 1, 1)), 2001, 1.0, 0.9, math.nan),
    ("02/nm0000002_rm5_1960-7-1_2001.jpg", datenum(date(1980, 1, 1)), 2001, 1.0, -math.inf, math.nan),
    ("02/nm0000002_rm6_1960-7-1_2001.jpg", datenum(date(1980, 1, 1)), 2001, 1.0, 3.0, 2.5),
    ("02/nm0000002_rm7_1960-7-1_2001.jpg", datenum(date(1980, 1, 1)), 1979, 1.0, 3.0, math.nan),
    ("02/nm0000002_rm8_1960-7-1_2001.jpg", 0, 2001, 1.0, 3.0, math.nan),
    ("02/nm0000002_rm9_1960-7-1_2001.jpg", datenum(date(1850, 1, 1)), 2001, 1.0, 3.0, math.nan),
    ("03/nm0000003_rm1_1960-7-1_2001.jpg", datenum(date(1980, 1, 1)), 2001, 1.0, 3.0, math.nan),
    ("", datenum(date(1980, 1, 1)), 2001, 1.0, 3.0, math.nan),
]


def imdb_set(folder: Path, name: str = "imdb") -> Path:
    """`imdb_crop/imdb.mat` in its own shapes: rows of numbers, cells of text, and a list of names
    of another length.
    """
    paths, births, taken, gender, first, second = map(list, zip(*PEOPLE, strict=True))
    count = len(PEOPLE)
    fields = {
        "dob": np.array([births], np.int32),
        "photo_taken": np.array([taken], np.uint16),
        "full_path": cell([path or np.empty((0, 0)) for path in paths], (1, count)),
        "gender": np.array([gender]),
        "name": cell(["Fred Astaire"] * count, (1, count)),
        "face_location": cell([np.array([[1.0, 1, 9, 9]])] * count, (1, count)),
        "face_score": np.array([first]),
        "second_face_score": np.array([second]),
        "celeb_names": cell(["Fred Astaire", "Lauren Bacall", "Brigitte Bardot"], (1, 3)),
        "celeb_id": np.ones((1, count)),
    }
    (folder / f"{name}_crop").mkdir(parents=True)
    savemat(folder / f"{name}_crop/{name}.mat", {name: fields})
    return touch(folder, *(f"{name}_crop/{path}" for path in paths if path and not path.startswith("03")))


def test_imdb_wiki(tmp_path: Path) -> None:
    source = read(imdb_set(tmp_path))
    assert (source.layout, source.photos) == ("imdb_wiki", 11)
    found = rows(source)
    assert len(found) == 3
    # 1 July is the day of the photo: the first is 40 on it, the second turns 41 a day later
    assert labels(found["imdb_crop/01/nm0000001_rm1_1960-7-1_2000.jpg"]) == (
        40,
        None,
        "nm0000001",
        "male",
        None,
    )
    assert labels(found["imdb_crop/01/nm0000001_rm2_1960-7-1_2001.jpg"]) == (
        40,
        None,
        "nm0000001",
        "female",
        None,
    )
    assert labels(found["imdb_crop/02/nm0000002_rm3_1960-7-1_2001.jpg"]) == (
        21,
        None,
        "nm0000002",
        None,
        None,
    )
    assert {where.split()[1]: reason for where, reason in told(source).items()} == {
        "4": ("filtered", "face_score 0.9 is below data.filters.min_face_score=1"),
        "5": ("filtered", "face_score -inf is below data.filters.min_face_score=1"),
        "6": ("filtered", "a second face (score 2.5), and data.filters.single_face=true"),
        "7": ("bad row", "age -1 is not within 0..123"),
        "8": ("bad row", "dob 0 is no date from the year 1 on"),
        "9": ("bad row", "age 151 is not within 0..123"),
        "10": ("unreadable", "there is no photo '03/nm0000003_rm1_1960-7-1_2001.jpg' below the source"),
        "11": ("bad row", "no image path"),
    }


def test_imdb_wiki_filters_are_settings(tmp_path: Path) -> None:
    imdb_set(tmp_path)
    source = read(tmp_path, min_face_score="any", single_face=False, max_age=30)
    assert sorted(row["age"] for row in rows(source).values()) == [21, 21, 21, 21]
    kinds = [kind for kind, _ in told(source).values()]
    assert (kinds.count("filtered"), kinds.count("bad row")) == (2, 4)


def test_imdb_wiki_may_keep_photos_with_a_faint_second_face(tmp_path: Path) -> None:
    """DHAA removes only a part of the photos with several faces."""
    imdb_set(tmp_path)
    strict, lenient = read(tmp_path), read(tmp_path, max_second_score=100.0)
    assert len(rows(lenient)) == len(rows(strict)) + 1
    none = read(tmp_path, max_second_score=-100.0)
    assert rows(none).keys() == rows(strict).keys()
    assert any("above data.filters.max_second_score=-100" in reason for _, reason in told(none).values())


def test_both_halves_of_imdb_wiki(tmp_path: Path) -> None:
    imdb_set(tmp_path)
    imdb_set(tmp_path, "wiki")
    source = read(tmp_path)
    assert source.photos == 22
    assert {key.split("/")[0] for key in rows(source)} == {"imdb_crop", "wiki_crop"}
    assert all(row["uri"] == str(tmp_path.resolve() / key) for key, row in rows(source).items())


@pytest.mark.parametrize(
    ("number", "day"), [(367, date(1, 1, 1)), (719529, date(1970, 1, 1)), (730486.75, date(2000, 1, 1))]
)
def test_matlab_dates(number: float, day: date) -> None:
    assert matlab.day(number) == day


@pytest.mark.parametrize("number", [math.nan, math.inf, -1.0, 366.5, 1e9])
def test_numbers_that_are_no_date(number: float) -> None:
    with pytest.raises(ValueError, match="is no date from the year 1 on"):
        matlab.day(number)


# --- MegaAge-Asian --------------------------------------------------------------------------------


def test_megaage_asian(tmp_path: Path) -> None:
    root = tmp_path / "megaage_asian"
    write(root / "list/train_name.txt", "1.jpg", "2.jpg", "3.jpg", "4.jpg", "", "")
    write(root / "list/train_age.txt", "23", "x", "5", "130")
    write(root / "list/test_name.txt", "1.jpg")
    write(root / "list/test_age.txt", "70")
    touch(root, "train/1.jpg", "train/2.jpg", "train/4.jpg", "train/5.jpg", "test/1.jpg")
    source = read(tmp_path)
    assert (source.layout, source.photos) == ("megaage_asian", 6)
    found = rows(source)
    assert {key: row["age"] for key, row in found.items()} == {"train/1.jpg": 23, "test/1.jpg": 70}
    assert found["test/1.jpg"]["uri"].endswith("/megaage_asian/test/1.jpg")
    assert told(source) == {
        "row 2 of megaage_asian/list/train_age.txt": ("bad row", "age 'x' is not a number"),
        "row 3 of megaage_asian/list/train_age.txt": (
            "unreadable",
            "there is no photo 'train/3.jpg' below the source",
        ),
        "row 4 of megaage_asian/list/train_age.txt": ("bad row", "age 130 is not within 0..123"),
        "megaage_asian/train/5.jpg": ("not in a list", "no list names this photo"),
    }
    write(root / "list/test_age.txt", "70", "71")
    with pytest.raises(UserError, match=r"test_age\.txt: 2 ages for 1 names; download the lists again"):
        read(tmp_path)


# --- Adience --------------------------------------------------------------------------------------

ADIENCE = (
    "user_id original_image face_id age gender x y dx dy tilt_ang fiducial_yaw_angle fiducial_score".replace(
        " ", "\t"
    )
)


def face(user: str, image: str, person: int, age: str, gender: str) -> str:
    return "\t".join([user, image, str(person), age, gender, "0", "414", "1086", "1383", "-115", "30", "17"])


@pytest.mark.parametrize(
    "form", ["aligned/{}/landmark_aligned_face.{}.{}", "faces/{}/coarse_tilt_aligned_face.{}.{}"]
)
def test_adience(tmp_path: Path, form: str) -> None:
    write(
        tmp_path / "fold_0_data.txt",
        ADIENCE,
        face("30601258@N03", "10399646885_67c7d20df9_o.jpg", 1, "(25, 32)", "f"),
        face("30601258@N03", "10424815813_e94629b1ec_o.jpg", 2, "35", "m"),
        face("30601258@N03", "a.jpg", 2, "None", "u"),
        face("30601258@N03", "gone.jpg", 2, "(0, 2)", "u"),
    )
    write(
        tmp_path / "fold_4_data.txt",
        ADIENCE,
        face("7@N01", "b.jpg", 9, "(60, 100)", "u"),
        face("7@N01", "c.jpg", 9, "(8, 200)", ""),
    )
    write(tmp_path / "fold_frontal_0_data.txt", ADIENCE, face("7@N01", "frontal.jpg", 9, "(60, 100)", "u"))
    photos = [
        ("30601258@N03", 1, "10399646885_67c7d20df9_o.jpg"),
        ("30601258@N03", 2, "10424815813_e94629b1ec_o.jpg"),
    ]
    photos += [
        ("30601258@N03", 2, "a.jpg"),
        ("7@N01", 9, "b.jpg"),
        ("7@N01", 9, "c.jpg"),
        ("7@N01", 9, "d.jpg"),
    ]
    names = {image: form.format(user, person, image) for user, person, image in photos}
    touch(tmp_path, *names.values(), "faces/7@N01/coarse_tilt_aligned_face.9.d.jpg")
    source = read(tmp_path)
    assert (source.layout, source.photos) == ("adience", 7)
    prefix = form.split("/")[2].split(".")[0]
    found = rows(source)
    assert labels(found[f"fold_0/30601258@N03/{prefix}.1.10399646885_67c7d20df9_o.jpg"]) == (
        28.5,
        3.5,
        "1",
        "female",
        None,
    )
    assert labels(found[f"fold_0/30601258@N03/{prefix}.2.10424815813_e94629b1ec_o.jpg"]) == (
        35,
        None,
        "2",
        "male",
        None,
    )
    assert labels(found[f"fold_4/7@N01/{prefix}.9.b.jpg"]) == (80, 20, "9", None, None)
    assert told(source) == {
        "row 3 of fold_0_data.txt": ("bad row", "no age"),
        "row 4 of fold_0_data.txt": (
            "unreadable",
            f"there is no photo '30601258@N03/{prefix}.2.gone.jpg' below the source",
        ),
        "row 2 of fold_4_data.txt": ("bad row", "'(8, 200)' is no band of ages within 0..123"),
        names["d.jpg"]: ("not in a list", "no list names this photo"),
    }


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("(0, 2)", (1, 1)),
        ("(8,13)", (10.5, 2.5)),
        ("(60, 100)", (80, 20)),
        ("(35, 35)", (35, 0)),
        ("13", (13, None)),
        ("0", (0, None)),
    ],
)
def test_bands(text: str, meant: tuple[float, float | None]) -> None:
    assert adience.band(text) == meant


@pytest.mark.parametrize("text", ["None", "", "(32, 25)", "(25, )", "25-32", "124", "(0, 124)"])
def test_no_bands(text: str) -> None:
    with pytest.raises(ValueError, match="no age|no band|not a number|not within"):
        adience.band(text)


def test_adience_with_the_frontal_folds_alone_and_without_columns(tmp_path: Path) -> None:
    write(tmp_path / "fold_frontal_2_data.txt", ADIENCE, face("7@N01", "b.jpg", 9, "(4, 6)", "m"))
    touch(tmp_path, "aligned/7@N01/landmark_aligned_face.9.b.jpg")
    assert list(rows(read(tmp_path))) == ["fold_2/7@N01/landmark_aligned_face.9.b.jpg"]
    write(tmp_path / "fold_frontal_2_data.txt", "user_id\toriginal_image", "7@N01\tb.jpg")
    with pytest.raises(UserError, match=r"needs the columns user_id, .*; face_id, age, gender missing"):
        read(tmp_path)


# --- what all lists share -------------------------------------------------------------------------


def test_photos_of_one_name_in_two_places_are_ambiguous(tmp_path: Path) -> None:
    write(tmp_path / "lists/cacd.csv", "file", "53_Robin_Williams_0001.jpg", "54_Robin_Williams_0002.jpg")
    touch(tmp_path, "a/53_Robin_Williams_0001.jpg", "b/53_Robin_Williams_0001.jpg")
    touch(tmp_path, "lists/54_Robin_Williams_0002.jpg", "b/54_Robin_Williams_0002.jpg")
    source = read(tmp_path, "cacd")
    assert list(rows(source)) == ["lists/54_Robin_Williams_0002.jpg"]
    assert told(source)["row 1 of lists/cacd.csv"] == (
        "bad row",
        "2 photos are called '53_Robin_Williams_0001.jpg': a/53_Robin_Williams_0001.jpg, "
        "b/53_Robin_Williams_0001.jpg",
    )


def test_a_list_that_is_no_table(tmp_path: Path) -> None:
    write(tmp_path / "morph.csv", "photo,age", '"a.jpg,3')
    touch(tmp_path, "a.jpg")
    with pytest.raises(UserError, match=r"morph\.csv: line 2 cannot be read"):
        read(tmp_path)
    (tmp_path / "morph.csv").write_bytes(b"photo,age\n\xff\xfe,3\n")
    with pytest.raises(UserError, match=r"morph\.csv: not UTF-8 text"):
        read(tmp_path)
    (tmp_path / "morph.csv").write_text("\n")
    with pytest.raises(UserError, match=r"layout 'morph' needs a CSV with the columns photo and age"):
        read(tmp_path)


# --- through `ageray prepare` ---------------------------------------------------------------------


def prepared(folder: Path, target: Path) -> tuple[dict[str, Any], list[Row]]:
    data = Data.model_validate({"name": "set", "source": str(folder), "shards": str(target)})
    report = run.prepare(Experiment(data=data, scale=Scale(progress=False)))
    return report, [
        row for file in sorted(target.glob("*.parquet")) for row in pq.read_table(file).to_pylist()
    ]


def test_lists_become_face_shards(ray_local: None, tmp_path: Path) -> None:
    cacd_set(tmp_path / "cacd")
    chalearn_set(tmp_path / "chalearn")
    for number, photo in enumerate(sorted(tmp_path.rglob("*.jpg"))):
        photo.write_bytes(synthetic_faces.draw_face(number, 20 + number, size=200).jpeg())
    report, faces = prepared(tmp_path / "cacd", tmp_path / "out1")
    assert report["layout"] == "cacd"
    assert report["counts"] == {"photos": 6, "kept": 3, "unreadable": 1, "bad row": 1, "not in a list": 1}
    assert sorted((row["subject"], row["age"], row["group"]) for row in faces) == [
        ("1", 53, "rank_1"),
        ("1", 54, "rank_1"),
        ("2", 23, "rank_34"),
    ]
    assert all(row["landmarks"] and row["image"] for row in faces)
    report, faces = prepared(tmp_path / "chalearn", tmp_path / "out2")
    assert report["counts"] == {"photos": 8, "kept": 4, "unreadable": 1, "bad row": 2, "not in a list": 1}
    assert {row["key"]: (row["age"], row["age_std"]) for row in faces}["set/test/005002.jpg"] == (60.25, 7.5)
