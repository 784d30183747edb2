"""A teacher that sees every training face once (`train.teacher_faces: aligned`)."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from ageray import bundle, config
from ageray.data.stream import decode_rows
from ageray.errors import UserError
from ageray.experiment import Experiment
from ageray.models.build import build
from ageray.models.gallery import Gallery, compact
from ageray.predictor import Predictor
from ageray.synthetic import faces
from ageray.train import loop, plan, run, teacher, worker
from tests.train.in_process import in_process

CPU = torch.device("cpu")
MODEL = {"name": "residual_cnn", "width": 0.25, "ages": [-15, 120]}
VIEWS = {"flip": True, "views": [{"zoom": 1.1}, {"size": 64}]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`shards` of 48 drawn faces, and `teacher`, the bundle of a random network with four views."""
    folder = tmp_path_factory.mktemp("teacher")
    faces.write_faces_table(folder / "shards", 48, size=80)
    settings = Experiment.model_validate(
        {"model": MODEL | {"decode": VIEWS}, "align": {"size": 48}, "train": {"precision": "float32"}}
    )
    network = build(settings.model, seed=7)
    with torch.no_grad():
        network.get_parameter("head.weight").mul_(20)
    bundle.save(str(folder / "teacher"), network, settings, {"name": "teacher"})
    return folder


def experiment(folder: Path, *words: str, **train: Any) -> Experiment:
    settings = {"batch_size": 8, "precision": "float32", "stages": [{"epochs": 1}]}
    settings |= {"teacher": str(folder / "teacher"), "teacher_faces": "aligned"}
    content = {
        "model": MODEL,
        "loss": {"neighborhood": {"normalize": True}, "distillation": {}},
        "align": {"size": 48},
        "train": settings | train,
        "data": {"name": "drawn", "shards": str(folder / "shards")},
        "protocol": {"val": 0.2, "test": 0.2},
        "scale": {"gpu": False, "threads": 1, "progress": False, "object_store_mib": 256},
    }
    file = folder / "experiment.yaml"
    file.write_text(yaml.safe_dump(content))
    return config.load([str(file)], [f"scale.runs={folder}", *words])


def scored(folder: Path, made: plan.Plan) -> dict[int, np.ndarray[Any, Any]]:
    """What the teacher's predictor says of each training face, by its row number."""
    loaded = bundle.load(str(folder / "teacher"))
    predictor = Predictor(loaded, "cpu", 1)
    answers: dict[int, np.ndarray[Any, Any]] = {}
    for file in sorted((folder / "shards").glob("*.parquet")):
        align = loaded.experiment.align.model_dump(mode="json")
        cut = decode_rows(pq.read_table(file), align, lookup=made.faces["train"].lookup())
        predicted = predictor.predict(cut["canvas"], cut["points"], cut["box"])
        answers |= dict(zip(cut["row"].tolist(), predicted.posterior, strict=True))
    return answers


