"""Manifests, tables and tars as other programs write them."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ageray import schema
from ageray.data import splits
from ageray.errors import UserError
from ageray.prepare import manifest
from ageray.prepare.layouts import lists
from ageray.score import chunks, read, tables, tars
from ageray.score import manifest as manifests
from ageray.score.chunks import Segment
from ageray.score.inputs import Inputs
from ageray.storage import delimited
from ageray.synthetic import faces


def paths(file: Path) -> list[str]:
    return [uri for table in Inputs.open(str(file)).uris() for uri in table.column("image").to_pylist()]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_manifests_of_other_programs(tmp_path: Path, encoding: str, delimiter: str) -> None:
    rows = [("image", "age"), ("é/a.jpg", "30"), ("b.jpg", "4")]
    text = "\r\n".join(map(delimiter.join, rows)) + "\r\n"
    (tmp_path / "m.csv").write_bytes(text.encode(encoding))
    assert paths(tmp_path / "m.csv") == [f"{tmp_path}/é/a.jpg", f"{tmp_path}/b.jpg"]
    table, count = manifest.read_file(str(tmp_path / "m.csv"), "set", [], [])
    assert count == 2
    assert sorted(table.column("age").to_pylist()) == [4, 30]
    assert f"{tmp_path}/é/a.jpg" in table.column("uri").to_pylist()


@pytest.mark.parametrize(
    ("header", "hint"),
    [
        ("path,age", "path"),
        ("age,img_file", "img_file"),
        ("gender,Filename", "Filename"),
        ("age,stage", None),
    ],
)
def test_the_hint_names_the_column_of_photos(tmp_path: Path, header: str, hint: str | None) -> None:
    (tmp_path / "m.csv").write_text(f"{header}\na,b\n")
    assert delimited.likely_column(header.split(",")) == hint
    for reads in (
        lambda: paths(tmp_path / "m.csv"),
        lambda: manifest.read_file(str(tmp_path / "m.csv"), "set", [], []),
    ):
        with pytest.raises(UserError) as mistake:
            reads()
        assert ("rename" in str(mistake.value)) is (hint is not None)
        assert hint is None or f"rename '{hint}'" in str(mistake.value)


PHOTO = b"\xff\xd8 a photo"


@pytest.mark.parametrize(
    "column",
    [
        pa.array([PHOTO, PHOTO]).dictionary_encode(),
        pa.array([PHOTO, PHOTO], pa.binary(len(PHOTO))),
        pa.array([PHOTO, PHOTO], pa.binary_view()),
        pa.array([PHOTO, PHOTO], pa.large_binary()),
    ],
    ids=["dictionary", "fixed", "view", "large"],
)
def test_photos_in_columns_of_any_binary_kind(tmp_path: Path, column: pa.Array) -> None:
    file = str(tmp_path / "t.parquet")
    pq.write_table(pa.table({"image": column}), file)
    inputs = Inputs.open(file)
    assert inputs.kind == "photo table"
    assert inputs.columns is not None
    rows = tables.photos(file, 0, 0, inputs.columns)
    assert rows.column("content").to_pylist() == [PHOTO, PHOTO]


def test_paths_beside_missing_bytes_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(PHOTO)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = [
        {"bytes": None, "path": str(tmp_path / "a.jpg")},
        {"bytes": None, "path": "a.jpg"},
        {"bytes": b"other", "path": "a.jpg"},
        {"bytes": None, "path": "gone.jpg"},
        {"bytes": None, "path": None},
    ]
    file = str(tmp_path / "t.parquet")
    pq.write_table(pa.table({"image": pa.array(cells, kind)}), file)
    columns = Inputs.open(file).columns
    assert columns is not None
    rows = tables.photos(file, 0, 0, columns)
    assert rows.column("content").to_pylist() == [PHOTO, PHOTO, b"other", None, None]
    problems = rows.column("problem").to_pylist()
    assert problems[:3] == [None] * 3
    assert "gone.jpg" in problems[3]
    assert problems[4] == "no bytes are given"


def test_a_row_group_is_read_a_chunk_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "SIZE", 4)
    file = str(tmp_path / "t.parquet")
    pq.write_table(pa.table({"image": [bytes([number]) for number in range(10)]}), file)
    columns = Inputs.open(file).columns
    for done, sizes in (((), [4, 4, 2]), ((1,), [4, 2]), ((2,), [4, 4])):
        rows = read.segment_table(Segment(0, file, 0, 100, done))
        pieces = list(read.read_segments(rows, columns))
        assert [piece.num_rows for piece in pieces] == sizes
        last = [piece.column("last")[0].as_py() for piece in pieces]
        assert last == [size == 2 for size in sizes]
    assert pieces[0].column("image").to_pylist()[0] == f"{file}/100"


def test_a_shard_is_known_by_its_mark(tmp_path: Path) -> None:
    [old] = faces.write_faces_table(tmp_path / "old", 2, size=64)
    assert Inputs.open(old).kind == "face shards"
    table = pq.read_table(old)
    marked = table.select(["key", "image", "dataset"]).replace_schema_metadata({schema.MARK: schema.SHARDS})
    for name, content, kind in (
        ("marked", marked, "face shards"),
        ("user", marked.replace_schema_metadata(None), "photo table"),
        ("nested", table.set_column(2, "landmarks", pa.array([[[1.0, 2.0]] * 5] * 2)), "photo table"),
    ):
        file = str(tmp_path / f"{name}.parquet")
        pq.write_table(content, file)
        assert Inputs.open(file).kind == kind, name


def tar(members: list[tuple[str, bytes | str]]) -> bytes:
    """A tar: bytes are a file, text is the target of a hard link."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.LNKTYPE, content
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return data.getvalue()


