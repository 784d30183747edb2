"""Scoring a collection: real photos, a real detector, a real (untrained) model, a real Ray."""

from __future__ import annotations

import http.server
import io
import json
import os
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
import torch
from moto.server import ThreadedMotoServer
from PIL import Image

from ageray import bundle, cluster, schema
from ageray.cluster.actors import ActorPool
from ageray.commands import cli
from ageray.commands import score as job
from ageray.errors import StoreError, UserError
from ageray.experiment import Align, Detect, Experiment, Scale
from ageray.experiment.model import ResidualCnn
from ageray.faces.canvases import face_canvases
from ageray.faces.detect import Face, YuNet
from ageray.faces.images import decode
from ageray.models.build import build
from ageray.predictor import Predictor
from ageray.score import chunks, pipeline, places, read, results, run, tables
from ageray.score.checkpoint import ScoreCheckpoint
from ageray.score.files import PAGE, ScoreFiles
from ageray.score.inputs import Inputs
from ageray.score.pieces import PieceIndex
from ageray.score.write import plan_parts
from ageray.stages import detect
from ageray.stages.columns import DETECTED_SCHEMA
from ageray.stages.detect import find_faces
from ageray.stages.predict import AgeFaces
from ageray.synthetic import faces as synthetic_faces
from ageray.synthetic.demo import draw_demo

