"""Every fold of a protocol on a real Ray: each face tested once, the same however many run at once,
and going on after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
import yaml

from ageray import bundle, config
from ageray.data import protocols, splits
from ageray.data.labelled_faces import labelled_faces
from ageray.data.stream import decode_rows
from ageray.errors import UserError
from ageray.evaluate import fold_tasks, pretraining
from ageray.evaluate.folds import run_folds
from ageray.evaluate.predictions import LEVELS
from ageray.experiment import Augment, Experiment, Scale
from ageray.predictor import Predictor
from ageray.storage import lease
from ageray.synthetic import faces as synthetic_faces
from ageray.train import plan, run
from ageray.train.in_memory import face_cache, slots, train
from ageray.train.in_memory.train import Fold

PEOPLE, FACES, BROKEN, NAMELESS = 6, 48, "drawn-0-000007", "drawn-0-000011"
NOTHING = dict.fromkeys(Augment.model_fields, 0)
Record = dict[str, Any]
MIB = 2**20


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 drawn faces of six people in two shards.

    One picture cannot be decoded, one face has no age.
    """
    folder = tmp_path_factory.mktemp("shards") / "drawn"
    for file in synthetic_faces.write_faces_table(folder, FACES, subjects=PEOPLE, size=72, shards=2):
        table = pq.read_table(file)
        rows = table.to_pylist()
        for row in rows:
            row["image"] = b"no picture" if row["key"] == BROKEN else row["image"]
            row["age"] = None if row["key"] == NAMELESS else row["age"]
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), file)
    return folder