def test_tars_one_behind_the_other_are_all_read(tmp_path: Path) -> None:
    first, second = tar([("a.jpg", b"1"), ("b.jpg", b"22")]), tar([("c.jpg", b"333")])
    (tmp_path / "all.tar").write_bytes(first + second + bytes(10240) + tar([("d.jpg", b"4")]))
    members = list(tars.photos(str(tmp_path / "all.tar")))
    contents = [(member.name, member.content) for member in members]
    assert contents == [("a.jpg", b"1"), ("b.jpg", b"22"), ("c.jpg", b"333"), ("d.jpg", b"4")]
    ends = [member.end for member in members]
    assert ends == sorted(ends)
    assert tars.check(str(tmp_path / "all.tar")) == len(first + second) + 10240 * 2


def test_links_in_a_tar(tmp_path: Path) -> None:
    (tmp_path / "links.tar").write_bytes(
        tar([("in/a.jpg", b"1"), ("b.jpg", "in/a.jpg"), ("c.jpg", "gone.jpg")])
    )
    one, two, three = tars.photos(str(tmp_path / "links.tar"))
    assert one.content == two.content == b"1"
    assert "gone.jpg" in str(three.content)


def test_a_table_with_a_damaged_column_name_is_refused(tmp_path: Path) -> None:
    """PyArrow reads such a footer, and raises UnicodeDecodeError for the name."""
    pq.write_table(pa.table({"key": ["a"], "image": [b"x"]}), tmp_path / "t.parquet")
    content = (tmp_path / "t.parquet").read_bytes()
    (tmp_path / "t.parquet").write_bytes(content.replace(b"image", b"im\xffge"))
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        Inputs.open(str(tmp_path / "t.parquet"))


