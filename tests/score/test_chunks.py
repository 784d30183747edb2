"""Lots: cut, numbered, and gathered again from rows in any order."""

from __future__ import annotations

import random

import pyarrow as pa
import pytest

from ageray.score import chunks
from ageray.stages import labels as stages_labels


def photos(count: int) -> pa.Table:
    return pa.table({"image": [f"{number}.jpg" for number in range(count)]})


def rows_of(lot: pa.Table, faces: int) -> list[pa.Table]:
    """A row of scores for every face; a photo whose number is divisible by three has none, so one row with face -1."""
    made = []
    for photo in lot.to_pylist():
        numbers = [-1] if photo["photo"] % 3 == 0 else list(range(faces))
        labels = {name: photo[name] for name in stages_labels.CHUNK_OF_PHOTO_SCHEMA.names} | {
            "siblings": len(numbers)
        }
        made += [{"key": f"{photo['image']}#{face}", "face": face, **labels} for face in numbers]
    return [pa.Table.from_pylist([row]) for row in made]


def test_cut_covers_every_photo_once_and_marks_the_last() -> None:
    cut = list(chunks.cut(photos(150), 7, ()))
    assert [lot.num_rows for lot in cut] == [64, 64, 22] == [lot.column("photos")[0].as_py() for lot in cut]
    assert [chunks.place(lot.column("lot")[0].as_py()) for lot in cut] == [(7, 0), (7, 1), (7, 2)]
    assert [lot.column("last")[0].as_py() for lot in cut] == [False, False, True]
    assert pa.concat_tables(cut).column("image").to_pylist() == photos(150).column("image").to_pylist()
    assert [lot.column("lot")[0].as_py() for lot in chunks.cut(photos(150), 7, (0, 2))] == [
        chunks.number(7, 1)
    ]


@pytest.mark.parametrize("seed", range(4))
def test_gathered_lots_are_whole_whatever_the_order(seed: int) -> None:
    cut = list(chunks.cut(photos(150), 0, ()))
    rows = [row for lot in cut for row in rows_of(lot, 3)]
    expected = sorted(key for row in rows for key in row.column("key").to_pylist())
    rows += random.Random(seed).sample(rows, 40)  # a task that was run again gives its rows again
    random.Random(seed).shuffle(rows)
    gathering, complete = chunks.ChunkAssembler(), []
    for start in range(0, len(rows), 7):
        complete += gathering.add(pa.concat_tables(rows[start : start + 7]))
    assert len(gathering) == 0
    assert sorted(key for lot in complete for key in lot.column("key").to_pylist()) == expected
    assert sorted({lot.column("lot")[0].as_py() for lot in complete}) == [0, 1, 2]
    assert gathering.add(rows[0]) == []


def test_a_lot_waits_for_its_last_row_and_a_done_one_is_dropped() -> None:
    first, second = chunks.cut(photos(70), 0, ())
    gathering = chunks.ChunkAssembler(done=[chunks.number(0, 0)])
    assert gathering.add(pa.concat_tables(rows_of(first, 2))) == []
    assert len(gathering) == 0
    *rows, last = rows_of(second, 2)
    assert gathering.add(pa.concat_tables(rows)) == []
    assert len(gathering) == 1
    [lot] = gathering.add(last)
    assert lot.num_rows == len(rows) + 1
