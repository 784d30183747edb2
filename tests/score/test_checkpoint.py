"""What a run leaves on disk: pieces of whole chunks, which the next run counts, and the parts of
the result.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ageray import schema
from ageray.errors import UserError
from ageray.score import checkpoint, chunks, write
from ageray.score.checkpoint import ScoreCheckpoint
from ageray.score.files import ScoreFiles
from ageray.score.pieces import PieceIndex
from ageray.score.pieces import write as write_piece
from ageray.score.progress import ProgressReporter

PLAN = '{"input": 1, "model": "one", "detect": "auto"}'
TABLE = pa.schema([*schema.SCORES, *chunks.CHUNK_OF_ROW_SCHEMA])


def chunk_of(segment: int, position: int, last: bool = False, weight: int = 1) -> pa.Table:
    """Three photos: one with two faces, one with one, one that could not be read."""
    photos = [(0, 0, None), (0, 1, None), (1, 0, None), (2, -1, "cannot read: gone")]
    rows = [
        {
            "key": f"{segment}-{position}-{photo}#{face}",
            "image": f"{segment}-{position}-{photo}",
            "face": face,
            "age": None if error else 30.0,
            "error": error,
            "lot": chunks.chunk_id(segment, position),
            "photo": photo,
            "photos": 3,
            "last": last,
            "weight": weight,
            "siblings": 2 if photo == 0 else 1,
        }
        for photo, face, error in photos
    ]
    return pa.Table.from_pylist(rows, schema=TABLE)


def opened(folder: Path) -> ScoreCheckpoint:
    saved = ScoreCheckpoint(ScoreFiles(str(folder / "out")))
    saved.open(json.loads(PLAN))
    return saved


def rows_of(folder: Path) -> pa.Table:
    """The whole table that the pieces give."""
    return written(folder / "whole", opened(folder).pieces)


def test_the_next_run_knows_what_is_done(tmp_path: Path) -> None:
    saved = opened(tmp_path)
    for position, seconds in enumerate([5.0, 5.5, 6.0]):
        saved.add(chunk_of(0, position, last=position == 2), seconds)
    saved.add(chunk_of(1, 1), 6.5)
    saved.flush(7.0)
    assert (
        len(list((tmp_path / "out.unfinished" / "pieces").iterdir())) == 2
    )  # one at 5.0, the rest within 2 seconds of it
    again = opened(tmp_path)
    counts = again.counts
    assert (counts.photos, counts.faces, counts.weight) == (12, 12, 12)
    assert counts.errors == {"cannot read": 4}
    assert again.done_positions() == {0: (0, 1, 2), 1: (1,)}
    assert again.finished_segments() == {0}
    assert again.plan == json.loads(PLAN)
    ids, faces = again.pieces.faces()
    assert ids.tolist() == [
        chunks.chunk_id(0, 0),
        chunks.chunk_id(0, 1),
        chunks.chunk_id(0, 2),
        chunks.chunk_id(1, 1),
    ]
    assert faces.tolist() == [3, 3, 3, 3]


def test_rows_that_were_not_written_are_not_done(tmp_path: Path) -> None:
    saved = opened(tmp_path)
    saved.add(chunk_of(0, 0), 0.5)
    assert opened(tmp_path).counts.photos == 0


def test_a_chunk_that_two_runs_wrote_counts_once(tmp_path: Path) -> None:
    one, other = opened(tmp_path), opened(tmp_path)
    one.add(chunk_of(0, 0), 0)
    one.add(chunk_of(0, 1), 0)
    one.flush(1)
    other.add(chunk_of(0, 1), 0)
    other.add(chunk_of(0, 2), 0)
    other.flush(1)
    keys = rows_of(tmp_path).column("key").to_pylist()
    assert len(keys) == len(set(keys)) == 12


def test_pieces_grow_with_the_time_spent(tmp_path: Path) -> None:
    saved = opened(tmp_path)
    for second in range(1, 2001):
        saved.add(chunk_of(0, second), float(second))
    pieces = len(list((tmp_path / "out.unfinished" / "pieces").iterdir()))
    assert 150 < pieces < 220  # every 2 seconds for the first 100, then every 2 % of the time


def test_half_a_file_of_json_is_none(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text('{"a": ')
    assert checkpoint.read_json(str(tmp_path / "plan.json")) is None
    assert checkpoint.read_json(str(tmp_path / "none.json")) is None


# --- parts ---------------------------------------------------------------------------------------


def index_of(folder: Path, *pieces: pa.Table) -> PieceIndex:
    """Pieces on disk with these rows."""
    index = PieceIndex()
    for rows in pieces:
        index.add(write_piece(ScoreFiles(str(folder / "out")), rows))
    return index


def written(folder: Path, index: PieceIndex, table: pa.Schema = schema.SCORES) -> pa.Table:
    """The whole table, as written into a new folder."""
    folder.mkdir()
    target = ScoreFiles(str(folder))
    parts = [write.write_part(part, target, table) for part in write.plan_parts(index)]
    digest = write.finish(target, parts, table)
    rows = pq.read_table(folder)
    assert digest.images == len(set(rows.column("image").to_pylist()))
    assert digest.faces == rows.column("age").drop_null().length()
    return rows


def test_parts_have_whole_chunks_and_failures_stand_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "ROWS", 7)
    tables = [chunk_of(0, position) for position in range(5)]
    index = index_of(tmp_path, pa.concat_tables(tables[:3]), pa.concat_tables(tables[3:]))
    whole = written(tmp_path / "result", index, schema.SCORES.with_metadata({"ageray": "x"}))
    files = {file.name: file for file in (tmp_path / "result").iterdir()}
    sizes = {name: pq.read_metadata(file).num_rows for name, file in files.items()}
    assert sizes == {
        "part-00000.parquet": 6,
        "part-00001.parquet": 6,
        "part-00002.parquet": 3,
        "errors.parquet": 5,
    }
    assert len(set(whole.column("key").to_pylist())) == whole.num_rows == 20
    assert whole.schema.remove_metadata() == schema.SCORES
    assert pq.read_schema(files["errors.parquet"]).metadata[b"ageray"] == b"x"


def test_files_do_not_depend_on_the_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "ROWS", 20)
    tables = [chunk_of(segment, position) for segment in range(3) for position in range(4)]
    one = index_of(tmp_path, pa.concat_tables(tables))
    tables.reverse()
    shuffled = pa.concat_tables(tables[2:])
    shuffled = shuffled.take(np.random.default_rng(0).permutation(len(shuffled)))
    other = index_of(tmp_path, pa.concat_tables(tables[:4]), shuffled)  # two chunks are in both
    for name, index in {"one": one, "other": other}.items():
        written(tmp_path / name, index)
    files = sorted(file.name for file in (tmp_path / "one").iterdir())
    assert files == ["errors.parquet", "part-00000.parquet", "part-00001.parquet"]
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes()


def test_parts_are_there_even_if_empty(tmp_path: Path) -> None:
    assert written(tmp_path / "result", PieceIndex()).num_rows == 0
    assert sorted(file.name for file in (tmp_path / "result").iterdir()) == [
        "errors.parquet",
        "part-00000.parquet",
    ]
    nowhere = ScoreFiles(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="cannot be written"):
        write.write_part(write.plan_parts(PieceIndex())[0], nowhere, schema.SCORES)
    with pytest.raises(UserError, match="cannot be written"):
        write.finish(nowhere, [], schema.SCORES)


def test_pieces_of_an_earlier_version_get_nulls(tmp_path: Path) -> None:
    """An unfinished run of the version without `quality` and the columns after it goes on."""
    names = ["quality", "unusual", "over_18", "over_25"]
    index = index_of(tmp_path, chunk_of(0, 0).drop_columns(names), chunk_of(0, 1))
    whole = written(tmp_path / "result", index)
    assert whole.schema.remove_metadata() == schema.SCORES
    assert whole.num_rows == chunk_of(0, 0).num_rows + chunk_of(0, 1).num_rows
    assert whole.column("quality").null_count >= chunk_of(0, 0).num_rows


# --- how far it is -------------------------------------------------------------------------------


def test_reports_go_on_from_an_earlier_run(tmp_path: Path) -> None:
    saved = opened(tmp_path)
    with ProgressReporter(saved, 9, 9) as count:
        count.set_state("running")
        count.add(chunk_of(0, 0))
        saved.add(chunk_of(0, 0), 10)
        report = count.report()
        assert (report["done"], report["total"], report["faces"], report["errors"]) == (3, 9, 3, 1)
        assert report["images_per_second"] > 0
        assert report["seconds_left"] is not None
        assert json.loads((tmp_path / "out.unfinished" / "progress.json").read_text())["state"] == "starting"
    again = opened(tmp_path)
    seen = []
    with pytest.raises(KeyboardInterrupt):
        _interrupted(ProgressReporter(again, 9, 9, seen.append), seen)
    left = json.loads((tmp_path / "out.unfinished" / "progress.json").read_text())
    assert (left["state"], left["done"], left["seconds_left"]) == ("interrupted", 3, None)
    assert seen[0]["beat"] == 1


def _interrupted(count: ProgressReporter, seen: list[Any]) -> None:
    with count:
        while not seen:  # the thread reports by itself
            time.sleep(0.01)
        raise KeyboardInterrupt


def test_photos_of_tars_are_an_estimate_until_all_are_read(tmp_path: Path) -> None:
    count = ProgressReporter(opened(tmp_path), None, 3000)
    assert count.report()["total"] is None
    count.add(chunk_of(0, 0, weight=100))
    assert count.report()["total"] == 30
    count.set_state("finishing")
    assert count.report()["total"] == 3


# --- photos whose store was away -----------------------------------------------------------------


def away(chunk: pa.Table, *photos: int) -> pa.Table:
    """The chunk as it comes when the store does not answer for these photos."""
    rows = []
    for row in chunk.to_pylist():
        if row["photo"] not in photos:
            rows.append(row)
        elif row["face"] in (0, -1):
            error = "unavailable: the store does not answer"
            rows.append(row | {"face": -1, "age": None, "error": error, "siblings": 1})
    return pa.Table.from_pylist(rows, schema=TABLE)


def of_photos(chunk: pa.Table, *photos: int) -> pa.Table:
    """The chunk as it comes when these photos are tried again."""
    rows = [row | {"photos": len(photos)} for row in chunk.to_pylist() if row["photo"] in photos]
    return pa.Table.from_pylist(rows, schema=TABLE)


def test_photos_that_were_unavailable_are_tried_again_and_no_others(tmp_path: Path) -> None:
    saved = opened(tmp_path)
    saved.add(away(chunk_of(0, 0, last=True), 0, 1), 0)
    saved.add(chunk_of(1, 0), 0)
    saved.flush(1)
    assert saved.counts.errors == {"unavailable": 2, "cannot read": 2}
    again = opened(tmp_path)
    assert again.unavailable == {(chunks.chunk_id(0, 0), 0), (chunks.chunk_id(0, 0), 1)}
    listed = pa.table({"image": ["0-0-0", "0-0-1", "0-0-2"], "camera": ["a", "b", "c"]})
    (photos,) = again.photos_again([listed, listed])
    assert photos.select(["image", "camera"]).to_pydict() == listed.slice(0, 2).to_pydict()
    assert photos.column("photo").to_pylist() == [0, 1]
    assert photos.column("photos").to_pylist() == [2, 2]
    assert photos.column("lot").to_pylist() == [chunks.chunk_id(0, 0)] * 2
    # the store gives one of the two now
    assembler = chunks.ChunkAssembler(again.done, again.chunks_again)
    (chunk,) = assembler.add(away(of_photos(chunk_of(0, 0), 0, 1), 1))
    assert again.is_again(chunk)
    again.add(chunk, 0)
    again.flush(1)
    assert again.unavailable == {(chunks.chunk_id(0, 0), 1)}
    third = opened(tmp_path)
    assert third.unavailable == {(chunks.chunk_id(0, 0), 1)}
    assert (third.counts.photos, third.counts.faces, third.counts.weight) == (6, 5, 6)
    assert third.counts.errors == {"unavailable": 1, "cannot read": 2}
    for _ in range(2):  # two runs at once, say
        third.add(of_photos(chunk_of(0, 0), 1), 0)
        third.flush(1)
    whole = written(tmp_path / "result", opened(tmp_path).pieces)
    whole = whole.sort_by([("image", "ascending"), ("face", "ascending")])
    expected = pa.concat_tables([chunk_of(0, 0), chunk_of(1, 0)])
    assert whole.column("key").to_pylist() == expected.column("key").to_pylist()
    assert whole.column("error").to_pylist() == expected.column("error").to_pylist()
    assert not opened(tmp_path).unavailable
    assert opened(tmp_path).counts == expected_counts(expected)


def expected_counts(rows: pa.Table) -> chunks.Counts:
    counts = chunks.Counts()
    counts.add(rows)
    return counts


# --- damage --------------------------------------------------------------------------------------


def piece_of(folder: Path) -> Path:
    return next((folder / "out.unfinished" / "pieces").iterdir())


@pytest.mark.parametrize("damage", ["a bit", "cut", "empty", "no table"])
def test_a_damaged_piece_is_named_and_done_again(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = opened(tmp_path)
    saved.add(chunk_of(0, 0), 0)
    saved.flush(1)
    piece = piece_of(tmp_path)
    content = bytearray(piece.read_bytes())
    if damage == "a bit":
        content[len(content) // 3] ^= 4
    piece.write_bytes({"cut": content[:-100], "empty": b"", "no table": b"PAR1"}.get(damage, content))
    with pytest.raises(UserError, match=rf"{piece.name}: damaged since the run began.*same command again"):
        written(tmp_path / "result", saved.pieces)
    again = opened(tmp_path)
    assert again.counts.photos == 0
    assert not again.done
    assert f"{piece.name}: damaged" in capsys.readouterr().out
    again.add(chunk_of(0, 0), 0)
    again.flush(1)
    assert rows_of(tmp_path).num_rows == 4


def test_a_piece_of_an_earlier_version_has_no_checksum(tmp_path: Path) -> None:
    saved = opened(tmp_path)
    saved.add(chunk_of(0, 0), 0)
    saved.flush(1)
    piece = piece_of(tmp_path)
    piece.rename(piece.with_name(piece.name.split("-")[0] + ".parquet"))
    assert opened(tmp_path).counts.photos == 3


@pytest.mark.parametrize("column", ["face", "age", "error", "lot"])
def test_a_piece_without_checksum_that_lacks_a_column_is_damaged(
    column: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = opened(tmp_path)
    saved.add(chunk_of(0, 0), 0)
    saved.flush(1)
    piece = piece_of(tmp_path)
    pq.write_table(pq.read_table(piece).drop_columns([column]), piece)
    piece.rename(piece.with_name(piece.name.split("-")[0] + ".parquet"))
    assert opened(tmp_path).counts.photos == 0
    assert f"damaged (no column '{column}')" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", '{"seconds": "x"}', '{"seconds": [1]}', '{"seconds": -1e999}']
)
def test_damaged_progress_is_ignored(text: str, tmp_path: Path) -> None:
    opened(tmp_path)
    (tmp_path / "out.unfinished" / "progress.json").write_text(text)
    assert opened(tmp_path).seconds == 0


# --- whose folder it is --------------------------------------------------------------------------


@pytest.mark.parametrize("plan", [None, "", "{", "[]", "{}", PLAN[:20]])
def test_work_without_a_plan_is_nobodys_and_stays(plan: str | None, tmp_path: Path) -> None:
    saved = opened(tmp_path)
    saved.add(chunk_of(0, 0), 0)
    saved.flush(1)
    file = tmp_path / "out.unfinished" / "plan.json"
    file.unlink()
    if plan is not None:
        file.write_text(plan)
    with pytest.raises(UserError, match=r"out\.unfinished: has p.*missing or damaged.*move the folder away"):
        _ = saved.plan
    assert piece_of(tmp_path).exists()


@pytest.mark.parametrize(
    "name", ["photo.jpg", "summary.json", "part-00000.parquet", "pieces/my.parquet", ".git/x"]
)
def test_a_folder_that_no_run_made_stays(name: str, tmp_path: Path) -> None:
    """Among them a finished result in a folder whose name ends in `.unfinished`."""
    file = tmp_path / "out.unfinished" / name
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    saved = ScoreCheckpoint(ScoreFiles(str(tmp_path / "out")))
    with pytest.raises(UserError, match=r"which ageray score did not write"):
        _ = saved.plan
    saved.delete()
    assert file.read_text() == "mine"


def test_what_a_killed_start_leaves_is_no_run(tmp_path: Path) -> None:
    folder = tmp_path / "out.unfinished"
    (folder / "pieces").mkdir(parents=True)
    (folder / ".plan.json.0123abcd").write_text("{")
    (folder / "lease-000001.json").write_text("{}")
    saved = ScoreCheckpoint(ScoreFiles(str(tmp_path / "out")))
    assert saved.plan is None
    saved.delete()
    assert [file.name for file in folder.iterdir()] == ["lease-000001.json"]


def test_deleting_leaves_what_others_put_there(tmp_path: Path) -> None:
    saved = opened(tmp_path)
    saved.add(chunk_of(0, 0), 0)
    saved.flush(1)
    (tmp_path / "out.unfinished" / "notes.txt").write_text("mine")
    saved.delete()
    assert [file.name for file in (tmp_path / "out.unfinished").iterdir()] == ["notes.txt"]
