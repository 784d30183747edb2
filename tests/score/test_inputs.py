"""What a user may point the scoring job at, and what is read of it, chunk by chunk; all without
Ray.
"""

from __future__ import annotations

import csv
import io
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ageray.errors import UserError
from ageray.faces import images
from ageray.score import chunks, results, tables, tars
from ageray.score.inputs import Inputs
from ageray.score.read import read_segments, scan, segment_table
from ageray.score.results import Photo
from ageray.synthetic import faces


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def read(inputs: Inputs, done: dict[int, tuple[int, ...]] | None = None) -> pa.Table:
    """All chunks of the inputs, without those at the positions `done` of each segment."""
    blocks = []
    for segment in scan(inputs).segments:
        row = segment_table(segment._replace(done=(done or {}).get(segment.number, ())))
        blocks += read_segments(row, inputs.columns)
    return pa.concat_tables(blocks) if blocks else pa.table({"image": pa.array([], pa.string())})


# --- tars ----------------------------------------------------------------------------------------


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """130 photos with their labels beside them, as WebDataset has them, a folder, a hidden file and
    a photo of another spelling.
    """
    members = {
        name: b"x" * 700 for number in range(129) for name in (f"a/{number:03d}.jpg", f"a/{number:03d}.json")
    }
    return write_tar(tmp_path / "shard.tar", {**members, "a/._000.jpg": b"mac", "a/last.JPEG": b"y"})


def test_photos_of_a_tar_come_in_chunks(archive: Path) -> None:
    inputs = Inputs.open(str(archive))
    assert (inputs.kind, inputs.files) == ("tars", [str(archive)])
    rows = read(inputs)
    assert rows.num_rows == 130
    assert rows.column("image").to_pylist() == [f"{archive}/a/{number:03d}.jpg" for number in range(129)] + [
        f"{archive}/a/last.JPEG"
    ]
    assert [row["content"] for row in rows.slice(128).to_pylist()] == [b"x" * 700, b"y"]
    lasts = dict(zip(rows["lot"].to_pylist(), rows["last"].to_pylist(), strict=True))
    assert lasts == {0: False, 1: False, 2: True}
    assert scan(inputs).weight == archive.stat().st_size > sum(rows["weight"].to_pylist()) > 130 * 1536
    again = read(inputs, {0: (0, 2)})
    assert set(again["lot"].to_pylist()) == {1}
    assert again.equals(rows.slice(64, 64))
    photos = [Photo(f"{archive}/a/last.JPEG"), Photo(f"{archive}/a/007.jpg"), Photo(f"{archive}/gone.jpg")]
    assert sorted(content for _, content in results.contents(photos)) == [b"x" * 700, b"y"]


def test_a_tar_whose_last_chunk_is_full(tmp_path: Path) -> None:
    write_tar(tmp_path / "t.tar", {f"{number}.png": b"x" for number in range(chunks.SIZE)})
    rows = read(Inputs.open(str(tmp_path)))
    assert set(rows["last"].to_pylist()) == {True}


def test_a_tar_cut_short_is_refused_before_anything_begins(archive: Path) -> None:
    whole = archive.read_bytes()
    for size in (len(whole) // 2, 512 * 4, 100, 0):
        archive.write_bytes(whole[:size])
        with pytest.raises(
            UserError, match=r"shard\.tar: (cut short: the archive has no end mark; copy|not a tar)"
        ):
            scan(Inputs.open(str(archive)))
    archive.write_bytes(b"PK" * 2000)
    with pytest.raises(UserError, match="not a tar archive"):
        scan(Inputs.open(str(archive)))


def test_a_tar_that_is_broken_inside_is_listed(archive: Path) -> None:
    broken = bytearray(archive.read_bytes())
    broken[1024 * 150 : 1024 * 150 + 4096] = b"\xff" * 4096  # over two headers
    archive.write_bytes(broken)
    tars.check(str(archive))
    *photos, end = read(Inputs.open(str(archive))).to_pylist()
    assert 40 < len(photos) < 64
    assert (end["image"], end["content"]) == (str(archive), None)
    assert end["problem"] == f"the archive breaks off after {len(photos)} photos (bad header)"


def test_too_much_for_a_photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 2**20)
    write_tar(tmp_path / "t.tar", {"big.jpg": b"0" * (2**20 + 1), "small.jpg": b"0"})
    assert [row["problem"] for row in read(Inputs.open(str(tmp_path / "t.tar"))).to_pylist()] == [
        "over 1 MiB",
        None,
    ]


# --- tables --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["binary", "large", "struct"])
def test_photos_in_tables_are_named_by_row_or_key(kind: str, tmp_path: Path) -> None:
    photos = [b"%d" % number for number in range(90)] + [None]
    if kind == "struct":
        column = pa.array([None if photo is None else {"bytes": photo, "path": "x"} for photo in photos])
    else:
        column = pa.array(photos, pa.binary() if kind == "binary" else pa.large_binary())
    pq.write_table(
        pa.table({"bytes" if kind == "large" else "image": column, "label": [0] * 91}),
        tmp_path / "a.parquet",
        row_group_size=70,
    )
    inputs = Inputs.open(str(tmp_path))
    summary = scan(inputs)
    assert (inputs.kind, summary.photos, [segment.first for segment in summary.segments]) == (
        "photo table",
        91,
        [0, 70],
    )
    rows = read(inputs)
    assert rows.column("image").to_pylist() == [f"{tmp_path}/a.parquet/{number}" for number in range(91)]
    assert rows.column("content").to_pylist() == photos
    assert rows.column("problem").to_pylist() == [None] * 90 + ["no bytes are given"]
    assert rows.column("key").null_count == 91  # all faces of a photo count, as of a file
    assert set(read(inputs, {0: (0, 1)})["lot"].to_pylist()) == {chunks.chunk_id(1, 0)}
    picked = dict(results.contents([Photo(f"{tmp_path}/a.parquet/80"), Photo(f"{tmp_path}/a.parquet/90")]))
    assert list(picked.values()) == [b"80"]