def test_each_face_learns_what_the_teacher_says_of_it_and_the_teacher_is_asked_once(
    folder: Path, ray_local: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches, shown = list[dict[str, Any]](), list[dict[str, Any]]()
    original = loop.train_one_epoch

    def train_one_epoch(state: Any, columns: Any, *rest: Any) -> Any:
        batches.extend(columns)
        return original(state, iter(batches), *rest)

    monkeypatch.setattr(worker, "train_one_epoch", train_one_epoch)
    settings = experiment(folder)
    made = plan.make(settings)
    with in_process():
        run.train(settings, made, shown.append)
    expected = scored(folder, made)
    assert len(expected) == len(made.faces["train"]) > 24
    assert len(batches) == made.steps[0] > 2
    for batch in batches:
        for row, answer in zip(batch["row"].tolist(), batch["teacher"], strict=True):
            np.testing.assert_allclose(answer, expected[row], atol=1e-3)
    assert np.ptp([answer.argmax() for answer in expected.values()]) > 0
    notes = [record["text"] for record in shown if record["kind"] == "note"]
    assert [note for note in notes if note.startswith(f"the teacher saw {len(expected)} faces once, in ")]
    (record,) = [record for record in shown if record["kind"] == "epoch"]
    assert record["loss.distillation"] > 0
    # a run that goes on reads its answers, and asks nobody
    shutil.rmtree(made.files.bundle)
    monkeypatch.setattr(teacher, "posteriors", None)
    with in_process():
        run.train(settings, made, shown.append)
    assert (Path(made.files.bundle) / "card.json").exists()


def test_answers_that_are_damaged_or_of_other_faces_are_asked_for_again(tmp_path: Path) -> None:
    file = tmp_path / "teacher.safetensors"
    assert teacher.read(str(file), 3) is None
    answers = np.arange(12, dtype=np.float16).reshape(3, 4)
    teacher.write(str(file), answers)
    kept = teacher.read(str(file), 3)
    assert kept is not None
    np.testing.assert_array_equal(kept, answers)
    assert teacher.read(str(file), 4) is None
    file.write_bytes(file.read_bytes()[:-1])
    assert teacher.read(str(file), 3) is None


def test_a_teacher_must_see_the_crop_and_the_ages_of_its_student(folder: Path) -> None:
    assert teacher.load(experiment(folder), CPU) is not None
    assert teacher.load(experiment(folder, "align.placement=actors"), CPU) is not None  # the same crop
    with pytest.raises(UserError, match=r"train\.teacher=.*: its align differs from this model's"):
        teacher.load(experiment(folder, "align.size=56"), CPU)
    with pytest.raises(UserError, match=r"has model\.ages=\[-15, 120\], this model \[0, 90\]"):
        teacher.load(experiment(folder, "model.ages=[0,90]"), CPU)


def test_a_teacher_that_does_not_fit_is_found_before_a_training_starts(folder: Path) -> None:
    plan.check_model(experiment(folder))
    with pytest.raises(UserError, match=r"no-such-model: not a model"):
        plan.check_model(experiment(folder, teacher=str(folder / "no-such-model")))
    for teacher_faces in ("aligned", "augmented"):
        with pytest.raises(UserError, match=r"train\.teacher=.*: its align differs from this model's"):
            plan.check_model(experiment(folder, "align.size=56", teacher_faces=teacher_faces))


def test_a_teacher_needs_a_classifier(folder: Path) -> None:
    model = {"name": "siamese", "backbone": "mobilenet_v1", "gender_features": 0, "ages": [-15, 120]}
    settings = Experiment.model_validate({"model": model, "align": {"size": 48}})
    nearest = Gallery.of([{"embedding": compact(torch.eye(70)[:3]), "age": torch.tensor([1.0, 2, 3])}])
    bundle.save(str(folder / "siamese"), build(settings.model), settings, {"name": "siamese"}, nearest)
    with pytest.raises(
        UserError, match=r"model 'siamese' gives no posterior; name a model with a classifier"
    ):
        teacher.load(experiment(folder, teacher=str(folder / "siamese")), CPU)


def test_of_a_model_with_a_gallery_the_classifier_teaches(folder: Path) -> None:
    settings = experiment(folder, "model.decode.method=gallery", teacher="start")
    found = teacher.load(settings, CPU)
    assert found is not None
    cut = decode_rows(
        pq.read_table(next((folder / "shards").glob("*.parquet"))), settings.align.model_dump(mode="json")
    )
    cut |= {"row": np.arange(len(cut["age"]))}
    answers = teacher.posteriors(found, [cut], len(cut["age"]), CPU)
    np.testing.assert_allclose(answers.sum(1, dtype=np.float32), 1, atol=5e-3)


def test_a_stage_with_other_faces_cannot_be_taught_by_answers(folder: Path) -> None:
    stages = [{"epochs": 1}, {"epochs": 1, "shards": str(folder / "shards")}]
    with pytest.raises(UserError, match=r"train\.stages\.1\.shards=.*set train\.teacher_faces=augmented"):
        plan.make(experiment(folder, stages=stages))
