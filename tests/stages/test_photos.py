"""Detector and model in one actor, fed with decoded photos: the rows of the two other stages."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from PIL import Image

from ageray import bundle
from ageray.experiment import Align, Detect, Experiment
from ageray.models.build import build
from ageray.stages import photos as stage
from ageray.stages.attempts import FATAL, Attempts
from ageray.stages.columns import DECODED_SCHEMA, DETECTED_SCHEMA, PHOTO_SCHEMA, Search
from ageray.stages.decode import decoded_batches
from ageray.stages.detect import find_faces
from ageray.stages.photos import AgePhotos
from ageray.stages.predict import AgeFaces
from ageray.synthetic import faces as synthetic_faces

ALIGN, DETECT = Align(size=48), Detect(max_side=320)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    experiment = Experiment.model_validate(
        {
            "model": {"name": "residual_cnn", "width": 0.25},
            "align": ALIGN,
            "train": {"precision": "float32"},
        }
    )
    folder = str(tmp_path_factory.mktemp("model") / "model")
    bundle.save(folder, build(experiment.model, seed=0).eval(), experiment, {})
    return folder


@pytest.fixture
def actor(model: str) -> AgePhotos:
    return AgePhotos(model, DETECT, cutters=2, threads=1, run=None, device="cpu")


def encoded(pixels: np.ndarray[Any, Any], form: str = "JPEG") -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(content, form)
    return content.getvalue()


def drawn(seed: int, width: int, height: int) -> np.ndarray[Any, Any]:
    return synthetic_faces.draw_photo(seed, width, height).pixels


@cache
def rows_of_all_kinds() -> list[dict[str, Any]]:
    """Rows of PHOTO_SCHEMA: photos, faces of shards, and what gives no face."""
    face = synthetic_faces.draw_face(2, 35)
    given = {"landmarks": face.points.ravel().tolist(), "box": face.box.tolist()}
    return [
        {"image": "several.jpg", "content": encoded(drawn(1, 320, 240))},
        {"image": "none.jpg", "problem": "not found; check the path or url"},
        {"image": "shrunk by the decoder.jpg", "content": encoded(drawn(3, 801, 601))},
        {"image": "shrunk here.png", "content": encoded(drawn(0, 450, 350), "PNG")},
        {"image": "whole.png", "content": encoded(drawn(0, 300, 200), "PNG")},
        {
            "image": "turned.jpg",
            "content": encoded(np.rot90(synthetic_faces.draw_face(4, 30, size=240).pixels)),
        },
        {"image": "damaged.jpg", "content": b"\xff\xd8\xff"},
        {"image": "shard", "key": "given", "content": face.jpeg(), **given},
        {"image": "shard", "key": "subject", "content": encoded(drawn(1, 300, 240))},
        {"image": "nobody.jpg", "content": encoded(np.full((90, 120, 3), 90, np.uint8))},
    ]


def table_of(rows: list[dict[str, Any]]) -> pa.Table:
    photos = pa.Table.from_pylist(rows, PHOTO_SCHEMA)
    return photos.append_column("lot", pa.array(np.arange(photos.num_rows) + 7))


def decoded(photos: pa.Table, search: Search = "auto") -> pa.Table:
    return pa.concat_tables(decoded_batches(photos, ALIGN, DETECT, search, None))


@pytest.mark.parametrize("search", ["auto", "always", "never"])
def test_rows_are_those_of_the_stages_on_cpus(actor: AgePhotos, model: str, search: Search) -> None:
    photos = table_of(rows_of_all_kinds())
    faces = find_faces(photos, ALIGN, DETECT, search, None)
    theirs = AgeFaces(model, threads=1, device="cpu")(faces)
    ours = pa.concat_tables(actor(decoded(photos, search)))
    assert ours.schema.equals(theirs.schema)
    for name in ("key", "image", "face", "error", "lot", "siblings"):
        assert ours.column(name).equals(theirs.column(name)), name
    for name, most in {"age": 1e-3, "box": 4e-3, "landmarks": 4e-3, "detection": 1e-5}.items():
        columns = [table.column(name).combine_chunks() for table in (ours, theirs)]
        if name in ("box", "landmarks"):
            columns = [column.flatten() for column in columns]
        np.testing.assert_allclose(*(column.drop_null().to_numpy() for column in columns), rtol=0, atol=most)
        assert columns[0].null_count == columns[1].null_count


def test_canvases_are_equal_in_every_bit(actor: AgePhotos, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = table_of(rows_of_all_kinds())
    tables: list[pa.Table] = []
    monkeypatch.setattr(actor, "_ages", lambda table: tables.append(table) or table)
    list(actor(decoded(photos)))
    faces = find_faces(photos, ALIGN, DETECT, "auto", None)
    canvases = pa.concat_tables(tables).column("canvas").to_pylist()
    assert canvases == faces.column("canvas").to_pylist()
    assert sum(canvas is not None for canvas in canvases) >= 9


def test_a_task_sends_pixels_as_the_detector_sees_them() -> None:
    table = decoded(table_of(rows_of_all_kinds()))
    assert table.schema.names == [*DECODED_SCHEMA.names, "lot", "siblings"]
    rows = {row["key"]: row for row in table.to_pylist()}
    assert rows["shrunk by the decoder.jpg#-1"]["sizes"] == [240, 320, 301, 401, 2, 801, 601, 0, 0, 1]
    assert rows["shrunk here.png#-1"]["sizes"][:4] == [249, 320, 350, 450]
    assert rows["shrunk here.png#-1"]["content"]
    assert rows["whole.png#-1"]["content"] == b""  # all that is needed are the pixels
    assert len(rows["whole.png#-1"]["pixels"]) == 300 * 200 * 3
    assert rows["given"]["pixels"] is None  # its face is known: the canvas is cut by the task
    assert rows["given"]["canvas"]
    assert rows["subject"]["subject_key"] == "subject"


def test_no_photos(actor: AgePhotos, model: str) -> None:
    [table] = actor(pa.concat_tables([DECODED_SCHEMA.empty_table()]))
    assert table.schema.equals(AgeFaces(model, threads=1)(DETECTED_SCHEMA.empty_table()).schema)
    assert table.num_rows == 0


def test_a_batch_of_faces_is_not_exceeded(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    actor = AgePhotos(model, DETECT, cutters=1, threads=1, batch=2, device="cpu")
    photos = table_of(rows_of_all_kinds())
    sizes = [table.num_rows for table in actor(decoded(photos))]
    assert max(sizes) == 2
    assert sum(sizes) == find_faces(photos, ALIGN, DETECT, "auto", None).num_rows


def test_crowds_do_not_fill_memory(actor: AgePhotos, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for the canvas of one face, those of two photos are in memory at once, never more.

    A photo's canvases are counted from the moment they are cut until the model has their ages.
    """
    photos = table_of(rows_of_all_kinds())
    expected = pa.concat_tables(actor(decoded(photos)))
    monkeypatch.setattr(stage, "_CANVAS_BYTES", 1, raising=False)
    narrow = AgePhotos(model, DETECT, cutters=1, threads=1, device="cpu")
    cut, ages, waiting, counts = stage.rows_of_faces, narrow._ages, set[str](), list[int]()

    def counts_cut(*arguments: Any) -> list[dict[str, Any]]:
        rows = cut(*arguments)
        waiting.update(row["key"] for row in rows if row.get("canvas"))
        counts.append(len(waiting))
        return rows

    def counts_aged(table: pa.Table) -> pa.Table:
        aged = ages(table)
        waiting.difference_update(table["key"].to_pylist())
        return aged

    monkeypatch.setattr(stage, "rows_of_faces", counts_cut)
    monkeypatch.setattr(narrow, "_ages", counts_aged)
    table = pa.concat_tables(narrow(decoded(photos)))
    for name in ("key", "error", "lot", "siblings"):
        assert table.column(name).equals(expected.column(name)), name
    searched = table.filter(pc.is_valid(table["detection"]))
    faces = sorted(Counter(searched["image"].to_pylist()).values())
    assert sum(faces) > sum(faces[-2:]) >= max(counts) > 0
    assert not waiting


