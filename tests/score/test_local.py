"""The pool of this machine gives the rows that Ray gives, and goes on where Ray stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ageray import bundle
from ageray.experiment import Scale
from ageray.machine.pool import Outcome, Pool
from ageray.score import chunks, local, run
from ageray.score.checkpoint import ScoreCheckpoint
from ageray.score.files import ScoreFiles
from ageray.synthetic import faces
from tests.score import frail

ROOT = Path(__file__).resolve().parents[2]
RAY, LOCAL = (Scale(engine=engine, decode_batch=4, threads=1, progress=False) for engine in ("ray", "local"))
MODEL = "zoo:default"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four photos with faces, and two without."""
    folder = tmp_path_factory.mktemp("photos")
    faces.write_photos(folder, 4)
    (folder / "text.jpg").write_text("no photo")
    Image.new("RGB", (320, 240), (70, 120, 70)).save(folder / "nobody.png")
    return folder


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with local.start() as pool:
        yield pool


@pytest.fixture
def inputs(photos: Path, tmp_path: Path) -> Iterator[Path]:
    """A folder with one input of each kind."""
    with tarfile.open(tmp_path / "some.tar", "w") as archive:
        for file in sorted(photos.iterdir()):
            archive.add(file, file.name)
    faces.write_faces_table(tmp_path / "shards", 5)
    names = "\n".join(str(file) for file in sorted(photos.iterdir()))
    (tmp_path / "list.csv").write_text(f"image\n{names}\n{tmp_path / 'gone.jpg'}\n")
    content = [file.read_bytes() for file in sorted(photos.glob("photo*"))]
    pq.write_table(pa.table({"image": content, "key": ["a", "b", "c", "d"]}), tmp_path / "some.parquet")
    return tmp_path


def rows_of(location: str, scale: Scale, pool: Pool | None, out: str) -> pa.Table:
    """The rows by which an engine answers, by key, with the columns of their chunks."""
    task = run._prepare([location], MODEL, None, "auto", posterior=True, shard=None)
    tables = run._engine(task, scale, pool).results(ScoreCheckpoint(ScoreFiles(out)))
    whole = chunks.ChunkAssembler()
    complete = [chunk for table in tables for chunk in whole.add(table)]
    assert not whole.incomplete()
    return pa.concat_tables(complete).sort_by("key")


def check_equal(rows: pa.Table, others: pa.Table) -> None:
    """Everything but the ages is equal, and ages within 0.001 years: batches differ in size."""
    assert rows.schema.equals(others.schema)
    for name in rows.column_names:
        values, expected = rows.column(name).to_pylist(), others.column(name).to_pylist()
        if rows.schema.field(name).type in (pa.float32(), pa.float64()):
            assert values == [number and pytest.approx(number, abs=1e-3) for number in expected], name
        elif name == "posterior":
            assert [len(each or []) for each in values] == [len(each or []) for each in expected]
        else:
            assert values == expected, name


@pytest.mark.parametrize("kind", ["photos", "shards"])
def test_both_engines_give_the_same_rows(
    kind: str, photos: Path, inputs: Path, pool: Pool, ray_local: None, tmp_path: Path
) -> None:
    location = str(photos if kind == "photos" else inputs / kind)
    rows = rows_of(location, LOCAL, pool, str(tmp_path / "out"))
    check_equal(rows, rows_of(location, RAY, None, str(tmp_path / "out")))
    assert rows.column("age").drop_null().length() >= 4


@pytest.mark.parametrize(("kind", "others"), [("some.tar", 2), ("list.csv", 3), ("some.parquet", 0)])
def test_containers_give_the_rows_of_their_photos(
    kind: str, others: int, photos: Path, inputs: Path, pool: Pool, tmp_path: Path
) -> None:
    """others: rows without a face."""
    expected = rows_of(str(photos), LOCAL, pool, str(tmp_path / "out"))
    rows = rows_of(str(inputs / kind), LOCAL, pool, str(tmp_path / "out"))
    assert rows.column("error").drop_null().length() == others
    for name in ("face", "box", "age"):
        both = [
            each.filter(each.column("error").is_null()).column(name).to_pylist() for each in (rows, expected)
        ]
        assert both[0] == [value if name != "age" else pytest.approx(value, abs=1e-3) for value in both[1]]