@pytest.mark.parametrize("mark", ["\v", "\f", "\x1c", "\u2028"])
def test_a_line_ends_where_the_table_says(mark: str, tmp_path: Path) -> None:
    """Python's `splitlines` also divides at these, in names of columns and of files."""
    file = tmp_path / "a.csv"
    file.write_bytes(f"image,note{mark}b,c\n/a{mark}.jpg,1,2\n".encode())
    assert paths(file) == [f"/a{mark}.jpg"]
    (tmp_path / "list.txt").write_bytes(f"a{mark}.jpg\r\nb.jpg\n\n".encode())
    assert lists.lines(str(tmp_path / "list.txt")) == [f"a{mark}.jpg", "b.jpg"]
    (tmp_path / "none.txt").touch()
    assert lists.lines(str(tmp_path / "none.txt")) == []


def test_names_of_columns_stay_apart_and_short() -> None:
    """4,000 of one name took 7 s and names of 24,000 letters."""
    odd = ["image", "age", "Age", "AGE", "a", "a", "a", "", "input_8"]
    names = manifests.result_names([*odd, *["b"] * 4000], 0)
    expected = "image input_age input_input_Age input_AGE_3 a input_a input_input_a input_8 input_input_8"
    assert names[:9] == expected.split()
    assert len({name.lower() for name in names}) == len(names)
    assert max(map(len, names)) < 20


def damage(file: Path, text: bytes) -> Path:
    """Writes a byte into `text` that no UTF-8 has."""
    file.write_bytes(file.read_bytes().replace(text, text[:1] + b"\xff" + text[2:]))
    return file


@pytest.mark.parametrize("use_dictionary", [True, False])
def test_cells_that_are_not_utf_8_are_refused(tmp_path: Path, use_dictionary: bool) -> None:
    """PyArrow reads them, and raises UnicodeDecodeError when they become Python's."""
    pq.write_table(
        pa.table({"image": ["/kkkk", "/b"], "age": [1, 2]}),
        tmp_path / "a.parquet",
        use_dictionary=use_dictionary,
    )
    for reads in (
        lambda: paths(tmp_path / "a.parquet"),
        lambda: manifest.read_file(str(tmp_path / "a.parquet"), "set", [], []),
    ):
        reads()
        damage(tmp_path / "a.parquet", b"kkkk")
        with pytest.raises(UserError, match="cannot be read"):
            reads()
        (tmp_path / "a.parquet").write_bytes(
            (tmp_path / "a.parquet").read_bytes().replace(b"k\xffkk", b"kkkk")
        )
    pq.write_table(
        pa.table({"key": ["kkkk"], "image": [b"x"]}), tmp_path / "b.parquet", use_dictionary=use_dictionary
    )
    inputs = Inputs.open(str(damage(tmp_path / "b.parquet", b"kkkk")))
    with pytest.raises(UserError, match="cannot be read"):
        list(read.read_segments(read.segment_table(Segment(0, inputs.files[0], 0, 0)), inputs.columns))
    pq.write_table(
        pa.table({"key": ["kkkk"], "part": ["test"]}), tmp_path / "c.parquet", use_dictionary=use_dictionary
    )
    with pytest.raises(UserError, match="not a split table"):
        splits.load(str(damage(tmp_path / "c.parquet", b"kkkk")))


def test_a_list_with_damaged_pages_is_refused(tmp_path: Path) -> None:
    """Its footer is sound; PyArrow raises OSError when the rows are read."""
    pq.write_table(pa.table({"image": ["/a.jpg", "/b.jpg"]}), tmp_path / "t.parquet")
    content = (tmp_path / "t.parquet").read_bytes()
    (tmp_path / "t.parquet").write_bytes(content[:4] + b"\xff" * 40 + content[44:])
    with pytest.raises(UserError, match="cannot be read"):
        paths(tmp_path / "t.parquet")


def test_a_footer_with_types_that_do_not_exist_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyArrow says so of a damaged width of an integer."""
    pq.write_table(pa.table({"image": ["a"]}), tmp_path / "t.parquet")

    def refuse(*words: object, **more: object) -> None:
        raise pa.ArrowNotImplementedError("Integers not in cstdint are not implemented")

    monkeypatch.setattr(pq, "ParquetFile", refuse)
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        Inputs.open(str(tmp_path / "t.parquet"))
