"""A siamese model on a real Ray: trained, saved with its gallery, evaluated, scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from ageray import bundle, storage
from ageray.commands import evaluate, score, train
from ageray.data import splits
from ageray.data.labels import subject_number
from ageray.errors import UserError
from ageray.synthetic import faces
from tests.train.in_process import in_process

FACES, BROKEN = 60, ("drawn-0-000004", "drawn-0-000031")


pytestmark = pytest.mark.slow  # test_in_memory.py and tests/models have galleries in the default run


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty drawn faces of twenty people. Every third has no gender; two images are broken."""
    folder = tmp_path_factory.mktemp("shards") / "drawn"
    for file in faces.write_faces_table(folder, FACES, subjects=20, size=72, shards=2):
        table = pq.read_table(file)
        rows = table.to_pylist()
        for row in rows:
            number = int(row["subject"].removeprefix("drawn-"))
            row["gender"] = ["female", "male", None][number % 3]
            row["image"] = b"no picture" if row["key"] in BROKEN else row["image"]
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), file)
    return folder


@pytest.fixture(scope="module")
def settings(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("settings")
    stage = {"epochs": 1, "optimizer": {"name": "adadelta", "lr": 1.0}}
    content = {
        "model": {
            "name": "siamese",
            "backbone": "mobilenet_v1",
            "decode": {"gallery": {"neighbours": 5, "validation_faces": 20}},
        },
        "loss": {"contrastive": {}, "gender_contrastive": {}},
        "align": {"size": 32},
        "train": {"batch_size": 16, "shuffle": 16, "precision": "float32", "stages": [stage]},
        "data": {"name": "drawn", "shards": str(shards)},
        "protocol": {"val": 0.2, "test": 0.3},
        "scale": {"gpu": False, "threads": 1, "progress": False, "decode_batch": 16, "object_store_mib": 256},
    }
    (folder / "small.yaml").write_text(yaml.safe_dump(content))
    return folder / "small.yaml"


@pytest.fixture(scope="module")
def run(settings: Path, ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's folder."""
    runs = tmp_path_factory.mktemp("runs")
    with in_process():
        train.main([str(settings), f"scale.runs={runs}"])
    [folder] = runs.iterdir()
    return folder


def usable(keys: list[str], shards: Path) -> list[dict[str, Any]]:
    """The rows of these faces that can be decoded, in the order of the shards."""
    rows = [row for file in sorted(shards.glob("*.parquet")) for row in pq.read_table(file).to_pylist()]
    return [row for row in rows if row["key"] in keys and row["key"] not in BROKEN]


def test_the_bundle_holds_all_training_faces_in_order(run: Path, shards: Path) -> None:
    loaded = bundle.load(str(run))
    gallery = loaded.gallery()
    assert gallery is not None
    training = usable(splits.load(str(run / "split.parquet"))["train"], shards)
    assert len(gallery) == loaded.card["gallery"]["faces"] == len(training)
    assert gallery.age.tolist() == np.array([row["age"] for row in training], np.float32).tolist()
    assert gallery.gender.tolist() == [{"male": 0, "female": 1, None: -1}[row["gender"]] for row in training]
    assert gallery.subject.tolist() == [subject_number("drawn", row["subject"]) for row in training]
    assert gallery.gender_embedding is not None
    assert float(gallery.embedding.float().std(0).mean()) > 0


def test_the_epoch_was_judged_by_a_gallery(run: Path) -> None:
    [record] = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert 0 < record["val_mae"] < 60
    assert record["loss"] == pytest.approx(
        record["loss.contrastive"] + record["loss.gender_contrastive"], rel=1e-4
    )
    card = bundle.load(str(run)).card
    assert card["validation"]["images"] == record_faces(run)
    assert 0 < card["validation"]["mae"] < 60


def record_faces(run: Path) -> int:
    return len([key for key in splits.load(str(run / "split.parquet"))["val"] if key not in BROKEN])


def evaluated(run: Path, shards: Path, out: Path, *words: str) -> dict[str, Any]:
    scale = [
        "scale.threads=1",
        "scale.progress=false",
        "scale.decode_batch=16",
        "scale.gpu=false",
        "scale.score_batch=16",
    ]
    evaluate.main([str(run), f"data.shards={shards}", "--out", str(out), *scale, *words])
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    return report


def test_evaluation_reports_gender_and_neighbours(
    run: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """People of the test are not in the gallery, so nobody is left out."""
    report = evaluated(run, shards, tmp_path)
    test = usable(splits.load(str(run / "split.parquet"))["test"], shards)
    assert report["images"] == len(test)
    assert report["gallery"] == {
        "faces": bundle.load(str(run)).card["gallery"]["faces"],
        "neighbours": 5 * len(test),
        "same_subject_share": 0,
        "same_subject_excluded": 0,
        "without_neighbours": 0,
    }
    rows = pq.read_table(tmp_path / "predictions.parquet").to_pylist()
    labelled = [row for row in rows if row["gender_number"] >= 0 and not row["error"]]
    assert len(labelled) == sum(row["gender"] is not None for row in test) > 0
    right = [
        0.5 if row["female"] == 0.5 else float((row["female"] > 0.5) == (row["gender_number"] == 1))
        for row in labelled
    ]
    assert report["gender"] == {
        "faces": len(labelled),
        "accuracy": pytest.approx(np.mean(right)),
        "by": "gender_embedding",
    }
    printed = capsys.readouterr().out
    assert (
        f"gender by the nearest faces (gender_embedding): {report['gender']['accuracy']:.3f} "
        f"of {len(labelled)} right" in printed
    )
    assert (
        f"{5 * len(test)} neighbours in a gallery of {report['gallery']['faces']} faces; "
        "0.0% of them of the face's own subject" in printed
    )


def test_training_faces_do_not_find_themselves(run: Path, shards: Path, tmp_path: Path) -> None:
    """With all faces tested, each training face is its own nearest: left out and counted."""
    report = evaluated(run, shards, tmp_path, "protocol.name=all")
    training = usable(splits.load(str(run / "split.parquet"))["train"], shards)
    assert report["gallery"]["same_subject_excluded"] >= len(training)
    assert report["gallery"]["same_subject_share"] == 0
    rows = {row["key"]: row for row in pq.read_table(tmp_path / "predictions.parquet").to_pylist()}
    assert all(rows[row["key"]]["own"] >= 1 for row in training)
    strangers = usable(splits.load(str(run / "split.parquet"))["test"], shards)
    assert all(rows[row["key"]]["own"] == 0 for row in strangers)


def test_the_gallery_travels_with_the_bundle_into_scoring(run: Path, shards: Path, tmp_path: Path) -> None:
    storage.copy_tree(str(run / "bundle"), str(tmp_path / "model"))
    words = [str(shards), "--out", str(tmp_path / "scores"), "--model", str(tmp_path / "model")]
    score.main([*words, "scale.engine=local", "scale.local_cpus=1", "scale.progress=false"])
    table = pa.concat_tables([pq.read_table(file) for file in (tmp_path / "scores").glob("*.parquet")])
    rows = [row for row in table.to_pylist() if row["error"] is None]
    assert len(rows) == FACES - len(BROKEN)
    assert all(row["age_low"] <= row["age"] <= row["age_high"] for row in rows)
    gallery = bundle.load(str(run)).gallery()
    assert gallery is not None
    assert len({row["age"] for row in rows}) > 3
    (tmp_path / "model" / "gallery.safetensors").unlink()
    with pytest.raises(UserError, match=r"gallery\.safetensors: not found"):
        score.main([*words[:2], str(tmp_path / "again"), *words[3:]])


def test_a_run_that_is_finished_stays_so(run: Path, settings: Path) -> None:
    with pytest.raises(UserError, match="this run is finished"):
        train.main([str(settings), f"scale.runs={run.parent}"])
    assert (run / "split.parquet").exists()