def test_keys_name_the_photos_of_a_table(tmp_path: Path) -> None:
    pq.write_table(pa.table({"key": [7, 8], "image": [b"a", b"b"]}), tmp_path / "a.parquet")
    assert read(Inputs.open(str(tmp_path / "a.parquet"))).column("image").to_pylist() == [
        f"{tmp_path}/a.parquet/{key}" for key in (7, 8)
    ]


def test_face_shards_are_told_from_tables_of_photos(tmp_path: Path) -> None:
    faces.write_faces_table(tmp_path, 3, shards=2)
    inputs = Inputs.open(str(tmp_path))
    assert inputs.kind == "face shards"
    assert [inputs.describe(1), inputs.describe(2)] == ["1 face in shards", "2 faces in shards"]
    rows = read(inputs)
    assert rows.column("key").null_count == rows.column("landmarks").null_count == 0
    assert set(rows.column("image").to_pylist()) == set(inputs.files)
    pq.write_table(pa.table({"image": [b"a"]}), tmp_path / "z.parquet")
    with pytest.raises(UserError, match=r"z\.parquet: is another kind of table than .*faces-00000"):
        scan(Inputs.open(str(tmp_path)))


def test_a_table_that_vanishes_or_breaks_ends_the_run(tmp_path: Path) -> None:
    [path] = faces.write_faces_table(tmp_path, 2)
    columns = tables.columns(path, tables.footer(path).schema.to_arrow_schema())
    content = bytearray(Path(path).read_bytes())
    content[4:3000] = b"\xff" * 2996
    Path(path).write_bytes(content)
    with pytest.raises(UserError, match="cannot be read .*; write it again, then run the command again"):
        tables.photos(path, 0, 0, columns)


def test_tables_that_duckdb_wrote(tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    photos = "SELECT 'x'::BLOB AS image, i AS key, i % 2 AS part FROM range(4) rows(i)"
    duckdb.sql(f"COPY ({photos}) TO '{tmp_path}/parts' (FORMAT parquet, PARTITION_BY (part))")
    rows = read(Inputs.open(str(tmp_path / "parts")))
    assert rows.column("content").to_pylist() == [b"x"] * 4
    assert [name.split("/")[-3:] for name in rows.column("image").to_pylist()] == [
        [f"part={part}", "data_0.parquet", str(key)] for part, key in ((0, 0), (0, 2), (1, 1), (1, 3))
    ]
    paths = "SELECT '/p/' || i || '.jpg' AS image, i AS row FROM range(3) rows(i)"
    duckdb.sql(f"COPY ({paths}) TO '{tmp_path}/list.parquet'")
    [uris] = Inputs.open(str(tmp_path / "list.parquet")).uris()
    assert uris.column("image").to_pylist() == ["/p/0.jpg", "/p/1.jpg", "/p/2.jpg"]


# --- lists of paths ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["csv", "parquet", "two"])
def test_paths_of_a_manifest(kind: str, tmp_path: Path) -> None:
    rows = ["/far/a.jpg", "near.jpg", "", "s3://bucket/b.jpg", "near.jpg"]
    if kind == "csv":
        with (tmp_path / "list.csv").open("w", newline="") as file:
            csv.writer(file).writerows(
                [["who", "image"], *([f"a, b {n}", row] for n, row in enumerate(rows))]
            )
    for number, some in enumerate({"csv": [], "parquet": [rows], "two": [rows[:2], rows[2:]]}[kind]):
        pq.write_table(
            pa.table({"uri": pa.array([row or None for row in some])}), tmp_path / f"list-{number}.parquet"
        )
    inputs = Inputs.open(str(tmp_path / "list.csv") if kind == "csv" else str(tmp_path))
    [uris] = inputs.uris()
    near = str(tmp_path / "near.jpg")
    assert uris.column("image").to_pylist() == ["/far/a.jpg", near, "", "s3://bucket/b.jpg", near]
    assert (inputs.kind, scan(inputs).photos) == ("manifest", 5)


def test_photos_beside_tables_count_beside_tars_do_not(tmp_path: Path) -> None:
    for name in ("a.jpg", "in/ner/b.PNG"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    pq.write_table(pa.table({"age": [1]}), tmp_path / "labels.parquet")
    before = scan(Inputs.open(str(tmp_path)))
    assert (before.photos, before.weight, before.segments) == (2, 2, [])
    (tmp_path / "c.jpg").write_bytes(b"")
    assert scan(Inputs.open(str(tmp_path))).names != before.names
    write_tar(tmp_path / "t.tar", {"x.jpg": b""})
    with pytest.raises(UserError, match=r"holds both photos \(3\) and tars \(1\)"):
        Inputs.open(str(tmp_path))
