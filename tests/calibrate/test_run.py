"""`ageray calibrate`: the bundle that it writes, its figures, and a user's mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from ageray import bundle
from ageray.calibration import Calibration
from ageray.commands import calibrate as command
from ageray.errors import UserError
from ageray.experiment import Align, Experiment
from ageray.faces.canvases import face_canvases
from ageray.models.build import build
from ageray.predictor import Predictor
from ageray.synthetic import faces

FAST = ["scale.threads=1", "scale.progress=false", "scale.decode_batch=16", "scale.gpu=false"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 drawn faces of 24 people."""
    folder = tmp_path_factory.mktemp("shards") / "drawn"
    faces.write_faces_table(folder, 60, subjects=24, size=64)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose ages are all near 30, and whose interval is 2 years wide."""
    settings = Experiment.model_validate(
        {
            "model": {"name": "residual_cnn", "width": 0.25, "ages": [0, 100]},
            "align": Align(size=48),
            "train": {"precision": "float32"},
        }
    )
    network = build(settings.model, seed=0)
    with torch.no_grad():
        network.head.bias.copy_(-((torch.arange(101.0) - 30) / 1).square())
    card = {"name": "tiny", "figures": {"old": 1}, "calibration": Calibration(1, 0, 0, 99).to_card()}
    folder = tmp_path_factory.mktemp("model") / "tiny"
    bundle.save(str(folder), network, settings, card)
    return folder


@pytest.fixture(scope="module")
def written(
    model: Path, shards: Path, ray_local: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("out") / "own"
    settings = ["data.name=mine", "protocol.name=subject_exclusive", "protocol.test=0.3", "protocol.val=0"]
    command.main([str(model), str(shards), "--out", str(out), *settings, *FAST])
    return out, json.loads((out / "card.json").read_text())


def test_the_bundle_has_the_fitted_calibration_and_the_same_weights(
    written: tuple[Path, dict[str, Any]], model: Path
) -> None:
    out, card = written
    before, after = bundle.load(str(model)), bundle.load(str(out))
    assert after.weights == before.weights
    assert after.settings == before.settings
    assert after.identity != before.identity
    assert card["made_of"] == [{"name": "tiny", "identity": before.identity}]
    assert "figures" not in card
    assert after.calibration.faces == card["own_faces"]["faces"]


def test_figures_before_and_after_are_those_of_the_predictor(
    written: tuple[Path, dict[str, Any]], model: Path, shards: Path
) -> None:
    out, card = written
    report = card["own_faces"]
    assert report["faces"] + report["test"]["faces"] == 60
    assert report["people"] + report["test"]["people"] == 24
    sums = {}
    for name, folder in (("before", model), ("after", out)):
        predictor, errors = Predictor(bundle.load(str(folder)), "cpu", threads=1), []
        for file in sorted(shards.glob("*.parquet")):
            for row in pq.read_table(file).to_pylist():
                points = np.array(row["landmarks"], np.float32).reshape(1, 5, 2)
                box = np.array([row["box"]], np.float32)
                face = face_canvases(row["image"], points, box, Align(size=48))
                age = predictor.predict(face.pixels, face.points, face.box).age[0]
                errors.append(float(age) - row["age"])
        sums[name] = np.sum(errors)
    fitted, tested = report["faces"], report["test"]["faces"]
    biases = report["before"]["bias"]["value"], report["test"]["before"]["bias"]["value"]
    assert fitted * biases[0] + tested * biases[1] == pytest.approx(sums["before"], rel=1e-3)
    assert abs(sums["after"]) < abs(sums["before"])
    assert report["before"]["coverage"]["value"] < 0.4
    assert report["after"]["coverage"]["value"] > 0.75
    assert report["test"]["after"]["coverage"]["value"] > 0.6


def test_few_faces_and_few_people_are_told(written: tuple[Path, dict[str, Any]]) -> None:
    notes = " ".join(written[1]["own_faces"]["notes"])
    assert "faces are few" in notes
    assert "people are few" in notes


def test_what_is_told_on_the_terminal(
    written: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    from ageray.commands.terminal import calibration

    calibration.show(written[1]["own_faces"])
    printed = capsys.readouterr().out
    assert "before" in printed
    assert "not fitted" in printed
    assert max(map(len, printed.splitlines())) < 140


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["zoo:default", "{shards}", "{shards}", "--out", "out"], "several folders"),
        (["zoo:default", "data.name=mine", "--out", "out"], "data.shards is not set"),
        (["zoo:default", "data.shrads=mine", "--out", "out"], "data.shrads"),
        (["{out}", "{shards}", "--out", "{out}"], "there is a bundle already"),
        (["zoo:none", "{shards}", "--out", "out"], "no such model"),
    ],
)
def test_mistakes_are_told_in_one_line(
    words: list[str],
    message: str,
    shards: Path,
    written: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        command.main([word.format(shards=shards, out=written[0]) for word in words])


def test_too_few_faces_are_refused_with_the_number(model: Path, ray_local: None, tmp_path: Path) -> None:
    faces.write_faces_table(tmp_path / "few", 12, subjects=6, size=64)
    with pytest.raises(UserError, match="12 labelled faces can be used; a calibration needs 20, and 100"):
        command.main([str(model), str(tmp_path / "few"), "--out", str(tmp_path / "out"), *FAST])