@pytest.fixture(scope="module")
def settings(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Leave-one-person-out for the baseline with a frozen backbone: a fold takes under a second."""
    content = {
        "model": {"name": "residual_cnn", "width": 0.25, "ages": [-15, 120]},
        "loss": {"neighborhood": {"normalize": True}},
        "align": {"size": 32},
        "train": {
            "batch_size": 8,
            "precision": "float32",
            "stages": [{"epochs": 2, "optimizer": {"lr": 3e-3, "body_lr": 0}}],
            "augment": {**NOTHING, "flip": 0.5},
        },
        "data": {"name": "drawn", "shards": str(shards)},
        "protocol": {"name": "lopo", "val": 0.2},
        "scale": {"gpu": False, "threads": 1, "progress": False, "decode_batch": 16, "object_store_mib": 256},
    }
    file = tmp_path_factory.mktemp("settings") / "small.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def load(settings: Path, *words: str) -> Experiment:
    return config.load([str(settings)], words)


class Ran:
    """A run over folds: its results, the records that it showed, its folder."""

    def __init__(self, experiment: Experiment, out: Path, fresh: bool = False) -> None:
        self.folder, records = out, list[Record]()
        self.run = run_folds(experiment, str(out), records.append, fresh)
        self.shown = [record for record in records if record["kind"] != "note"]
        self.told = [record["text"] for record in records if record["kind"] == "note"]
        self.rows = self.run.rows.to_pylist()

    def __eq__(self, other: object) -> bool:
        """Whether every figure of every face is the same, in every bit; NaN equals NaN."""
        assert isinstance(other, Ran)
        assert self.run.rows.schema.equals(other.run.rows.schema, check_metadata=True)
        assert self.run.faces.equals(other.run.faces)
        return repr((self.rows, *self.run[2:])) == repr((other.rows, *other.run[2:]))

    @property
    def trained(self) -> list[str]:
        return [record["fold"] for record in self.shown if record["kind"] == "fold"]


@pytest.fixture(scope="module")
def ran(settings: Path, ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return Ran(load(settings, "scale.parallel_trainings=1"), tmp_path_factory.mktemp("out") / "lopo")


# --- what comes out -------------------------------------------------------------------------------


def test_every_labelled_face_is_tested_once_by_the_fold_of_its_person(ran: Ran, shards: Path) -> None:
    labels = {
        row["key"]: row
        for file in shards.glob("*.parquet")
        for row in pq.read_table(file, columns=["key", "age", "subject"]).to_pylist()
    }
    assert [row["key"] for row in ran.rows] == sorted(key for key in labels if key != NAMELESS)
    for row in ran.rows:
        assert row["fold"] == row["subject"] == labels[row["key"]]["subject"]
        assert row["age"] == labels[row["key"]]["age"]
    assert len({row["fold"] for row in ran.rows}) == PEOPLE == len(ran.run.splits)


def test_a_face_that_cannot_be_used_keeps_its_row_and_its_reason(ran: Ran) -> None:
    [broken] = [row for row in ran.rows if row["error"]]
    assert broken["key"] == BROKEN
    assert "image" in broken["error"]
    assert all(np.isnan(broken[name]) for name in ("predicted", "low", "high"))
    assert broken["quantiles"] is None
    assert np.isnan(broken["plain"])
    for row in ran.rows:
        if not row["error"]:
            assert row["low"] <= row["predicted"] <= row["high"]
            assert len(row["quantiles"]) == len(LEVELS)
            assert (np.diff(row["quantiles"]) > 0).all()


def test_each_fold_has_a_model_of_its_own(ran: Ran) -> None:
    names = [field.name for field in ran.run.rows.schema]
    assert names[:7] == ["key", "age", "error", "predicted", "low", "high", "quantiles"]
    assert set(names[7:]) == {"plain", "fold", "subject", "gender", "group", "age_std"}
    assert len({row["predicted"] for row in ran.rows}) > PEOPLE
    medians = [
        np.median([row["age"] for row in ran.rows if row["fold"] not in (fold, None)])
        for fold in {row["fold"] for row in ran.rows}
    ]
    assert ran.run.train_median == pytest.approx(np.mean(medians), abs=10)
    assert ran.run.notes == []
    for row in ran.rows:  # the calibration is a line of the plain age
        assert row["error"] or row["plain"] == pytest.approx(row["predicted"], abs=60)
    assert ran.run.gallery is None


def test_progress_tells_what_is_done_and_what_is_left(ran: Ran) -> None:
    first, *ended = ran.shown
    assert first == {
        "kind": "start",
        "done": 0,
        "total": PEOPLE,
        "frozen_body": True,
        "folds": 1,
        "cpus": 1.0,
        "gpus": 0.0,
        "threads": 1,
    }
    assert [(record["done"], record["total"]) for record in ended] == [
        (done, PEOPLE) for done in range(1, PEOPLE + 1)
    ]
    for record in ended:
        rows = [row for row in ran.rows if row["fold"] == record["fold"] and not row["error"]]
        assert record["images"] == len(rows)
        assert record["mae"] == pytest.approx(
            np.mean([abs(row["predicted"] - row["age"]) for row in rows]), rel=1e-5
        )
        assert record["seconds"] > 0
        assert record["best_epoch"] in (1, 2)
    assert ended[0]["left"] > 0
    assert ended[-1]["left"] == 0


def test_two_at_once_say_the_same_as_one_after_the_other(ran: Ran, settings: Path, tmp_path: Path) -> None:
    both = Ran(load(settings, "scale.parallel_trainings=2"), tmp_path / "both")
    assert both.shown[0]["folds"] == 2
    assert both == ran


def test_folds_of_people_have_numbers(settings: Path, ray_local: None, tmp_path: Path) -> None:
    """The folds are numbered; no features are precomputed where the backbone is trained."""
    words = [
        "protocol={name: subject_exclusive, folds: 3, fold: 1, val: 0}",
        "train.stages=[{epochs: 1, optimizer: {lr: 1e-3}}]",
    ]
    result = Ran(load(settings, *words), tmp_path)
    assert not result.shown[0]["frozen_body"]
    assert sorted(result.trained) == ["0", "1", "2"]
    assert len({row["key"] for row in result.rows}) == len(result.rows) == FACES - 1
    people = [{row["subject"] for row in result.rows if row["fold"] == name} for name in "012"]
    assert [len(each) for each in people] == [2, 2, 2]
    assert len(set.union(*people)) == PEOPLE


def test_a_gallery_never_holds_the_person_left_out(settings: Path, ray_local: None, tmp_path: Path) -> None:
    gallery = "{neighbours: 5, exclude_subject: false}"
    model = f"model={{name: siamese, backbone: mobilefacenet, decode: {{gallery: {gallery}}}}}"
    words = [
        model,
        "loss={contrastive: {}}",
        "train.calibrate=false",
        "protocol={name: subject_exclusive, folds: 2, val: 0}",
    ]
    result = Ran(load(settings, *words), tmp_path)
    fine = [row for row in result.rows if not row["error"]]
    assert {row["neighbours"] for row in fine} == {5}
    assert {row["own"] for row in fine} == {0}
    assert {row["gender_number"] for row in result.rows} == {-1}
    assert result.run.gallery["gender_by"] is None


def test_only_faces_of_the_folds_are_held_and_the_plan_says_so(
    settings: Path, shards: Path, ray_local: None, tmp_path: Path
) -> None:
    """A table names 30 of the 47 labelled faces: the others are not decoded."""
    keys = sorted(labelled_faces(str(shards)).column("key").to_pylist())[:30]
    parts = {"train": keys[:18], "val": keys[18:24], "test": keys[24:]}
    splits.save(str(tmp_path / "split.parquet"), parts)
    experiment = load(settings, f"protocol={{name: fixed, file: {tmp_path}/split.parquet}}")
    result = Ran(experiment, tmp_path / "out")
    assert sorted(row["key"] for row in result.rows) == sorted(parts["test"])
    [note] = result.told
    assert note.startswith("30 faces at align.size=32 take ")
    assert note.endswith(": held in memory; 17 faces that no fold uses are left out")
    faces = labelled_faces(str(shards))
    cache = face_cache.cache_faces(experiment, faces.filter(pa.array([True, True] + [False] * 45)))
    assert len(cache.row) + len(cache.errors) == 2


def test_stages_on_other_sets_come_first(settings: Path) -> None:
    experiment = load(settings, "train.stages.1.epochs=3", "train.stages.1.shards=other")
    with pytest.raises(UserError, match=r"train\.stages\.1\.shards=other: a fold trains on data\.shards"):
        pretraining.check(experiment)
    alone = load(settings, "train.stages.0.shards=other")
    with pytest.raises(UserError, match="no stage is left to train on data"):
        pretraining.check(alone)
    both = load(settings, "train.stages.0.shards=shards/imdb-wiki", "train.stages.1.epochs=3")
    pretraining.check(both)
    run_of_stage = pretraining.stage_run(both, both.train.stages[0])
    assert run_of_stage.data.shards == "shards/imdb-wiki"
    assert run_of_stage.data.name == "imdb-wiki"
    assert (run_of_stage.protocol.val, run_of_stage.protocol.test) == (0, 0)
    assert [stage.shards for stage in run_of_stage.train.stages] == [None]


def test_a_frozen_backbone_sees_each_face_once_where_the_pixels_do_not_fit(
    ran: Ran, settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six folds and a second run with the same caches: 46 faces go through the backbone, in pieces;
    every figure is that of the run that held the pixels."""
    passes, plain = tmp_path / "passes", face_cache._features_of

    def counted(experiment: Experiment, faces: Record, threads: int) -> Any:
        with passes.open("a") as file:
            file.write(f"{len(faces['canvas'])}\n")
        return plain(experiment, faces, threads)

    monkeypatch.setattr(face_cache, "_features_of", counted)
    monkeypatch.setattr(face_cache, "_FEATURES_PER_TASK", 20)
    monkeypatch.setattr(
        face_cache, "store_room", lambda experiment, faces: face_cache.StoreRoom(faces, 32, 2 * MIB, MIB)
    )
    monkeypatch.setattr(fold_tasks, "store_room", face_cache.store_room)
    experiment, caches, notes = load(settings), face_cache.FaceCaches(), list[Record]()
    for name in ("first", "second"):
        out = str(tmp_path / name)
        rows = run_folds(experiment, out, notes.append, caches=caches).rows.to_pylist()
        assert [row["key"] for row in rows] == [row["key"] for row in ran.rows]
        assert [row["error"] for row in rows] == [row["error"] for row in ran.rows]
        expected = [row["plain"] for row in ran.rows]
        assert np.allclose([row["plain"] for row in rows], expected, atol=1e-3, equal_nan=True)
    assert sorted(map(int, passes.read_text().split())) == [7, 19, 20]
    assert "the frozen backbone's features, 0 MiB, are computed once" in notes[0]["text"]


@pytest.mark.slow
def test_one_pretraining_for_all_folds_and_faces_that_do_not_fit(
    settings: Path, ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two stages on two sets under a protocol, then the same with folds streamed from shards."""
    other = tmp_path / "other"
    synthetic_faces.write_faces_table(other, 24, seed=5, size=72)
    words = [
        f"scale.runs={tmp_path}/runs",
        "protocol={name: subject_exclusive, folds: 2, val: 0.2}",
        "train.stages.0.epochs=1",
        f"train.stages.0.shards={other}",
        "train.stages.1.epochs=2",
        "train.stages.0.optimizer.body_lr=1e-4",
    ]
    held = Ran(load(settings, *words), tmp_path / "held")
    assert [note for note in held.told if "trains once on" in note]
    [folder] = (tmp_path / "runs").iterdir()
    written = (folder / "best.safetensors").stat().st_mtime_ns
    monkeypatch.setattr(face_cache, "_MAX_STORE_SHARE", 1e-6)
    streamed = Ran(load(settings, *words), tmp_path / "streamed")
    assert (folder / "best.safetensors").stat().st_mtime_ns == written  # trained before
    assert any("streamed from the shards in each epoch" in note for note in streamed.told)
    assert [row["key"] for row in streamed.rows] == [row["key"] for row in held.rows]
    assert streamed.run.rows.schema.equals(held.run.rows.schema)
    fine = [row for row in streamed.rows if not row["error"]]
    assert len(fine) == FACES - 2
    assert all(np.isfinite(row["plain"]) for row in fine)
    # equal start and equal faces, another order of the epochs
    both = [np.array([row["plain"] for row in run.rows if not row["error"]]) for run in (held, streamed)]
    assert np.abs(both[0] - both[1]).mean() < 6


# --- a fold is a training run ---------------------------------------------------------------------


@pytest.mark.slow
def test_a_fold_is_what_jobs_train_would_have_made_of_its_split(
    settings: Path, shards: Path, ray_local: None, tmp_path: Path
) -> None:
    """A fold's log and predictions are those of ageray train on the same split.

    All training faces are in one batch and not augmented, so that their order does not matter. The
    person left out is the one with the broken picture.
    """
    words = [
        "train.stages=[{epochs: 3, optimizer: {lr: 1e-3}}]",
        f"train.augment={json.dumps(NOTHING)}",
        f"scale.runs={tmp_path}",
    ]
    words += ["protocol={name: lopo, fold: drawn-1, val: 0.4}"]
    parts = protocols.split(labelled_faces(str(shards)), load(settings, *words).protocol).parts
    assert BROKEN in parts["test"]
    experiment = load(settings, *words, f"train.batch_size={len(parts['train'])}")
    training_plan = plan.make(experiment)
    run.train(experiment, training_plan, lambda record: None)
    log = [json.loads(line) for line in (Path(training_plan.folder) / "log.jsonl").read_text().splitlines()]
    columns = decoded(shards, experiment)
    fold = Fold("drawn-1", *(np.flatnonzero(np.isin(columns["key"], parts[name])) for name in splits.PARTS))
    faces = {name: columns[name] for name in ("canvas", "points", "box", "age", "gender", "subject")}
    result = train.run(experiment, faces, fold, torch.device("cpu"), LEVELS)
    for name in ("loss", "val_mae", "val_bias"):
        assert [record[name] for record in result.log] == pytest.approx(
            [record[name] for record in log], rel=2e-3, abs=2e-3
        ), name
    assert [record["best"] for record in result.log] == [record["best"] for record in log]
    ages = Predictor(bundle.load(training_plan.folder), "cpu", threads=1).predict(
        *(faces[name][fold.test] for name in ("canvas", "points", "box"))
    )
    for name, expected in (("predicted", ages.age), ("low", ages.low), ("high", ages.high)):
        assert getattr(result, name) == pytest.approx(expected, abs=0.05), name
    assert len(fold.test) == 7


def decoded(shards: Path, experiment: Experiment) -> Record:
    """Every usable labelled face, in the order of the shards."""
    names = ["key", "image", "landmarks", "box", "age", "subject", "gender", "dataset"]
    tables = [pq.read_table(file, columns=names) for file in sorted(shards.glob("*.parquet"))]
    columns = decode_rows(pa.concat_tables(tables).combine_chunks(), experiment.align.model_dump(mode="json"))
    return {name: values[columns["error"] == ""] for name, values in columns.items()}


# --- going on -------------------------------------------------------------------------------------

_DRIVER = """
import sys
from ageray import cluster, config
from ageray.evaluate.folds import run_folds
experiment = config.load([sys.argv[1]], sys.argv[3:])
cluster.connect(experiment.scale)
run_folds(experiment, sys.argv[2], lambda record: None)
"""


def descendants(pid: int) -> list[int]:
    result: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            result += [child, *descendants(child)]
    return result


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
def test_a_killed_run_goes_on_and_ends_as_if_nothing_had_happened(
    ran: Ran, settings: Path, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    command = [sys.executable, "-c", _DRIVER, str(settings), str(out), "scale.parallel_trainings=1"]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: len(list(out.glob("folds/[0-9]*.parquet"))) >= 2 or driver.poll() is not None, 300)
        family = descendants(driver.pid)
    finally:
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in family), 120)
    before = {file.name: file.stat().st_mtime_ns for file in out.glob("folds/[0-9]*.parquet")}
    assert 2 <= len(before) < PEOPLE
    after = Ran(load(settings, "scale.parallel_trainings=2"), out)
    assert after.shown[0]["done"] == len(before)
    assert len(after.trained) == PEOPLE - len(before)
    for name, written in before.items():
        assert (out / "folds" / name).stat().st_mtime_ns == written, name
    assert after == ran


def test_a_finished_run_is_only_read(ran: Ran, settings: Path) -> None:
    again = Ran(load(settings, "scale.parallel_trainings=2", "protocol.fold=3"), ran.folder)
    assert again.shown == []
    assert again == ran


@pytest.fixture
def copy(ran: Ran, tmp_path: Path) -> Path:
    """A copy of a finished run's folder, which a test may damage."""
    for file in ran.folder.rglob("*"):
        if file.is_file():
            place = tmp_path / "copy" / file.relative_to(ran.folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(file.read_bytes())
    return tmp_path / "copy"


def mistake(experiment: Experiment, out: Path) -> str:
    with pytest.raises(UserError) as caught:
        run_folds(experiment, str(out), lambda record: None)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("word", "difference"),
    [
        ("train.seed=7", "train.seed: 0, now 7"),
        ("train.stages.0.optimizer.lr=0.1", "train.stages.0.optimizer.lr: 0.003, now 0.1"),
        ("protocol.val=0.5", "protocol.val: 0.2, now 0.5"),
        ("loss.cross_entropy={}", "loss.cross_entropy.weight: null, now 1.0"),
        ("model.ages=[0, 100]", "model.ages.0: -15, now 0"),
    ],
)
def test_a_folder_of_other_settings_is_refused_by_name(
    word: str, difference: str, copy: Path, settings: Path
) -> None:
    text = mistake(load(settings, word), copy)
    assert text.startswith(f"--out {copy}: holds folds of other settings")
    assert f"({difference}); give another folder, or --fresh to start anew" in text


def test_a_folder_in_use_is_refused(copy: Path, settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "_PERIOD", 0.1)
    with lease.Lease(str(copy)):
        assert f"{copy}: another evaluation is writing there" in mistake(load(settings), copy)


def test_fresh_trains_all_of_them_anew(copy: Path, settings: Path) -> None:
    (copy / "folds" / "9999.parquet").write_bytes(b"of more people")
    result = Ran(load(settings, "train.seed=7"), copy, fresh=True)
    assert len(result.trained) == PEOPLE
    assert not (copy / "folds" / "9999.parquet").exists()
    assert config.loads((copy / "config.yaml").read_text(), "config.yaml").train.seed == 7


def test_folds_of_other_faces_are_refused(copy: Path, settings: Path, shards: Path, tmp_path: Path) -> None:
    """The same settings, but the shards have changed since."""
    changed = next(iter(sorted(shards.glob("*.parquet"))))
    table, original = pq.read_table(changed), changed.read_bytes()
    try:
        pq.write_table(table.slice(1), changed)
        assert (
            "0000.parquet: is a fold of other faces (the shards or model.weights have changed since)"
            in mistake(load(settings), copy)
        )
    finally:
        changed.write_bytes(original)


def test_a_file_that_is_no_fold_is_named(copy: Path, settings: Path) -> None:
    (copy / "folds" / "0002.parquet.sha256").unlink()  # as of a version without checksums
    (copy / "folds" / "0002.parquet").write_bytes(b"nonsense")
    assert mistake(load(settings), copy).startswith(
        f"{copy}/folds/0002.parquet: not the file of a fold; remove it"
    )
    (copy / "folds" / "0002.parquet").unlink()
    (copy / "config.yaml").unlink()
    assert "holds folds without their config.yaml" in mistake(load(settings), copy)


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["data.shards=null"],
            "data.shards is not set; name the folder that ageray prepare wrote, "
            "e.g. data.shards=shards/fgnet",
        ),
        (
            ["protocol.name=all"],
            "protocol.name=all: leaves no face to train on; set protocol.name=lopo, or subject_exclusive ",
        ),
        (
            ["protocol={name: subject_exclusive, test: 0, val: 0}"],
            "protocol.name=subject_exclusive: leaves no face to test; set protocol.name=lopo",
        ),
        (
            ["train.stages.0.shards=elsewhere"],
            "train.stages.0.shards=elsewhere: no stage is left to train on data.shards; add one without ",
        ),
        (["loss.neighborhood=null"], "loss: no term is configured; name at least one of "),
        (["model.weights=nowhere.safetensors"], "model.weights=nowhere.safetensors: not found"),
    ],
)
def test_mistakes_that_are_found_before_anything_is_written(
    words: list[str], message: str, settings: Path, tmp_path: Path
) -> None:
    assert mistake(load(settings, *words), tmp_path / "out").startswith(message)
    assert not (tmp_path / "out").exists()