def test_canvases_are_cut_while_the_next_photos_are_searched(
    actor: AgePhotos, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first photo's canvas waits for the search of the second, which would never come if one
    followed the other."""
    monkeypatch.setattr(stage, "_PHOTOS_AT_ONCE", 1)
    second, cut, detect, calls = Event(), stage.rows_of_faces, actor._detector.detect, []

    def waits(*arguments: Any) -> list[dict[str, Any]]:
        assert second.wait(30)
        return cut(*arguments)

    def detects(pictures: Any) -> Any:
        calls.append(len(pictures))
        if len(calls) == 2:
            second.set()
        return detect(pictures)

    monkeypatch.setattr(stage, "rows_of_faces", waits)
    monkeypatch.setattr(actor._detector, "detect", detects)
    rows = [rows_of_all_kinds()[number] for number in (0, 4)]
    ages = pa.concat_tables(actor(decoded(table_of(rows)))).column("age")
    assert ages.null_count == 0
    assert calls == [1, 1]


# --- photos that kill the process -----------------------------------------------------------------


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    yield "run"
    assert list(tmp_path.iterdir()) == []  # nothing is left behind


class _Death(BaseException):
    """Stands for the end of a process: nothing after it runs."""


def test_a_photo_that_kills_an_actor_is_given_up_after_two_more_deaths(
    actor: AgePhotos, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, cut = rows_of_all_kinds(), stage.rows_of_faces

    def dies(item: Any, *arguments: Any) -> list[dict[str, Any]]:
        if item.uri == "whole.png":
            raise _Death
        return cut(item, *arguments)

    monkeypatch.setattr(stage, "rows_of_faces", dies)
    monkeypatch.setattr(actor, "_run", run)
    table = decoded(table_of(rows))
    for _ in range(3):  # the first one cuts several at once, so nobody knows which it was
        with pytest.raises(_Death):
            list(actor(table))
    errors = {row["image"]: row["error"] for row in pa.concat_tables(actor(table)).to_pylist()}
    assert errors["whole.png"] == FATAL
    assert [errors[name] for name in ("several.jpg", "turned.jpg", "shrunk here.png")] == [None] * 3


def _dies_on_the_second(photos: pa.Table, run: str) -> None:
    with Attempts(photos, run) as attempts:
        assert attempts.reach(0)
        assert attempts.reach(1)
        raise _Death


def test_attempts_tell_batches_and_stages_apart(run: str) -> None:
    one, other = (pa.table({"image": ["a", "b"], "lot": [lot, lot]}) for lot in (1, 2))
    for _ in range(2):
        with pytest.raises(_Death):
            _dies_on_the_second(one, run)
    assert not Attempts(other, run).again
    assert not Attempts(one, run, "-faces").again
    with Attempts(one, run) as attempts:
        assert attempts.again
        assert attempts.reach(0)
        assert not attempts.reach(1)
    assert not Attempts(one, run).again
