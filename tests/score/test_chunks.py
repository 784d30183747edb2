"""Chunks: photos are cut into them and numbered, and rows in any order are put together to them."""

from __future__ import annotations

import random

import pyarrow as pa
import pytest

from ageray.score import chunks


def photos(count: int) -> pa.Table:
    return pa.table({"image": [f"{number}.jpg" for number in range(count)]})


def rows_of(chunk: pa.Table, faces: int) -> list[pa.Table]:
    """One table for each row of scores: `faces` for a photo, but one with face -1 if its number is
    divisible by 3.
    """
    rows = []
    for photo in chunk.to_pylist():
        numbers = [-1] if photo["photo"] % 3 == 0 else list(range(faces))
        labels = {name: photo[name] for name in chunks.CHUNK_OF_PHOTO_SCHEMA.names}
        labels["siblings"] = len(numbers)
        for face in numbers:
            row = {"key": f"{photo['image']}#{face}", "face": face, **labels}
            rows.append(pa.Table.from_pylist([row]))
    return rows


def test_cut_covers_every_photo_once_and_marks_the_last() -> None:
    cut = list(chunks.cut(photos(150), 7, ()))
    assert (
        [chunk.num_rows for chunk in cut]
        == [64, 64, 22]
        == [chunk.column("photos")[0].as_py() for chunk in cut]
    )
    assert [chunks.split_chunk_id(chunk.column("lot")[0].as_py()) for chunk in cut] == [
        (7, 0),
        (7, 1),
        (7, 2),
    ]
    assert [chunk.column("last")[0].as_py() for chunk in cut] == [False, False, True]
    assert pa.concat_tables(cut).column("image").to_pylist() == photos(150).column("image").to_pylist()
    assert [chunk.column("lot")[0].as_py() for chunk in chunks.cut(photos(150), 7, (0, 2))] == [
        chunks.chunk_id(7, 1)
    ]


@pytest.mark.parametrize("seed", range(4))
def test_assembled_chunks_are_whole_whatever_the_order(seed: int) -> None:
    cut = list(chunks.cut(photos(150), 0, ()))
    rows = [row for chunk in cut for row in rows_of(chunk, 3)]
    expected = sorted(key for row in rows for key in row.column("key").to_pylist())
    rows += random.Random(seed).sample(rows, 40)  # a task that was run again gives its rows again
    random.Random(seed).shuffle(rows)
    assembler, complete = chunks.ChunkAssembler(), []
    for start in range(0, len(rows), 7):
        complete += assembler.add(pa.concat_tables(rows[start : start + 7]))
    assert assembler.incomplete() == []
    assert sorted(key for chunk in complete for key in chunk.column("key").to_pylist()) == expected
    assert sorted({chunk.column("lot")[0].as_py() for chunk in complete}) == [0, 1, 2]
    assert assembler.add(rows[0]) == []


def test_a_chunk_waits_for_its_last_row_and_a_done_one_is_dropped() -> None:
    first, second = chunks.cut(photos(70), 0, ())
    assembler = chunks.ChunkAssembler(done=[chunks.chunk_id(0, 0)])
    assert assembler.add(pa.concat_tables(rows_of(first, 2))) == []
    assert assembler.incomplete() == []
    *rows, last = rows_of(second, 2)
    assert assembler.add(pa.concat_tables(rows)) == []
    assert len(assembler.incomplete()) == 1
    [chunk] = assembler.add(last)
    assert chunk.num_rows == len(rows) + 1


@pytest.mark.parametrize("seed", range(3))
def test_rows_are_split_into_those_of_whole_chunks_and_others(seed: int) -> None:
    cut = list(chunks.cut(photos(150), 0, ()))
    whole = [row for chunk in cut[:2] for row in rows_of(chunk, 3)]
    part = rows_of(cut[2], 3)[:-1]
    rows = [*whole, *part, *whole[:20]]  # a task that was run again gives its rows again
    random.Random(seed).shuffle(rows)
    complete, rest = chunks.split(pa.concat_tables(rows))
    assert complete.equals(pa.concat_tables(whole).combine_chunks())
    assert rest.equals(pa.concat_tables(part).combine_chunks())
    assert [table.num_rows for table in chunks.split(complete.slice(0, 0))] == [0, 0]


def test_a_set_of_chunks() -> None:
    done = chunks.ChunkSet()
    for position in (5, 0, 127, 5):
        done.add(chunks.chunk_id(3, position))
    done.add(chunks.chunk_id(1, 2))
    assert done.positions() == {1: (2,), 3: (0, 5, 127)}
    assert (len(done), done.count(3), done.count(2)) == (4, 3, 0)
    assert chunks.chunk_id(3, 127) in done
    assert chunks.chunk_id(3, 126) not in done