SCALE = Scale(decode_batch=4, score_batch=4, threads=1, progress=False)
LOCAL = SCALE.model_copy(update={"engine": "local", "local_cpus": 1})
ALIGN, DETECT = Align(size=64), Detect()
BAD = {
    "empty.jpg": "cannot decode: empty file",
    "text.jpg": "cannot decode: not an image",
    "nobody.png": "no face found",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A bundle of an untrained network that answers differently for different faces."""
    folder = str(tmp_path_factory.mktemp("model") / "tiny")
    experiment = Experiment(model=ResidualCnn(name="residual_cnn", width=0.25), align=ALIGN)
    network = build(experiment.model, seed=0)
    with torch.no_grad():
        network.head.weight.mul_(30)
    bundle.save(
        folder, network, experiment, {"name": "tiny", "not_good_for": ["anything: its weights are random"]}
    )
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine photos: five with faces, of which two share a file name and one is stored on its side;
    four without.
    """
    folder = tmp_path_factory.mktemp("photos")
    synthetic_faces.write_photos(folder, 3)
    (folder / "more").mkdir()
    synthetic_faces.write_photos(folder / "more", 1, seed=7)
    upright = Image.open(folder / "photo-00000.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(folder / "more" / "turned.jpeg", quality=98, exif=exif)
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("no photo")
    Image.new("RGB", (320, 240), (70, 120, 70)).save(folder / "nobody.png")
    (folder / "more" / "cut.JPG").write_bytes((folder / "photo-00001.jpg").read_bytes()[:20_000])
    (folder / "notes.txt").write_text("not taken for a photo")
    return folder


@pytest.fixture(scope="module")
def scored(photos: Path, model: str, ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of scores of `photos`."""
    out = tmp_path_factory.mktemp("out") / "scores"
    run.score(str(photos), str(out), model, SCALE, posterior=True)
    return out


def table(out: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(part) for part in sorted(out.glob("*.parquet"))]).sort_by("key")


def listed(*uris: object) -> pa.Table:
    return pa.table({"image": pa.array([str(uri) for uri in uris], pa.string())})


def find(photos: pa.Table, align: Align = ALIGN, search: detect.Search = "auto") -> pa.Table:
    return find_faces(photos, align, DETECT, search, "test")


# --- the whole -----------------------------------------------------------------------------------


def test_no_photo_is_lost(scored: Path, photos: Path) -> None:
    rows, summary = table(scored), json.loads((scored / "_summary.json").read_text())
    files = {str(file) for file in photos.rglob("*") if file.suffix.lower() in (".jpg", ".jpeg", ".png")}
    assert set(rows.column("image").to_pylist()) == files
    assert summary["images"] == len(files) == 9
    expected = sum(
        len(YuNet(DETECT).detect(decode(Path(file).read_bytes(), DETECT.max_side)))
        for file in _readable(files)
    )
    assert (
        summary["faces"]
        == expected
        == rows.column("age").drop_null().length()
        == rows.column("error").null_count
    )
    assert rows.num_rows == summary["faces"] + 4
    assert summary["errors"] == {"cannot decode": 3, "no face found": 1}
    failed = {row["image"]: row for row in rows.to_pylist() if row["error"] is not None}
    for name, error in BAD.items():
        row = failed[str(photos / name)]
        assert (row["error"], row["face"], row["key"]) == (error, -1, f"{photos / name}#-1")
        assert all(
            row[column] is None
            for column in ("age", "age_low", "age_high", "box", "landmarks", "detection", "posterior")
        )
    assert failed[str(photos / "more" / "cut.JPG")]["error"].startswith(
        "cannot decode: OSError: image file is truncated"
    )


def _readable(files: set[str]) -> list[str]:
    return [file for file in files if Path(file).name not in (*BAD, "cut.JPG")]


def test_table_has_its_schema_and_says_which_model_made_it(scored: Path, model: str) -> None:
    rows = table(scored)
    assert rows.schema.remove_metadata().equals(schema.SCORES.append(schema.POSTERIOR))
    assert json.loads(rows.schema.metadata[b"ageray"])["identity"] == bundle.load(model).identity
    assert len(set(rows.column("key").to_pylist())) == rows.num_rows
    totals = [sum(posterior) for posterior in rows.column("posterior").to_pylist() if posterior is not None]
    np.testing.assert_allclose(totals, 1, atol=1e-4)
    assert sorted(path.name for path in scored.iterdir()) == [
        "_report.html",
        "_summary.json",
        "errors.parquet",
        "part-00000.parquet",
    ]
    assert pq.read_table(scored / "part-00000.parquet").column("error").null_count == rows.num_rows - 4
    assert not scored.with_name("scores.unfinished").exists()
    assert "Ages of the faces in" in (scored / PAGE).read_text()


def test_ages_are_those_of_the_predictor(scored: Path, model: str) -> None:
    loaded = bundle.load(model)
    predictor, detector = Predictor(loaded, device="cpu", threads=1), YuNet(DETECT)
    rows = [row for row in table(scored).to_pylist() if row["error"] is None]
    for image in {row["image"] for row in rows}:
        content = Path(image).read_bytes()
        faces = sorted(
            detector.detect(decode(content, DETECT.max_side)), key=lambda face: face.box[0] + face.box[2]
        )
        points, boxes = np.stack([face.points for face in faces]), np.stack([face.box for face in faces])
        canvases = face_canvases(content, points, boxes, ALIGN)
        ages = predictor.predict(canvases.pixels, canvases.points, canvases.box)
        own = sorted((row for row in rows if row["image"] == image), key=lambda row: row["face"])
        assert [row["face"] for row in own] == list(range(len(faces)))
        np.testing.assert_allclose([row["age"] for row in own], ages.age, atol=1e-3)
        np.testing.assert_allclose([row["age_low"] for row in own], ages.low, atol=1e-3)
        np.testing.assert_allclose([row["age_high"] for row in own], ages.high, atol=1e-3)
        np.testing.assert_allclose([row["box"] for row in own], boxes, atol=1e-3)
    assert np.ptp([row["age"] for row in rows]) > 0.5  # the network does tell these faces apart


def test_the_same_again_is_done_and_a_change_is_refused(
    scored: Path,
    photos: Path,
    model: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = {path.name: path.read_bytes() for path in scored.iterdir()}
    monkeypatch.setattr(run, "_engine", lambda *_: pytest.fail("nothing is to be computed"))
    words = [str(photos), "--out", str(scored), "--model", model, "--posterior"]
    job.main(words)
    output = capsys.readouterr().out
    assert "is complete already" in output
    assert "to look at:" in output
    changes = {
        "detector.threshold: 0.6, now 0.8": [*words, "data.detect.threshold=0.8"],
        "posterior: true, now false": words[:-1],
        "input.photos: 9, now 3": [str(photos / "more"), *words[1:]],
        'detect: "auto", now "always"': [*words, "--detect", "always"],
    }
    for change, changed in changes.items():
        with pytest.raises(UserError, match=r"holds a result of other settings \(.*\); .*--fresh") as caught:
            job.main(changed)
        assert change in str(caught.value)
    assert {path.name: path.read_bytes() for path in scored.iterdir()} == before
    (scored / "diary.txt").write_text("mine")
    for arguments in (words, [*words, "--fresh"]):
        with pytest.raises(UserError, match=r"holds diary.txt, which ageray score did not write"):
            job.main(arguments)
    (scored / "diary.txt").unlink()


def test_an_interrupted_run_goes_on_and_leaves_the_earlier_result_until_then(
    photos: Path, model: str, ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, draft = tmp_path / "out", tmp_path / "out.unfinished"
    job.main(
        [
            str(photos / "nobody.png"),
            "--out",
            str(out),
            "--model",
            model,
            "scale.progress=false",
            "scale.engine=local",
        ]
    )
    assert json.loads((out / "_summary.json").read_text())["errors"] == {"no face found": 1}
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run, "score_report", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run.score(str(photos / "more"), str(out), model, SCALE, fresh=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    left = json.loads((draft / "progress.json").read_text())
    assert (left["state"], left["done"], left["total"]) == ("interrupted", 3, 3)
    with pytest.raises(UserError, match=r"unfinished was begun otherwise \(posterior: false, now true\)"):
        run.score(str(photos / "more"), str(out), model, SCALE, posterior=True)
    monkeypatch.setattr(pipeline, "detect_faces", lambda *_: pytest.fail("every photo is done"))
    summary = run.score(str(photos / "more"), str(out), model, SCALE)
    assert (summary["images"], summary["errors"]) == (3, {"cannot decode": 1})
    assert summary["seconds"] >= left["seconds"]
    assert table(out).num_rows == summary["faces"] + 1
    assert not draft.exists()


def test_face_shards_keep_their_keys_and_landmarks(model: str, tmp_path: Path) -> None:
    """With Ray the rows are equal (tests/score/test_local.py)."""
    synthetic_faces.write_faces_table(tmp_path / "shards", 7, shards=2)
    summary = run.score(str(tmp_path / "shards"), str(tmp_path / "out"), model, LOCAL)
    assert (summary["images"], summary["faces"], summary["errors"]) == (7, 7, {})
    shards = pa.concat_tables(
        [pq.read_table(path) for path in sorted((tmp_path / "shards").iterdir())]
    ).sort_by("key")
    rows = table(tmp_path / "out")
    assert rows.column("key").to_pylist() == shards.column("key").to_pylist()
    assert rows.column("landmarks").to_pylist() == shards.column("landmarks").to_pylist()
    assert rows.column("detection").null_count == 7
    assert set(rows.column("image").to_pylist()) == {str(path) for path in (tmp_path / "shards").iterdir()}
    digest = results.digest_of(rows)
    assert len(digest.drawn) == 7
    pictures = dict(zip(shards.column("key").to_pylist(), shards.column("image").to_pylist(), strict=True))
    assert {photo.key: content for photo, content in results.contents(digest.drawn)} == pictures


def test_paths_that_cannot_be_read_are_listed(photos: Path, tmp_path: Path) -> None:
    rows = find(listed(photos / "photo-00000.jpg", tmp_path / "gone.jpg", "")).to_pylist()
    assert [row["error"] for row in rows if row["image"] == str(tmp_path / "gone.jpg")] == [
        "cannot read: not found; check the path or url"
    ]
    assert [row["error"] for row in rows if row["image"] == ""] == ["cannot read: no path is given"]


# --- the stages, bare and in a dataset -----------------------------------------------------------


def test_stages_give_the_same_bare_and_in_a_dataset(photos: Path, model: str, ray_local: None) -> None:
    dataset = labelled(photos, 2)
    faces = pipeline.detect_faces(dataset, 2, ALIGN, DETECT, "auto").materialize()
    bare = find(pa.concat_tables(Inputs.open(str(photos)).uris()))
    assert bare.schema.equals(DETECTED_SCHEMA)
    rows = _sorted(faces)
    assert rows.select(DETECTED_SCHEMA.names).equals(bare.sort_by("key"))
    first = chunks.first_rows(rows)
    assert sorted(first.column("photo").to_pylist()) == list(range(9))
    assert sum(first.column("siblings").to_pylist()) == rows.num_rows
    aged = pipeline.predict_ages(faces, model, ActorPool(1, 1, 0, 1), 4, posterior=True)
    assert "MapBatches(find_faces)->" not in faces.stats()  # decoding stays out of the model's actors
    rows = _sorted(aged)
    assert chunks.ChunkAssembler().add(rows)[0].num_rows == rows.num_rows
    assert _close(
        rows.drop_columns(chunks.CHUNK_OF_ROW_SCHEMA.names),
        AgeFaces(model, threads=1, posterior=True)(bare).sort_by("key"),
    )
    # As on a GPU: tasks decode, the actor detects. tests/stages/test_photos.py compares numbers;
    # here bf16 makes ages of them that differ by a tenth of a year.
    pixels = pipeline.decode_photos(dataset, 2, ALIGN, DETECT, "auto")
    pool = ActorPool(1, 1, 0, 1)
    others = _sorted(pipeline.age_photos(pixels, model, pool, 4, posterior=True, detect=DETECT))
    assert others.schema.equals(rows.schema)
    for name in ("key", "image", "face", "error", *chunks.CHUNK_OF_ROW_SCHEMA.names):
        assert others.column(name).equals(rows.column(name)), name
    np.testing.assert_allclose(*(each.column("age").drop_null() for each in (others, rows)), atol=0.5)


@pytest.mark.parametrize(
    ("scale", "search", "shards", "stages"),
    [
        ({}, "auto", False, ["decode_photos", "age_photos"]),
        ({}, "auto", True, ["detect_faces", "predict_ages"]),
        ({}, "always", True, ["decode_photos", "age_photos"]),
        ({"detect": "gpu"}, "auto", True, ["decode_photos", "age_photos"]),
        ({"detect": "cpu"}, "auto", False, ["detect_faces", "predict_ages"]),
        ({"detect": "cpu"}, "always", True, ["detect_faces", "predict_ages"]),
        ({"gpu": False}, "auto", False, ["detect_faces", "predict_ages"]),
        ({}, "never", True, ["detect_faces", "predict_ages"]),
    ],
)
def test_faces_are_found_where_the_model_is_if_it_has_a_gpu(
    scale: dict[str, Any],
    search: detect.Search,
    shards: bool,
    stages: list[str],
    photos: Path,
    model: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a cluster of one machine with 16 CPUs and a GPU."""
    monkeypatch.setattr(cluster, "connect", lambda scale: None)
    for module in (cluster, cluster.actors.cluster):
        monkeypatch.setattr(module, "nodes", lambda: [{"CPU": 16.0, "GPU": 1.0}])
    calls = []
    for name in ("read_photos", "detect_faces", "decode_photos", "predict_ages", "age_photos"):
        monkeypatch.setattr(pipeline, name, lambda *_, name=name: calls.append(name) or name)
    monkeypatch.setattr(pipeline, "results", lambda *_, **__: iter(()))
    inputs = Inputs.open(str(photos))
    if shards:
        inputs = replace(inputs, kind="face shards")
    task = run.Task(
        inputs, read.scan(Inputs.open(str(photos))), model, bundle.load(model), DETECT, search, False
    )
    engine = run._ray_engine(task, Scale(**scale))
    list(engine.results(ScoreCheckpoint(ScoreFiles(str(photos / "none")))))
    assert calls == ["read_photos", *stages]
    assert ("with the detector and 4 CPUs" in engine.description) == (stages[0] == "decode_photos")


def test_a_long_list_is_read_from_its_file(
    photos: Path, ray_local: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rows() -> pa.Table:
        inputs = Inputs.open(str(photos))
        summary = read.scan(inputs)  # the file goes with it
        dataset = pipeline.read_photos(inputs, summary, 4, ScoreCheckpoint(ScoreFiles(str(photos / "none"))))
        assert dataset is not None
        blocks = list(dataset.iter_batches(batch_size=None, batch_format="pyarrow"))
        return pa.concat_tables(blocks).sort_by("image")

    short = rows()
    monkeypatch.setattr(places, "_IN_MEMORY", 0)
    assert rows().equals(short)
    assert short.num_rows == 9


def test_many_rows_are_written_by_tasks(
    photos: Path, model: str, ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same table, whether the driver writes the pieces or tasks of the cluster do."""
    monkeypatch.setattr(chunks, "SIZE", 4)
    run.score(str(photos), str(tmp_path / "driver"), model, SCALE)
    monkeypatch.setattr(pipeline, "_GROUP_ROWS", 1)
    monkeypatch.setattr(pipeline, "_PIECE_SECONDS", 0.0)
    monkeypatch.setattr(ScoreCheckpoint, "add", lambda *_: pytest.fail("the driver wrote rows"))
    run.score(str(photos), str(tmp_path / "tasks"), model, SCALE)
    assert _close(table(tmp_path / "tasks"), table(tmp_path / "driver"))


def test_a_task_that_does_not_see_the_folder_gives_its_rows_back(tmp_path: Path) -> None:
    here, elsewhere = ScoreFiles(str(tmp_path / "out")), ScoreFiles(str(tmp_path / "elsewhere"))
    ScoreCheckpoint(here).open({"model": "one"})
    rows = labelled_rows(3)
    piece, rest = pipeline._write_piece(here, rows.slice(0, 2), rows.slice(2))
    assert piece is not None
    assert rest.num_rows == 0
    assert pipeline._write_piece(elsewhere, rows) == (None, rows)
    index = PieceIndex()
    index.add(piece)
    [part] = plan_parts(index)
    (tmp_path / "result").mkdir()
    target = ScoreFiles(str(tmp_path / "result"))
    assert pipeline._write_part(part, elsewhere, target, schema.SCORES) is None
    written = pipeline._write_part(part, here, target, schema.SCORES)
    assert written is not None
    assert (written.digest.images, written.errors.num_rows) == (3, 0)
    assert pq.read_table(target.part(0)).num_rows == 3


def labelled_rows(count: int) -> pa.Table:
    """A chunk of photos with a face each, as it comes from the pipeline."""
    uris = pa.table({"image": [f"{number}.jpg" for number in range(count)]})
    [rows] = chunks.cut(uris, 0, ())
    rows = rows.append_column("face", pa.array([0] * count, pa.int16()))
    rows = rows.append_column("key", rows.column("image"))
    rows = rows.append_column("siblings", pa.array([1] * count, pa.int32()))
    for field in schema.SCORES:
        if field.name not in rows.column_names:
            rows = rows.append_column(
                field, pa.array([30.0 if field.name == "age" else None] * count, field.type)
            )
    return rows


def labelled(photos: Path, batch: int) -> Any:
    inputs = Inputs.open(str(photos))
    checkpoint = ScoreCheckpoint(ScoreFiles(str(photos / "none")))
    dataset = pipeline.read_photos(inputs, read.scan(inputs), batch, checkpoint)
    assert dataset is not None
    return dataset


def _sorted(dataset: Any) -> pa.Table:
    return pa.concat_tables(list(dataset.iter_batches(batch_size=None, batch_format="pyarrow"))).sort_by(
        "key"
    )


def _close(one: pa.Table, other: pa.Table) -> bool:
    """Equal, but for the rounding of the model's answers, which differs between batch sizes."""
    answers = ["age", "age_low", "age_high", "quality", "unusual", "over_18", "over_25"]
    same = [name for name in one.column_names if name not in (*answers, "posterior")]
    if not one.select(same).equals(other.select(same)):
        return False
    for name in answers:
        values = [np.asarray(table.column(name).drop_null()) for table in (one, other)]
        if not np.allclose(*values, atol=1e-3):
            return False
    return True


def test_photo_that_kills_its_process_is_reported(photos: Path, ray_local: None, tmp_path: Path) -> None:
    import ray.data

    fatal = tmp_path / "fatal.jpg"
    fatal.write_bytes(b"fatal")
    files = [photos / "photo-00000.jpg", fatal, photos / "photo-00002.jpg"]

    def with_a_faulty_decoder(batch: pa.Table) -> pa.Table:
        whole = detect.decode

        def faulty(data: bytes, max_side: int | None = None) -> Any:
            if data == b"fatal":
                os._exit(1)
            return whole(data, max_side)

        detect.decode = faulty
        try:
            return find_faces(batch, ALIGN, DETECT, "auto", tmp_path.name)
        finally:
            detect.decode = whole

    dataset = ray.data.from_arrow(listed(*files)).map_batches(
        with_a_faulty_decoder, batch_size=3, batch_format="pyarrow"
    )
    rows = _sorted(dataset).to_pylist()
    assert {row["image"] for row in rows if row["error"] is None} == {str(files[0]), str(files[2])}
    assert [row["error"] for row in rows if row["image"] == str(fatal)] == [
        "cannot decode: the process died on it twice"
    ]


def test_model_actor_that_dies_starts_again(
    photos: Path, model: str, ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    died = tmp_path / "died"

    class Frail(AgeFaces):
        def __call__(self, rows: pa.Table) -> pa.Table:
            if not died.exists():
                died.touch()
                os._exit(1)
            return super().__call__(rows)

    monkeypatch.setattr(pipeline, "AgeFaces", Frail)
    faces = pipeline.detect_faces(labelled(photos, 4), 4, ALIGN, DETECT, "auto")
    rows = _sorted(pipeline.predict_ages(faces, model, ActorPool(1, 1, 0, 1), 4, posterior=False))
    assert died.exists()
    assert rows.column("age").drop_null().length() == rows.column("error").null_count > 0
    assert len(set(rows.column("image").to_pylist())) == 9


class _Options:
    """A dataset that only notes how its rows are to be mapped."""

    def map_batches(self, _: object, **options: Any) -> dict[str, Any]:
        return options


@pytest.mark.parametrize("gpus", [0, 1])
def test_an_actor_on_a_gpu_has_two_batches_under_way(gpus: int) -> None:
    faces: Any = _Options()
    options: Any = pipeline.predict_ages(faces, "zoo:default", ActorPool(1, 1, gpus, 1), 4, False, False)
    compute = options["compute"]
    assert compute.max_concurrent_calls_per_actor == 1 + gpus
    assert compute.enable_true_multi_threading == bool(gpus)
    assert options["fn_constructor_kwargs"]["cuda_graphs"] is False


@pytest.mark.timeout(120)  # without a limit of its own Ray Data goes on for ever
@pytest.mark.parametrize("stage", ["detect_faces", "predict_ages"])
def test_a_stage_whose_process_always_dies_ends(
    stage: str, photos: Path, model: str, ray_local: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(batch: pa.Table, **_: Any) -> pa.Table:
        os._exit(1)

    class Dies(AgeFaces):
        def __call__(self, rows: pa.Table) -> pa.Table:
            os._exit(1)

    monkeypatch.setattr(cluster, "LOSSES", 1)
    if stage == "detect_faces":
        monkeypatch.setattr(pipeline, "face_batches", die)
    monkeypatch.setattr(pipeline, "AgeFaces", Dies)
    faces = pipeline.detect_faces(labelled(photos, 4), 4, ALIGN, DETECT, "auto")
    ages = pipeline.predict_ages(faces, model, ActorPool(1, 1, 0, 1), 4, posterior=False)
    with pytest.raises(Exception, match="died") as caught:
        ages.materialize()
    assert cli.is_lost_process(caught.value)


def test_faces_are_numbered_from_the_left_in_upright_coordinates(photos: Path) -> None:
    upright, turned = (
        find(listed(photos / name)).to_pylist() for name in ("photo-00000.jpg", "more/turned.jpeg")
    )
    assert len(upright) == len(turned) >= 1
    for rows in (upright, turned):
        centres = [row["box"][0] + row["box"][2] for row in rows]
        assert centres == sorted(centres)
        assert [row["key"] for row in rows] == [f"{rows[0]['image']}#{number}" for number in range(len(rows))]
    np.testing.assert_allclose([row["box"] for row in turned], [row["box"] for row in upright], atol=3)
    truth = synthetic_faces.draw_photo(0)
    assert len(upright) == len(truth.boxes)
    eyes = sorted(points[:2].mean(0).tolist() for points in truth.points)
    landmarks = sorted(np.reshape(row["landmarks"], (5, 2))[:2].mean(0).tolist() for row in turned)
    np.testing.assert_allclose(landmarks, eyes, atol=6)


def test_canvases_hold_the_face(photos: Path) -> None:
    row = find(listed(photos / "photo-00000.jpg")).to_pylist()[0]
    side = round((len(row["canvas"]) / 3) ** 0.5)
    canvas = np.frombuffer(row["canvas"], np.uint8).reshape(side, side, 3)
    x, y = np.reshape(row["canvas_points"], (5, 2))[2]
    whole = decode(Path(row["image"]).read_bytes()).pixels
    at_x, at_y = np.reshape(row["landmarks"], (5, 2))[2]
    np.testing.assert_allclose(_around(canvas, x, y), _around(whole, at_x, at_y), atol=12)


def _around(pixels: np.ndarray, x: float, y: float) -> np.ndarray:
    return pixels[round(y) - 3 : round(y) + 4, round(x) - 3 : round(x) + 4].mean((0, 1))


def shard_rows(path: str) -> pa.Table:
    return tables.photos(path, 0, 0, tables.columns(path, pq.read_schema(path)))


@pytest.mark.parametrize(
    ("search", "landmarks", "error", "detected"),
    [
        ("auto", True, None, False),
        ("auto", False, None, True),
        ("always", True, None, True),
        ("never", True, None, False),
        ("never", False, "no landmarks", False),
    ],
)
def test_where_the_detector_runs(
    search: detect.Search, landmarks: bool, error: str | None, detected: bool, tmp_path: Path
) -> None:
    [path] = synthetic_faces.write_faces_table(tmp_path, 2, landmarks=landmarks)
    shard = shard_rows(path)
    for row, key in zip(find(shard, search=search).to_pylist(), shard.column("key").to_pylist(), strict=True):
        assert (row["key"], row["image"], row["error"]) == (key, path, error)
        assert (row["detection"] is not None) is detected


def test_alignments_that_need_less_or_more(photos: Path, tmp_path: Path) -> None:
    whole = find(listed(photos / "nobody.png"), Align(mode="none", size=64)).to_pylist()
    assert [(row["face"], row["box"], row["error"]) for row in whole] == [(0, None, None)]
    [path] = synthetic_faces.write_faces_table(tmp_path, 1)
    shard = shard_rows(path)
    index = shard.column_names.index("box")
    boxed = find(
        shard.set_column(index, "box", pa.nulls(1, schema.BOX)), Align(mode="box", size=64)
    ).to_pylist()
    assert boxed[0]["detection"] is not None  # landmarks are no box, so the detector had to look
    collapsed = shard.set_column(index - 1, "landmarks", pa.array([[5.0] * 10], schema.POINTS))
    assert find(collapsed).column("error").to_pylist()[0].startswith("cannot crop: ")


def test_a_face_that_cannot_be_aligned_costs_the_others_nothing(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = np.array([[40, 40], [60, 40], [50, 52], [42, 64], [58, 64]], np.float32)
    box = np.array([20, 10, 80, 90], np.float32)
    seen = [Face(box, whole, 0.9), Face(box, np.zeros((5, 2), np.float32), 0.8), Face(box, whole + 3, 0.7)]
    monkeypatch.setattr(detect, "in_order", lambda *_: seen)
    rows = find(listed(photos / "nobody.png")).to_pylist()
    assert [row["face"] for row in rows] == [0, 1, 2]
    assert [row["error"] is None for row in rows] == [True, False, True]
    assert rows[1]["error"].startswith("cannot crop: ")
    assert rows[1]["key"].endswith("nobody.png#1")


def test_batch_without_a_single_face(model: str, photos: Path) -> None:
    rows = AgeFaces(model, threads=1)(find(listed(photos / "nobody.png", photos / "empty.jpg")))
    assert rows.schema.equals(schema.SCORES)
    assert rows.column("age").null_count == rows.num_rows == 2


def test_broken_weights_are_refused(tmp_path: Path, photos: Path) -> None:
    network = build(Experiment().model, seed=0)
    with torch.no_grad():
        network.head.bias.fill_(float("nan"))
    bundle.save(str(tmp_path / "broken"), network, Experiment(align=ALIGN), {})
    with pytest.raises(UserError, match="gives ages that are not numbers"):
        AgeFaces(str(tmp_path / "broken"), threads=1)(find(listed(photos / "photo-00000.jpg")))


# --- mistakes ------------------------------------------------------------------------------------


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def _other_table() -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"photo": ["a.jpg"], "age": [3]}), file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing", None, "not found; check the path"),
        ("folder/readme.txt", b"", "holds neither photos .* nor tables"),
        ("photos.tgz", b"", "unpack it and give the folder"),
        ("photos.tar", b"", "cut short: the archive has no end mark"),
        ("photos.doc", b"", "give one of these"),
        ("list.csv", b"img,age\na.jpg,3\n", "needs a column 'image' .*; it has img, age; rename 'img'"),
        ("list.csv", b"", "needs a column 'image' .*; it has none"),
        ("list.csv", b"image\n", "names no photo"),
        ("list.csv", b"image\na,b\n", "cannot be read"),
        ("list.parquet", b"nonsense", "cannot be read as Parquet"),
        ("list.parquet", _other_table(), "needs a column 'image' .*; it has photo, age"),
        ("shards/part.parquet", _other_table(), "needs a column 'image' .*; it has photo, age"),
    ],
)
def test_input_that_is_none(
    name: str, content: bytes | None, message: str, model: str, tmp_path: Path
) -> None:
    if content is not None:
        write(tmp_path / name, content)
    location = tmp_path / name.split("/")[0]
    with pytest.raises(UserError, match=message) as caught:
        run.score(str(location), str(tmp_path / "out"), model, SCALE)
    assert "\n" not in str(caught.value)
    assert str(location) in str(caught.value)
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "o"], "INPUT: give one or several, or --demo; got none"),
        (["a", "--demo", "--out", "o"], "INPUT: give one or several, or --demo; got a"),
        (
            ["a", "--out", "o", "align.size=32"],
            "align.size=32: only scale.*, storage.* and data.detect.* can be set here",
        ),
        (["a", "--out", "o", "scale.score_wrokers=2"], "score_workers"),
        (["a", "--out", "o", "--detect", "never"], "a: not found"),
    ],
)
def test_mistakes_on_the_command_line(
    words: Sequence[str], message: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message.replace("*", r"\*")):
        job.main([*words, "--model", model])


