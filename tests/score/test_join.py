"""Results that join back to the input: places as written, own ids, other columns, other forms."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import ageray
from ageray import bundle, schema
from ageray.commands import score as command
from ageray.errors import UserError
from ageray.experiment import Align, Experiment, Scale
from ageray.experiment.model import ResidualCnn
from ageray.models.build import build
from ageray.score import chunks, export, join, manifest, pipeline, places, read, run, write
from ageray.score.checkpoint import ScoreCheckpoint
from ageray.score.files import ScoreFiles
from ageray.score.inputs import Inputs
from ageray.score.join import Join
from ageray.synthetic import faces as synthetic_faces

SCALE = Scale(engine="local", decode_batch=4, score_batch=4, threads=1, progress=False, gpu=False)
FAST = ["scale.engine=local", "scale.threads=1", "scale.progress=false", "scale.gpu=false"]
OTHERS = ["id", "name", "visits", "height", "born", "city", "note", "input_age", "input_error"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("model") / "tiny")
    experiment = Experiment(model=ResidualCnn(name="residual_cnn", width=0.25), align=Align(size=48))
    network = build(experiment.model, seed=0)
    with torch.no_grad():
        network.head.weight.mul_(30)
    bundle.save(folder, network, experiment, {"name": "tiny"})
    return folder


def manifest_of(
    folder: Path, images: list[str], notes: tuple[str, ...] | list[str] = ("x", "")
) -> list[dict[str, Any]]:
    """Writes people.csv with ten columns; returns its rows."""
    rows = []
    for number, image in enumerate(images):
        row = {"image": image, "id": f"P{number:03}", "name": f"Ann, {number}", "visits": number * 3}
        row |= {"height": 1.5 + number / 100, "born": f"19{60 + number}-02-03", "city": "Köln"}
        note = notes[number * len(notes) // len(images)]
        rows.append(row | {"note": note, "age": 20 + number, "error": "none"})
    with (folder / "people.csv").open("w", newline="", encoding="utf-8") as file:
        lines = csv.DictWriter(file, list(rows[0]))
        lines.writeheader()
        lines.writerows(rows)
    return rows


def piece(photos: list[tuple[int, int]], images: list[str], segment: int = 0) -> pa.Table:
    """Rows of a piece: the number in the segment and the face of each, and its uri."""
    rows = []
    for (number, face), image in zip(photos, images, strict=True):
        position, place = divmod(number, chunks.SIZE)
        lot = chunks.chunk_id(segment, position)
        row = {"key": f"{image}#{face}", "image": image, "face": face, "lot": lot, "photo": place}
        rows.append(row | {"photos": 1, "last": False, "weight": 1, "siblings": 1})
    return pa.Table.from_pylist(rows)


def join_of(location: Path | str) -> Join:
    inputs = Inputs.open(str(location))
    how = join.of_run(inputs, read.scan(inputs))
    assert how is not None
    return how


def joined(location: Path | str, rows: pa.Table) -> list[dict[str, Any]]:
    """The rows here, and as another process joins them that has only their part of the input."""
    how = join_of(location)
    lots = rows.column("lot")
    elsewhere = how.for_part(lots[0].as_py(), lots[-1].as_py())
    result: list[dict[str, Any]] = how(rows).to_pylist()
    assert elsewhere(rows).to_pylist() == result
    return result


# --- the whole -----------------------------------------------------------------------------------


def check_whole(out: str, before: list[dict[str, Any]]) -> pd.DataFrame:
    """Each row of people.csv has one row of the result with its id as key, with its other
    columns."""
    after = pd.read_parquet(out)
    assert list(after.columns) == [*schema.SCORES.names, *OTHERS]
    assert after["key"].is_unique
    people = pd.read_csv("people.csv", keep_default_na=False)
    first = after[after["face"] <= 0]
    assert sorted(first["key"]) == sorted(people["id"])
    whole = people.merge(first, left_on="id", right_on="key", validate="one_to_one")
    assert len(whole) == len(before)
    for row, expected in zip(whole.to_dict("records"), before, strict=True):
        assert row["image_y"] == expected["image"]
        for name in ("id", "name", "visits", "note", "city", "born"):
            assert row[f"{name}_y"] == expected[name]
        assert row["height_y"] == pytest.approx(expected["height"])
        assert (row["input_age"], row["input_error"]) == (expected["age"], "none")
    further = after[after["face"] > 0]
    assert all(further["key"] == further["id"] + "#" + further["face"].astype(str))
    return after


def test_a_manifest_of_ten_columns_joins_back_one_to_one(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Photos with several faces, without one, and missing."""
    synthetic_faces.write_photos(tmp_path / "photos", 5)
    names = sorted(path.name for path in (tmp_path / "photos").iterdir())
    monkeypatch.chdir(tmp_path)
    before = manifest_of(tmp_path, [*(f"photos/{name}" for name in names), "photos/none.jpg", ""])
    run.score("people.csv", "scores", model, SCALE)
    after = check_whole("scores", before)
    assert set(after["face"]) >= {-1, 0, 1}
    metadata = pq.read_schema("scores/part-00000.parquet").metadata
    assert metadata[b"box"].startswith(b"x0 y0 x1 y1")
    assert metadata[b"landmarks"].startswith(b"x y of viewer-left eye")
    count = "SELECT count(DISTINCT id) FROM read_parquet('scores') WHERE face <= 0"
    assert duckdb.sql(count).fetchall() == [(len(before),)]
    page = (tmp_path / "scores" / "_report.html").read_text()
    assert page.count("data:image/") >= len(names)  # relative paths begin at the manifest's folder