def test_faces_without_subjects_cannot_be_left_out_by_person(settings: Path, tmp_path: Path) -> None:
    [file] = synthetic_faces.write_faces_table(tmp_path / "nobody", 12, size=72)
    table = pq.read_table(file)
    pq.write_table(
        table.set_column(table.schema.get_field_index("subject"), "subject", pa.nulls(12, pa.string())), file
    )
    text = mistake(load(settings, f"data.shards={tmp_path / 'nobody'}"), tmp_path / "out")
    assert (
        text
        == "protocol.name=lopo: no face has a subject; set protocol.name=random, with protocol.folds=5, say"
    )


def test_a_batch_that_no_fold_can_fill(settings: Path, ray_local: None, tmp_path: Path) -> None:
    text = mistake(load(settings, "train.batch_size=40"), tmp_path)
    assert text.startswith("train.batch_size=40: fold drawn-")
    assert "usable training faces; lower it or add faces" in text


def test_faces_that_do_not_fit_into_memory(
    settings: Path, shards: Path, ray_local: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search over trials holds them and refuses; folds are streamed instead (see above)."""
    monkeypatch.setattr(face_cache, "_MAX_STORE_SHARE", 0.0001)
    with pytest.raises(UserError) as caught:
        face_cache.cache_faces(load(settings), labelled_faces(str(shards)))
    text = str(caught.value)
    assert "47 faces at align.size=32 take 1 MiB, more than the 0 MiB that the object store has" in text
    assert text.endswith("raise scale.object_store_mib, or lower align.size")


def test_a_fold_whose_loss_is_not_finite_is_named_and_the_others_are_kept(
    settings: Path, shards: Path, ray_local: None, tmp_path: Path
) -> None:
    """An age of 1e30 makes the loss of every fold infinite, except that of its own person.

    That fold is the first.
    """
    for file in shards.glob("*.parquet"):
        table = pq.read_table(file)
        rows = [row | {"age": 1e30} if row["key"] == "drawn-0-000000" else row for row in table.to_pylist()]
        (tmp_path / "spoilt").mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), tmp_path / "spoilt" / file.name)
    words = [
        f"data.shards={tmp_path / 'spoilt'}",
        "loss={regression: {norm: l2}}",
        "scale.parallel_trainings=1",
        "protocol.val=0",
    ]
    text = mistake(load(settings, *words), tmp_path / "out")
    assert text.startswith("fold drawn-1: step ")
    assert "is not finite" in text
    assert text.endswith("; finished folds are kept")
    assert [file.name for file in (tmp_path / "out" / "folds").glob("*.parquet")] == ["0000.parquet"]


# --- shares of a machine --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scale", "resources", "expected"),
    [
        ({}, [{"CPU": 16}, {"CPU": 16}], (32, 1, 0, 1)),
        ({"cpus_per_worker": 4}, [{"CPU": 16}, {"CPU": 16}], (8, 4, 0, 4)),
        ({"parallel_trainings": 3}, [{"CPU": 16}, {"CPU": 16}], (3, 1, 0, 1)),
        ({"parallel_trainings": 3, "threads": 5}, [{"CPU": 16}, {"CPU": 16}], (3, 1, 0, 5)),
        ({"parallel_trainings": 1}, [{"CPU": 16}, {"CPU": 16}], (1, 1, 0, 0)),
        ({}, [{"CPU": 16, "GPU": 1}], (1, 1, 1, 0)),
        ({}, [{"CPU": 16, "GPU": 4}, {"CPU": 16, "GPU": 4}], (8, 1, 1, 1)),
        ({"parallel_trainings": 4}, [{"CPU": 16, "GPU": 1}], (4, 1, 0.25, 1)),
        ({"parallel_trainings": 5, "gpu": True}, [{"CPU": 16, "GPU": 2}], (5, 1, 1 / 3, 1)),
        ({"gpu": False, "parallel_trainings": 2}, [{"CPU": 16, "GPU": 2}], (2, 1, 0, 1)),
    ],
)
def test_shares_of_a_machine(
    scale: Record, resources: list[Record], expected: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        ray,
        "nodes",
        lambda: (
            [{"Alive": True, "Resources": each} for each in resources] + [{"Alive": False, "Resources": {}}]
        ),
    )
    assert tuple(slots.plan_slots(Scale(**scale))) == pytest.approx(expected)


def test_trainings_end_when_their_faces_are_given_up(ray_local: None) -> None:
    def long(seconds: float) -> None:
        time.sleep(seconds)

    caches = face_cache.FaceCaches()
    results = slots.TaskSlots(1, 1, 0, 1).map_unordered(long, [(0, (60.0,))], caches.closed)
    timer = threading.Timer(0.5, caches.close)
    timer.start()
    start = time.monotonic()
    with pytest.raises(CancelledError):
        next(results)
    assert time.monotonic() - start < 30


def test_alone_on_a_machine_no_more_folds_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 4}}])
    monkeypatch.setattr(slots, "usable_cpus", lambda: 2)
    assert slots.plan_slots(Scale()).folds == 2
    assert slots.plan_slots(Scale(cpus_per_worker=2)) == (1, 2, 0, 0)


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        ({"gpu": True}, "scale.gpu=true: the cluster has no GPU"),
        ({"cpus_per_worker": 8}, "scale.cpus_per_worker=8: no machine has more than 4"),
    ],
)
def test_what_the_cluster_has_not(scale: Record, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 4}}])
    with pytest.raises(UserError) as caught:
        slots.plan_slots(Scale(**scale))
    assert str(caught.value).startswith(message)
