"""The two stages of scoring, bare and in a dataset, and what happens when their processes die."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ageray import bundle, cluster, schema
from ageray.cluster.actors import ActorPool
from ageray.commands import cli
from ageray.errors import UserError
from ageray.experiment import Align, Experiment, Scale
from ageray.faces.detect import Face
from ageray.faces.images import decode
from ageray.models.build import build
from ageray.score import chunks, pipeline, places, read, run, tables
from ageray.score.checkpoint import ScoreCheckpoint
from ageray.score.files import ScoreFiles
from ageray.score.inputs import Inputs
from ageray.score.pieces import PieceIndex
from ageray.score.write import plan_parts
from ageray.stages import detect
from ageray.stages.columns import DETECTED_SCHEMA
from ageray.stages.detect import find_faces
from ageray.stages.predict import AgeFaces
from ageray.synthetic import faces as synthetic_faces
from tests.score.small import ALIGN, DETECT, SCALE, find, listed, table


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