def test_a_photo_that_kills_its_process_becomes_a_row(
    photos: Path, pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("sound.jpg", frail.FATAL, frail.ONCE):
        (tmp_path / name).write_bytes((photos / "photo-00000.jpg").read_bytes())
    monkeypatch.setattr(local, "make_stages", frail.make_stages)
    rows = rows_of(str(tmp_path), LOCAL, pool, str(tmp_path / "out")).to_pylist()
    errors = {(Path(row["image"]).name, row["error"]) for row in rows}
    assert errors == {
        ("sound.jpg", None),
        (frail.ONCE, None),
        (frail.FATAL, "cannot decode: the process died on it twice"),
    }
    assert all((row["age"] is None) == (row["error"] is not None) for row in rows)


def test_a_process_killed_from_outside_changes_no_batch(
    photos: Path, pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tasks are cut again only if a process dies on one twice."""
    engine = run._engine(run._prepare([str(photos)], MODEL, None, "auto", False, None), LOCAL, pool)
    retries: list[tuple[int, int]] = []
    monkeypatch.setattr(pool, "retry", lambda task: retries.append((task[0].num_rows, task[1])))
    four = pa.table({"image": list("abcd")})
    for task, expected in (
        ((four, 0), [(4, 1)]),
        ((four, 1), [(1, 1)] * 4),
        ((four.slice(0, 1), 1), [(1, 2)]),
    ):
        engine.results.__self__._after_death(Outcome(task, None, died=True))  # type: ignore[attr-defined]
        assert retries == expected
        retries.clear()


def test_settings_of_the_pool(pool: Pool, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "usable_cpus", lambda: 3)
    task = run._prepare([str(photos)], MODEL, None, "auto", posterior=False, shard=None)
    for scale, processes, text in (
        (Scale(engine="local"), 3, "3 processes on a core each, 1 photo a task"),
        (Scale(engine="local", local_cpus=2), 2, "2 processes on a core each, 1 photo a task"),
        (Scale(engine="local", score_workers=1), 1, "1 process on a core, 2 photos a task"),
        (Scale(engine="local", score_workers=9), 6, "6 processes on a core each, 1 photo a task"),
    ):
        computing = run._engine(task, scale, pool)
        assert computing.workers["actors"] == processes
        assert computing.description == text


PROGRAM = """
import sys
from ageray.commands.score import main
main(sys.argv[1:])
print(*(name for name in ("ray", "torch", "kornia", "cv2", "pandas") if name in sys.modules))
"""


def command(*words: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *words, "scale.progress=false"],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_killed_and_finished_by_the_other_engine(
    photos: Path, pool: Pool, ray_local: None, tmp_path: Path
) -> None:
    many, out = tmp_path / "photos", tmp_path / "out"
    many.mkdir()
    for number in range(20):
        for file in photos.glob("photo*"):
            (many / f"{number}-{file.name}").hardlink_to(file)
    job = command(str(many), "--out", str(out), "scale.score_workers=1")
    draft = tmp_path / "out.unfinished"
    until = time.monotonic() + 120
    while not list(draft.glob("pieces/*.parquet")):
        assert job.poll() is None
        assert time.monotonic() < until
        time.sleep(0.02)
    family = psutil.Process(job.pid).children(recursive=True)
    assert len(family) >= 2
    job.send_signal(signal.SIGKILL)
    job.communicate()
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive
    done = json.loads((draft / "progress.json").read_text())
    assert (done["state"], done["total"]) == ("running", 80)
    checkpoint = ScoreCheckpoint(ScoreFiles(str(out)))
    checkpoint.open(checkpoint.plan or {})
    assert 0 < checkpoint.counts.photos < 80
    summary = run.score(str(many), str(out), MODEL, RAY.model_copy(update={"decode_batch": 16}))
    assert summary["images"] == 80
    rows = pa.concat_tables([pq.read_table(file) for file in out.glob("*.parquet")])
    expected = rows_of(str(photos), LOCAL, pool, str(tmp_path / "other"))
    faces_of_four = expected.filter(expected.column("error").is_null()).num_rows
    assert rows.num_rows == len(set(rows.column("key").to_pylist())) == 20 * faces_of_four
    assert rows.column("error").null_count == rows.num_rows


def test_the_command_needs_no_ray(photos: Path, tmp_path: Path) -> None:
    """Its own process needs neither Ray nor a network."""
    out = tmp_path / "out"
    output, _ = command(str(photos), "--out", str(out)).communicate(timeout=300)
    lines = output.splitlines()
    assert lines[-1] == ""  # nothing slow was imported
    assert lines[0] == f"{photos}: 6 photos"
    assert "on a core" in lines[1]
    summary = json.loads((out / "_summary.json").read_text())
    assert (summary["images"], summary["errors"]) == (6, {"cannot decode": 1, "no face found": 1})
    assert (out / "_report.html").exists()
    assert bundle.load(MODEL).identity == summary["model"]["identity"]
