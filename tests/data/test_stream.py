"""Face shards as batches of canvases: called bare, and as a stage of a Ray dataset."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ageray import schema
from ageray.data import splits
from ageray.data.labels import gender_number, subject_number
from ageray.data.row_index import RowIndex
from ageray.data.stream import UsableBatches, decode_rows, face_stream
from ageray.errors import UserError
from ageray.experiment import Align
from ageray.faces.canvases import canvas_side, canvases_of_rows, face_canvases
from ageray.synthetic import faces

ALIGN = Align(size=32)
OPTIONS = ALIGN.model_dump(mode="json")
AGELESS, BROKEN, POINTLESS, COINCIDENT = 2, 5, 7, 8
ROWS = 12
REASONS = {BROKEN: "not an image", POINTLESS: "no landmarks", COINCIDENT: "no face to align"}


def key(row: int) -> str:
    return f"drawn-0-{row:06d}"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of six drawn faces, of which four have something missing or wrong."""
    folder = tmp_path_factory.mktemp("shards")
    files = faces.write_faces_table(folder, ROWS, size=96, shards=2)
    damage: dict[int, dict[str, Any]] = {
        AGELESS: {"age": None},
        BROKEN: {"image": b"no photo"},
        POINTLESS: {"landmarks": None, "box": None},
        COINCIDENT: {"landmarks": [40.0] * 10},
    }
    for shard, file in enumerate(files):
        rows = pq.read_table(file).to_pylist()
        rows = [row | damage.get(6 * shard + place, {}) for place, row in enumerate(rows)]
        pq.write_table(pa.Table.from_pylist(rows, schema=schema.FACES), file)
    return folder


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Rows 0 to 5 train, one without an age too; the others, and an unknown key, are tested."""
    file = str(tmp_path_factory.mktemp("split") / "split.parquet")
    test = [key(row) for row in (6, 7, 8, 9, 11)]
    splits.save(file, {"train": [key(row) for row in range(6)], "val": [key(10)], "test": [*test, "else"]})
    return file


@pytest.fixture(scope="module")
def table(shards: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(file) for file in sorted(shards.iterdir())])


def gather(batches: Any) -> dict[str, np.ndarray]:
    parts = list(batches)
    return {name: np.concatenate([batch[name] for batch in parts]) for name in parts[0]}


def check(columns: dict[str, np.ndarray], table: pa.Table, rows: list[int]) -> None:
    """The columns have these rows in this order: their canvases, or the reason for none."""
    side, source = canvas_side(ALIGN), table.to_pylist()
    assert columns["key"].tolist() == [key(row) for row in rows]
    assert (columns["canvas"].shape, columns["canvas"].dtype) == ((len(rows), side, side, 3), np.uint8)
    assert [columns[name].dtype for name in ("age", "points", "box")] == [np.float32] * 3
    np.testing.assert_array_equal(columns["age"], np.array([source[row]["age"] for row in rows], np.float32))
    for place, row in enumerate(rows):
        if row in REASONS:
            assert REASONS[row] in columns["error"][place]
            assert np.unique(columns["canvas"][place]).tolist() == [ALIGN.fill]
            assert np.isnan(columns["points"][place]).all()
            assert np.isnan(columns["box"][place]).all()
            continue
        points, box = np.array(source[row]["landmarks"], np.float32), np.array(source[row]["box"], np.float32)
        expected = face_canvases(source[row]["image"], points.reshape(1, 5, 2), box[None], ALIGN)
        assert columns["error"][place] == ""
        np.testing.assert_array_equal(columns["canvas"][place], expected.pixels[0])
        np.testing.assert_array_equal(columns["points"][place], expected.points[0])
        np.testing.assert_array_equal(columns["box"][place], expected.box[0])


KNOWN = [row for row in range(ROWS) if row != AGELESS]


# --- bare ---------------------------------------------------------------------------------------


def test_rows_keep_their_place_and_say_what_is_wrong(table: pa.Table) -> None:
    columns = decode_rows(table, OPTIONS)
    check(columns, table, KNOWN)
    assert [row for row, error in zip(KNOWN, columns["error"], strict=True) if error] == sorted(REASONS)


def test_a_part_of_the_split(table: pa.Table, split: str) -> None:
    check(decode_rows(table, OPTIONS, split, "train"), table, [0, 1, 3, 4, 5])
    check(decode_rows(table, OPTIONS, split, "val"), table, [10])
    check(decode_rows(table, OPTIONS, split, "test"), table, [6, 7, 8, 9, 11])


def test_nothing_left(table: pa.Table, split: str) -> None:
    columns = decode_rows(table.slice(0, 2), OPTIONS, split, "test")
    assert columns["canvas"].shape == (0, canvas_side(ALIGN), canvas_side(ALIGN), 3)
    assert columns["points"].shape == (0, 5, 2)
    assert {len(values) for values in columns.values()} == {0}
    assert decode_rows(table.slice(0, 0), OPTIONS)["key"].shape == (0,)


def test_alignments_that_need_no_points(table: pa.Table) -> None:
    whole = decode_rows(table, Align(mode="none", size=32).model_dump(mode="json"))
    assert [key(row) for row in (BROKEN,)] == whole["key"][whole["error"] != ""].tolist()
    box = decode_rows(table, Align(mode="box", size=32).model_dump(mode="json"))
    assert [key(row) for row in (BROKEN, POINTLESS)] == box["key"][box["error"] != ""].tolist()
    assert np.isfinite(box["box"][box["error"] == ""]).all()


def test_an_unknown_part_or_alignment_is_ours(table: pa.Table, split: str) -> None:
    with pytest.raises(KeyError):
        decode_rows(table, OPTIONS, split, "tests")
    with pytest.raises(ValueError, match="sharpness"):
        decode_rows(table, {**OPTIONS, "sharpness": 1})
    with pytest.raises(UserError, match="nowhere"):
        decode_rows(table, OPTIONS, "/nowhere/split.parquet", "train")


# --- in a dataset -------------------------------------------------------------------------------


def test_the_stream_is_the_shards_in_order_as_the_bare_call_gives_them(
    ray_local: None, shards: Path, table: pa.Table
) -> None:
    streamed, bare = (
        gather(face_stream(str(shards), ALIGN, decode_batch=5).iter_batches(batch_size=4)),
        decode_rows(table, OPTIONS),
    )
    check(streamed, table, KNOWN)
    assert list(streamed) == list(bare)
    for name, values in bare.items():
        np.testing.assert_array_equal(streamed[name], values)


def test_the_stream_of_a_part(ray_local: None, shards: Path, table: pa.Table, split: str) -> None:
    dataset = face_stream(str(shards), ALIGN, 4, split, "test")
    check(gather(dataset.iter_batches(batch_size=3)), table, [6, 7, 8, 9, 11])
    # A second pass, as every epoch makes one, gives the same.
    check(gather(dataset.iter_batches(batch_size=2)), table, [6, 7, 8, 9, 11])


def test_missing_shards(ray_local: None, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ageray prepare"):
        face_stream(str(tmp_path), ALIGN, 4)


# --- leaving out --------------------------------------------------------------------------------


def test_usable_leaves_out_and_lists(ray_local: None, shards: Path, table: pa.Table) -> None:
    usable = UsableBatches(face_stream(str(shards), ALIGN, 4).iter_batches(batch_size=2))
    usable_rows = gather(usable)
    check(usable_rows, table, [row for row in KNOWN if row not in REASONS])
    assert sorted(where for where, _ in usable.skipped) == [key(row) for row in sorted(REASONS)]
    for where, reason in usable.skipped:
        assert REASONS[int(where[-6:])] in reason


def test_usable_gives_no_empty_batch(table: pa.Table) -> None:
    whole = decode_rows(table, OPTIONS)
    batches = [
        {name: values[start : start + 1] for name, values in whole.items()} for start in range(len(KNOWN))
    ]
    usable = UsableBatches(batches)
    assert [len(batch["age"]) for batch in usable] == [1] * (len(KNOWN) - len(REASONS))
    assert len(usable.skipped) == len(REASONS)
    fine = [batch for batch in batches if batch["error"][0] == ""]
    untouched = UsableBatches(fine)
    assert all(
        first is second for first, second in zip(untouched, fine, strict=True)
    )  # no copy where nothing is left out
    assert untouched.skipped == []


def test_the_split_is_read_once_a_process(table: pa.Table, tmp_path: Path) -> None:
    file = tmp_path / "split.parquet"
    splits.save(str(file), {"train": [key(0)], "val": [], "test": []})
    before = decode_rows(table, OPTIONS, str(file), "train")["key"].tolist()
    file.unlink()
    assert decode_rows(table, OPTIONS, str(file), "train")["key"].tolist() == before == [key(0)]


def test_ages_are_years(table: pa.Table) -> None:
    ages = decode_rows(table, OPTIONS)["age"]
    assert len(ages) == ROWS - 1
    assert all(math.isfinite(age) and 0 <= age <= 90 for age in ages.tolist())


# --- who it is ----------------------------------------------------------------------------------


def test_genders_and_subjects_are_numbers(table: pa.Table) -> None:
    rows = [
        row | {"gender": gender}
        for row, gender in zip(table.to_pylist(), ["female", "male", None, "F", "other", ""] * 2, strict=True)
    ]
    rows[9] |= {"subject": None}
    columns = decode_rows(pa.Table.from_pylist(rows, schema=table.schema), OPTIONS)
    assert (columns["gender"].dtype, columns["subject"].dtype) == (np.int64, np.int64)
    whole = [1, 0, -1, 1, -1, -1] * 2
    assert columns["gender"].tolist() == [number for row, number in enumerate(whole) if row != AGELESS]
    expected = [0 if row == 9 else subject_number("drawn", rows[row]["subject"]) for row in KNOWN]
    assert columns["subject"].tolist() == expected
    assert len(set(expected)) == len(expected)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("male", 0),
        ("M", 0),
        (" Man ", 0),
        ("boy", 0),
        ("female", 1),
        ("W", 1),
        ("girl", 1),
        (None, -1),
        ("", -1),
        ("unknown", -1),
        ("1", -1),
    ],
)
def test_names_of_genders(name: str | None, number: int) -> None:
    assert gender_number(name) == number


def test_a_subjects_number_is_the_same_everywhere_and_belongs_to_its_set() -> None:
    assert subject_number("fgnet", "001") == 33538510099059175
    numbers = {subject_number(dataset, name) for dataset in ("fgnet", "morph") for name in ("001", "002", "")}
    assert len(numbers) == 6
    assert all(0 < number < 2**63 for number in numbers)
    assert subject_number("fgnet", None) == 0


def test_rows_that_are_not_asked_for_are_not_decoded(
    shards: Path, split: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validation and the test read all shards, and decode their own faces alone."""
    decoded = list[bytes]()

    def counted(images: list[bytes], *more: Any) -> Any:
        decoded.extend(images)
        return canvases_of_rows(images, *more)

    monkeypatch.setattr("ageray.data.stream.canvases_of_rows", counted)
    table = pa.concat_tables([pq.read_table(file) for file in sorted(shards.glob("*.parquet"))])
    names = ["key", "image", "landmarks", "box", "age", "subject", "gender", "dataset"]
    decode_rows(table.select(names), OPTIONS, split, "val")
    assert len(decoded) == 1
    decoded.clear()
    lookup = RowIndex.of([key(0), key(9)], [1.0, 2.0]).lookup()
    columns = decode_rows(table.select(names), OPTIONS, lookup=lookup)
    assert len(decoded) == len(columns["key"]) == 2