def test_shards_join_back_too(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Types are those of the whole manifest, also where a shard has only numbers."""
    monkeypatch.setattr(places, "SEGMENT_PATHS", 4)
    monkeypatch.chdir(tmp_path)
    before = manifest_of(tmp_path, [f"none-{number}.jpg" for number in range(6)], notes=["12", "34x"])
    for number in (1, 2):
        run.score("people.csv", "scores", model, SCALE, shard=run.Shard(number, 2))
    check_whole("scores", before)


def test_tasks_of_a_cluster_write_the_columns(ray_local: None, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("image,id,double\na.jpg,A,0\nb.jpg,B,2\n")
    how = join_of(tmp_path / "list.csv")
    rows = piece([(0, 0), (1, 0)], [f"{tmp_path}/a.jpg", f"{tmp_path}/b.jpg"])
    rows = rows.append_column("error", pa.nulls(2, pa.string()))
    for field in schema.SCORES:
        if field.name not in rows.column_names:
            rows = rows.append_column(field, pa.nulls(2, field.type))
    files = ScoreFiles(str(tmp_path / "out"))
    ScoreCheckpoint(files).open({"model": "one"})
    index = write.PieceIndex()
    index.add(write.pieces.write(files, rows))
    target = ScoreFiles(str(tmp_path / "result"))
    Path(target.folder).mkdir()
    table = pa.schema([*schema.SCORES, *how.fields])
    [part] = pipeline.write_parts(write.plan_parts(index), files, target, table, how)
    assert part.digest.images == 2
    written = pq.read_table(target.part(0)).to_pylist()
    assert [(row["key"], row["image"], row["double"]) for row in written] == [
        ("A", "a.jpg", 0),
        ("B", "b.jpg", 2),
    ]


def test_an_unfinished_run_of_before_gets_the_columns(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pieces have no columns of the manifest, and not all that scores have now."""
    monkeypatch.chdir(tmp_path)
    before = manifest_of(tmp_path, [f"none-{number}.jpg" for number in range(3)])
    task = run._prepare(["people.csv"], model, None, "auto", False, None)
    rows = [(number, -1) for number in range(3)]
    old = piece(rows, [f"{tmp_path}/none-{number}.jpg" for number in range(3)])
    old = old.append_column("error", pa.array(["cannot read: gone"] * 3))
    for name in ("photos", "siblings"):
        old = old.set_column(old.column_names.index(name), name, pa.array([3 if name == "photos" else 1] * 3))
    for field in schema.SCORES:
        if field.name not in old.column_names and field.name not in ("over_18", "over_25"):
            old = old.append_column(field, pa.nulls(3, field.type))
    checkpoint = ScoreCheckpoint(run.check_target("scores"))
    checkpoint.open({name: value for name, value in task.plan().items() if name != "code"})
    write.pieces.write(checkpoint.files, old.set_column(
        old.column_names.index("last"), "last", pa.array([True] * 3)
    ))  # fmt: skip
    monkeypatch.setattr(run.local.LocalEngine, "_tasks", lambda *_: iter(()))
    run.score("people.csv", "scores", model, SCALE)
    check_whole("scores", before)


def test_one_file_and_other_forms(
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`--out ages.csv` gives the folder ages.scores and the whole table as one file, from several
    INPUTs; the same command again only writes the file anew."""
    synthetic_faces.write_photos(tmp_path / "photos", 3)
    monkeypatch.chdir(tmp_path)
    Path("photos/broken.jpg").write_bytes(b"no photo")
    Path("photos/notes.txt").write_text("no photo")
    words = [*(str(path) for path in sorted(Path("photos").iterdir())), "photos", "--model", model]
    command.main([*words, "--out", "ages.csv", *FAST])
    with Path("ages.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    parquet = pd.read_parquet("ages.scores")
    assert sorted(row["key"] for row in rows) == sorted(parquet["key"])
    photos = {f"photos/{path.name}" for path in Path("photos").iterdir()} - {"photos/notes.txt"}
    assert {row["image"] for row in rows} == photos
    assert sum(row["error"] != "" for row in rows) == 1
    [first, *_] = [row for row in rows if row["error"] == ""]
    assert len(json.loads(first["box"])) == 4
    assert len(first["box"]) < 60  # float32 in as few digits as it has
    printed = capsys.readouterr().out
    assert "ages.csv" in printed
    assert "passed over: 2 .txt" in printed  # named by a word, and in the folder
    summary = json.loads(Path("ages.scores/_summary.json").read_text())
    assert summary["passed_over"] == {".txt": 2}
    assert "passed over: .txt" in Path("ages.scores/_report.html").read_text()
    Path("ages.csv").unlink()
    command.main([*words, "--out", "ages.csv", *FAST])
    assert Path("ages.csv").is_file()
    assert "complete already" in capsys.readouterr().out
    scores = ageray.score(words[:-2], "ages.jsonl", model=model, settings=FAST)
    assert (scores.out, scores.to_arrow().num_rows) == ("ages.scores", len(rows) - 1)
    lines = [json.loads(line) for line in Path("ages.jsonl").read_text().splitlines()]
    assert [line["key"] for line in lines] == [row["key"] for row in rows]
    assert lines[0]["box"] == json.loads(rows[0]["box"])
    export.convert("ages.scores", "csv")
    assert sorted(path.name for path in Path("ages.scores").iterdir()) == [
        "_report.html", "_summary.json", "errors.csv", "part-00000.csv",
    ]  # fmt: skip
    assert all(ScoreFiles("ages.scores").is_ours(path.name) for path in Path("ages.scores").iterdir())


def test_no_file_of_another_is_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("people.csv").write_text("image\n")
    Path("people.scores").mkdir()
    with pytest.raises(UserError, match="is an INPUT"):
        export.target("people.csv", ["people.csv"])
    Path("mine.csv").write_text("mine")
    with pytest.raises(UserError, match="did not write"):
        export.target("mine.csv")
    Path("mine.scores.unfinished").mkdir()
    assert export.target("mine.csv") == ("mine.scores", "mine.csv")
    Path("odd.csv").mkdir()
    for folder in ("odd.csv", "scores", "x/.csv"):
        assert export.target(folder) == (folder, None)


# --- rows of a piece -----------------------------------------------------------------------------


@pytest.mark.parametrize("in_memory", [16, 0], ids=["memory", "file"])
def test_rows_of_a_long_manifest_find_their_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: int
) -> None:
    monkeypatch.setattr(places, "_IN_MEMORY", in_memory)
    count = places.SEGMENT_PATHS + 200
    lines = [f"{number}.jpg,{number * 2},{number:05}" for number in range(count)]
    (tmp_path / "list.csv").write_text("\n".join(["image,double,key", *lines]))
    numbers = [0, 63, 64, 8191]
    uris = [f"{tmp_path}/{number}.jpg" for number in numbers]
    rows = joined(tmp_path / "list.csv", piece([(number, 0) for number in numbers], uris))
    assert [(row["image"], row["double"], row["key"], row["input_key"]) for row in rows] == [
        (f"{number}.jpg", number * 2, f"{number:05}", f"{number:05}") for number in numbers
    ]
    [row] = joined(tmp_path / "list.csv", piece([(65, 1)], [f"{tmp_path}/8257.jpg"], segment=1))
    assert (row["image"], row["double"], row["key"]) == ("8257.jpg", 16514, "08257#1")
    both = pa.concat_tables([piece([(8191, 0)], uris[3:]), piece([(0, 0)], uris[:1], segment=1)])
    assert [row["double"] for row in joined(tmp_path / "list.csv", both)] == [16382, 16384]


def test_rows_of_tables_find_their_row(tmp_path: Path) -> None:
    """Segments are row groups, of several files."""
    for name, first in (("a", 0), ("b", 5)):
        columns = {
            "bytes": pa.array([b"x"] * 5, pa.binary()),
            "key": [f"k{first + number}" for number in range(5)],
            "label": pa.array([first + number for number in range(5)], pa.int32() if first else pa.int64()),
            "photo": ["mine"] * 5,
        }
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet", row_group_size=3)
    images = [f"{tmp_path}/b.parquet/k8", f"{tmp_path}/b.parquet/k9"]
    *_, row = joined(tmp_path, piece([(0, 0), (1, 0)], images, segment=3))
    assert (row["key"], row["label"], row["input_key"], row["photo"]) == ("k9", 9, "k9", "mine")
    assert "bytes" not in row
    assert row["image"] == images[1]


def test_kinds_of_columns(tmp_path: Path) -> None:
    """Numbers are numbers only if no letter of theirs is lost; wrong bytes do not end a run."""
    cells = {"whole": ["7", "", "-3"], "part": ["7", "1.5", ".5e3"], "zeros": ["007", "8", "9"]}
    cells |= {"long": ["1" * 19, "2", "3"], "text": ["7", "x", ""], "none": ["", "", ""], "": ["a", "b", "c"]}
    cells |= {
        "Age": ["1", "2", "3"],
        "age": ["4", "5", "6"],
        "image": ["a.jpg", "/far/b.jpg", "s3://c/d.jpg"],
    }
    lines = [",".join(cells), *map(",".join, zip(*cells.values(), strict=True))]
    lines[1] = lines[1].replace("a,1", "\udcff,1")
    (tmp_path / "list.csv").write_text("\n".join(lines), errors="surrogateescape")
    (tmp_path / "list.csv").write_bytes(b"x" * 0 + (tmp_path / "list.csv").read_bytes())
    uris = [f"{tmp_path}/a.jpg", "/far/b.jpg", "s3://c/d.jpg"]
    rows = pd.DataFrame(joined(tmp_path / "list.csv", piece([(0, 0), (1, 0), (2, 0)], uris)))
    assert list(rows["image"]) == cells["image"]
    assert list(rows["key"]) == [f"{image}#0" for image in cells["image"]]
    assert (rows["whole"][0], rows["whole"][2], rows["whole"].isna()[1]) == (7, -3, True)
    assert list(rows["part"]) == [7.0, 1.5, 500.0]
    for name in ("zeros", "long", "text", "none"):
        assert list(rows[name]) == cells[name]
    assert list(rows["input_Age"]) == [1, 2, 3]
    assert list(rows["input_input_age"]) == [4, 5, 6]
    assert list(rows["input_7"])[1:] == ["b", "c"]


def test_columns_of_several_manifests(tmp_path: Path) -> None:
    """Columns that one of them lacks are null; types that do not fit are text."""
    pq.write_table(pa.table({"uri": ["/a.jpg"], "n": [1], "id": [5]}), tmp_path / "a.parquet")
    color = pa.array(["red"]).dictionary_encode()
    pq.write_table(pa.table({"uri": ["/b.jpg"], "n": ["one"], "c": color}), tmp_path / "b.parquet")
    rows = joined(tmp_path, piece([(0, 1), (1, 0)], ["/a.jpg", "/b.jpg"]))
    assert [(row["n"], row["c"], row["key"]) for row in rows] == [
        ("1", None, "5#1"),
        ("one", "red", "/b.jpg#0"),
    ]
    lists = [pa.schema([("v", kind)]) for kind in (pa.list_(pa.int64()), pa.string())]
    with pytest.raises(UserError, match="column 'v' is list<.*> in one table and string in another"):
        manifest.unified(lists)


def test_places_are_as_the_user_wrote_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in" / "more").mkdir(parents=True)
    (tmp_path / "in" / "more" / "a.jpg").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "in")
    monkeypatch.chdir(tmp_path)
    uri = f"{tmp_path}/in/more/a.jpg"
    for written, image in (
        ("in", "in/more/a.jpg"),
        ("./in/", "./in/more/a.jpg"),
        ("link", "link/more/a.jpg"),
        ("in/more/a.jpg", "in/more/a.jpg"),
    ):
        [row] = joined(written, piece([(0, 0)], [uri]))
        assert (row["image"], row["key"]) == (image, f"{image}#0")
    whole = Inputs.open(str(tmp_path / "in"))
    assert join.of_run(whole, read.scan(whole)) is None


def test_several_inputs_are_of_one_kind(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg", "in/a.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "list.csv").write_text("image\na.jpg\n")
    words = [str(tmp_path / "b.jpg"), str(tmp_path / "in"), str(tmp_path)]
    both = Inputs.open_all(words)
    uris = pa.concat_tables(both.uris()).column("image").to_pylist()
    assert uris == [str(tmp_path / name) for name in ("b.jpg", "in/a.jpg", "a.jpg")]
    assert both.uri.startswith(f"{tmp_path / 'b.jpg'} and 2 more (")
    assert both.uri != Inputs.open_all([words[0], words[2], words[1]]).uri
    with pytest.raises(UserError, match="of two kinds"):
        Inputs.open_all([words[0], str(tmp_path / "list.csv")])
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(UserError, match=r"neither photos.*2 .txt"):
        Inputs.open_all([str(tmp_path / "x.txt")] * 2)


# --- the command ---------------------------------------------------------------------------------


def test_a_file_says_its_form(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--format jsonl: --out .* says the form already"):
        command.main(["photos", "--out", str(tmp_path / "ages.csv"), "--format", "jsonl"])


def test_a_result_of_version_0_1_is_complete(tmp_path: Path) -> None:
    """Its summary and page have names without `_`; both stay."""
    (tmp_path / "summary.json").write_text(json.dumps({"plan": {"a": 1}, "finished": "then"}))
    (tmp_path / "report.html").write_text("page")
    pq.write_table(schema.SCORES.empty_table(), tmp_path / "part-00000.parquet")
    files = run.check_target(str(tmp_path))
    summary = run.check_plan(ScoreCheckpoint(files), str(tmp_path), {"a": 1, "code": "this"}, fresh=False)
    assert summary is not None
    assert summary["finished"] == "then"


def test_columns_of_face_shards_are_carried(tmp_path: Path) -> None:
    """All but the key, the photo and what tells where the face is, which the result has itself."""
    [shard] = synthetic_faces.write_faces_table(tmp_path, 3, subjects=3)
    table = pq.read_table(shard)
    pq.write_table(table.append_column("city", pa.array(["a", "b", None])), shard)
    before = table.to_pylist()
    rows = piece([(1, 0), (2, 0)], [shard, shard])
    rows = rows.set_column(0, "key", pa.array([before[1]["key"], before[2]["key"]]))
    after = joined(shard, rows)
    assert [row["city"] for row in after] == ["b", None]
    for row, expected in zip(after, before[1:], strict=True):
        assert (row["key"], row["input_age"]) == (expected["key"], expected["age"])
        for name in ("subject", "dataset", "gender", "group", "age_std"):
            assert row[name] == expected[name]
        assert not {"input_box", "input_landmarks", "input_key", "input_image"} & set(row)