def test_never_needs_landmarks_of_the_input(photos: Path, model: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--detect never: .* has no landmarks of its own"):
        run.score(str(photos), str(tmp_path / "out"), model, SCALE, search="never")


def test_exit_code_and_single_line_for_a_mistake(model: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ageray", "score", "nowhere", "--out", "out", "--model", model]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "error: nowhere: not found; check the path or url\n"


@pytest.fixture(scope="module")
def store() -> Iterator[tuple[str, Any]]:
    """The address of an S3-compatible server on loopback, and a client of it; keys in the
    environment, a bucket `faces`.
    """
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
        }.items():
            patch.setenv(name, value)
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
        client.create_bucket(Bucket="faces")
        s3fs.S3FileSystem.clear_instance_cache()
        yield f"http://{host}:{port}", client
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def test_tar_model_and_result_on_a_store(
    store: tuple[str, Any], photos: Path, model: str, tmp_path: Path
) -> None:
    address, client = store
    names = sorted(file.relative_to(photos).as_posix() for file in photos.rglob("*.jpg"))
    with tarfile.open(tmp_path / "photos.tar", "w") as archive:
        for name in names:
            archive.add(photos / name, name)
    client.upload_file(str(tmp_path / "photos.tar"), "faces", "in/photos.tar")
    for file in Path(model).iterdir():
        client.upload_file(str(file), "faces", f"model/{file.name}")
    command = [
        sys.executable,
        "-m",
        "ageray",
        "score",
        "s3://faces/in",
        "--out",
        "s3://faces/scores",
        "--model",
        "s3://faces/model",
    ]
    settings = [
        f"storage.endpoint_url={address}",
        "scale.threads=1",
        "scale.object_store_mib=256",
        "scale.progress=false",
    ]
    ended = subprocess.run([*command, *settings], cwd=tmp_path, timeout=500, check=False)
    assert ended.returncode == 0
    keys = [
        item["Key"]
        for item in client.list_objects_v2(Bucket="faces")["Contents"]
        if item["Key"].startswith("scores")
    ]
    assert keys == [
        "scores/_report.html",
        "scores/_summary.json",
        "scores/errors.parquet",
        "scores/part-00000.parquet",
    ]
    parts = [io.BytesIO(client.get_object(Bucket="faces", Key=key)["Body"].read()) for key in keys[2:]]
    rows = pa.concat_tables([pq.read_table(part) for part in parts]).to_pylist()
    assert {row["image"] for row in rows} == {f"s3://faces/in/photos.tar/{name}" for name in names}
    assert sum(row["age"] is not None for row in rows) > 0
    page = client.get_object(Bucket="faces", Key="scores/_report.html")["Body"].read().decode()
    assert page.count("data:image/jpeg") == 4


def test_mistakes_with_a_store(
    store: tuple[str, Any], photos: Path, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, client = store
    client.put_object(Bucket="faces", Key="one/photo.jpg", Body=(photos / "photo-00000.jpg").read_bytes())

    def message(inputs: str, out: str) -> str:
        s3fs.S3FileSystem.clear_instance_cache()
        with pytest.raises(UserError) as caught:
            run.score(inputs, out, model, SCALE)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    out = tmp_path / "out"
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    assert find(listed("s3://faces/one/photo.jpg")).column("error").null_count > 0
    assert message("s3://missing/photos", str(out)) == "s3://missing/photos: not found; check the path or url"
    assert message("s3://faces/one", "s3://missing/scores").startswith(
        "--out s3://missing/scores: cannot be written ("
    )
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "credentials" in message("s3://faces/one", str(out))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert "s3://faces/one: the store does not answer" in message("s3://faces/one", str(out))
    s3fs.S3FileSystem.clear_instance_cache()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(photos: Path, model: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"file/out.*: Not a directory; check"):
        run.score(str(photos / "nobody.png"), str(tmp_path / "file" / "out"), model, SCALE)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_demo_photos(tmp_path: Path) -> None:
    folder = draw_demo(str(tmp_path / "demo"))
    [uris] = Inputs.open(folder).uris()
    assert uris.num_rows >= 8
    assert find(uris.slice(0, 2)).column("error").null_count > 0
    with pytest.raises(UserError, match="local folders only"):
        draw_demo("s3://bucket/demo")


def test_file_name_that_is_not_text(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9.jpg"
    Path(os.fsdecode(name)).write_bytes(b"")
    [uris] = Inputs.open(str(tmp_path)).uris()
    [row] = find(uris).to_pylist()
    assert row["error"] == "cannot read: not found; check the path or url"


class _Photos(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing."""


def test_photos_whose_server_was_away_are_scored_by_the_same_command(
    photos: Path, model: str, ray_local: None, tmp_path: Path
) -> None:
    """The photos of this machine are scored at once and not again; Ray goes on where the pool of
    this machine stopped.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = ("127.0.0.1", free.getsockname()[1])
    name = "photo-00000.jpg"
    remote = f"http://127.0.0.1:{address[1]}/{name}"
    manifest = tmp_path / "m.csv"
    manifest.write_text(f"image\n{photos / name}\n{remote}\n{remote}\n")
    out = str(tmp_path / "out")
    with pytest.raises(StoreError, match=r"2 photos could not be read.*same command goes on.*--finish"):
        run.score(str(manifest), out, model, LOCAL)
    assert not Path(out).exists()
    handler = partial(_Photos, directory=str(photos))
    with http.server.ThreadingHTTPServer(address, handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        summary = run.score(str(manifest), out, model, SCALE)
        server.shutdown()
    assert (summary["images"], summary["errors"]) == (3, {})
    ages = table(Path(out)).to_pylist()
    by_image: dict[str, list[float]] = {}
    for row in ages:
        by_image.setdefault(row["image"], []).append(round(row["age"], 3))
    assert sorted(by_image[remote]) == sorted(by_image[str(photos / name)] * 2)
    summary = run.score(str(manifest), str(tmp_path / "other"), model, LOCAL, finish=True)
    assert summary["errors"] == {"unavailable": 2}
