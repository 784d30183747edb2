"""A list of photos: in memory while it is short, in a file when it is long, in equal segments."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from ageray.score import places, read
from ageray.score.places import Places, SegmentReader


def tables(*sizes: int) -> list[pa.Table]:
    first, made = 0, []
    for size in sizes:
        uris = [f"/p/{number}.jpg" for number in range(first, first + size)]
        made.append(pa.table({"image": pa.array(uris, pa.string())}))
        first += size
    return made


@pytest.fixture(params=["memory", "file"])
def listed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Places:
    """25 photos in segments of 8."""
    monkeypatch.setattr(places, "SEGMENT_PATHS", 8)
    monkeypatch.setattr(places, "_IN_MEMORY", 16 if request.param == "memory" else 1)
    return Places(tables(3, 20, 0, 2))


def test_segments_are_equal_wherever_they_are(listed: Places) -> None:
    segments = list(listed.segments())
    assert [segment.num_rows for segment in segments] == [8, 8, 8, 1]
    assert [listed.rows(number) for number in range(4)] == [8, 8, 8, 1]
    assert (listed.photos, len(listed)) == (25, 4)
    assert pa.concat_tables(segments).equals(pa.concat_tables(tables(25)).combine_chunks())
    assert listed.names == Places(tables(25)).names != Places(tables(24)).names
    assert listed.take([24, 0, 9]).column("image").to_pylist() == ["/p/0.jpg", "/p/9.jpg", "/p/24.jpg"]
    if listed.file is not None:
        with SegmentReader(listed.file) as reader:
            assert reader.read(2).equals(segments[2])


def test_a_file_goes_with_its_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "_IN_MEMORY", 0)
    listed = Places(tables(3))
    assert listed.file is not None
    path = Path(listed.file)
    assert path.is_file()
    del listed
    assert not path.parent.exists()


def test_only_segments_with_chunks_to_do_are_read(listed: Places) -> None:
    rows = pa.concat_tables(read.list_segments(listed, {0: (0,), 3: (0,), 1: ()}))
    assert rows.column("number").to_pylist() == [1, 2]
