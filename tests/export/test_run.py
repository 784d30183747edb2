"""Exported files against the predictor: shipped models on drawn faces, by onnxruntime and torch."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ageray import bundle
from ageray.calibration import Calibration
from ageray.commands import export as command
from ageray.errors import UserError
from ageray.experiment import Align, Experiment
from ageray.export import run
from ageray.export.calibrated import CalibratedAges
from ageray.faces.canvases import face_canvases
from ageray.models.build import build
from ageray.predictor import Ages, Predictor
from ageray.synthetic.faces import draw_face

Inputs = dict[str, np.ndarray[Any, Any]]
FACES = 5


@pytest.fixture(scope="module")
def default() -> bundle.Bundle:
    return bundle.load("zoo:default")


def drawn(align: Align) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Canvas, points and box of faces of several ages and sizes."""
    parts = []
    for number in range(FACES):
        face = draw_face(number, 10 + 15 * number, size=96 + 40 * number)
        canvases = face_canvases(face.jpeg(), face.points[None], face.box[None], align)
        parts.append((canvases.pixels, canvases.points, canvases.box))
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    return columns[0], columns[1], columns[2]


def both(model: bundle.Bundle) -> tuple[Ages, Inputs]:
    """The predictor's answers, and the inputs of an exported file for the same faces."""
    canvas, points, box = drawn(model.experiment.align)
    ages = Predictor(model, device="cpu", threads=1, precision="float32").predict(canvas, points, box)
    return ages, run.aligned_inputs(canvas, points, box, model.experiment.align)


def compare(ages: Ages, outputs: list[Any]) -> None:
    posterior, age, interval, difficulty = (np.asarray(each) for each in outputs)
    np.testing.assert_allclose(posterior, ages.posterior, atol=1e-5)
    np.testing.assert_allclose(age, ages.age, atol=1e-3)
    np.testing.assert_allclose(interval[:, 0], ages.low, atol=1e-3)
    np.testing.assert_allclose(interval[:, 1], ages.high, atol=1e-3)
    if ages.widening is not None:
        np.testing.assert_allclose(np.clip(difficulty, 1, ages.widening.max()), ages.widening, atol=1e-4)


def in_onnxruntime(file: Path, inputs: Inputs) -> list[Any]:
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(str(file), options)
    names = [each.name for each in session.get_inputs()]
    outputs: list[Any] = session.run(None, {name: inputs[name] for name in names})
    return outputs


def test_the_tensors_are_those_of_the_predictor(default: bundle.Bundle) -> None:
    ages, inputs = both(default)
    network = CalibratedAges(default).eval()
    with torch.inference_mode():
        compare(ages, list(network(*(torch.from_numpy(inputs[name]) for name in network.inputs))))


def test_every_calibration_is_that_of_the_predictor(default: bundle.Bundle) -> None:
    """Without difficulty, with a margin, with a line that gives negative ages."""
    card = default.card | {"features": None}
    line = Calibration(scale=1.3, shift=-9.0, margin=4.0, faces=100)
    plain = replace(default, features=None, card=card | {"calibration": line.to_card()})
    ages, inputs = both(plain)
    network = CalibratedAges(plain).eval()
    assert network.inputs == ("face",)
    with torch.inference_mode():
        compare(ages, list(network(torch.from_numpy(inputs["face"]))))


def test_onnxruntime_gives_the_ages_of_the_predictor(default: bundle.Bundle, tmp_path: Path) -> None:
    """Five faces, and one, through a file that was traced with two."""
    pytest.importorskip("onnxscript")
    file = tmp_path / "ages.onnx"
    about = run.export(default, file)
    ages, inputs = both(default)
    outputs = in_onnxruntime(file, inputs)
    compare(ages, outputs)
    alone = in_onnxruntime(file, {name: values[:1] for name, values in inputs.items()})
    assert alone[1] == pytest.approx(outputs[1][:1], abs=1e-3)
    onnx = pytest.importorskip("onnx")
    properties = {entry.key: entry.value for entry in onnx.load(str(file)).metadata_props}
    assert json.loads(properties["size"]) == default.experiment.align.size
    assert np.shape(json.loads(properties["template"])) == (5, 2)
    assert properties["model"] == default.identity
    assert "non-commercial" in properties["terms"]
    assert about["refused_above"] == json.loads(properties["refused_above"]) > 1


def test_a_program_of_torch_gives_the_ages_of_the_predictor(default: bundle.Bundle, tmp_path: Path) -> None:
    file = tmp_path / "ages.pt2"
    about = run.export(default, file)
    ages, inputs = both(default)
    extra = {"ageray.json": ""}
    program = torch.export.load(file, extra_files=extra).module()
    assert json.loads(extra["ageray.json"]) == about
    compare(ages, list(program(*(torch.from_numpy(inputs[name]) for name in about["inputs"]))))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zoo:default@1", "zoo:fast"])
def test_the_other_models_that_ship(name: str, tmp_path: Path) -> None:
    model = bundle.load(name)
    file = tmp_path / "ages.onnx"
    run.export(model, file)
    ages, inputs = both(model)
    compare(ages, in_onnxruntime(file, inputs))


def test_models_that_do_not_fit_are_refused(default: bundle.Bundle, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="averages views of several crops or sizes"):
        run.export(bundle.load("zoo:accurate"), tmp_path / "ages.onnx")
    with pytest.raises(UserError, match=r"ends in \.onnx or \.pt2"):
        run.export(default, tmp_path / "ages.pb")
    with pytest.raises(UserError, match="there is no folder"):
        run.export(default, tmp_path / "nowhere" / "ages.onnx")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = Experiment.model_validate(
        {"model": {"name": "baseline", "backbone": "mobilenet_v1"}, "align": {"size": 32}}
    )
    network = build(experiment.model, seed=1, pretrained=False)
    bundle.save(str(tmp_path / "bundle"), network, experiment, {"terms": "of a test"})
    command.main([str(tmp_path / "bundle"), str(tmp_path / "ages.pt2")])
    text = capsys.readouterr().out
    assert "face to posterior, age, interval, difficulty" in text
    assert "32 x 32 pixels; its terms: of a test" in text
    assert (tmp_path / "ages.pt2").is_file()


def test_a_missing_exporter_is_told_before_the_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"needs the package onnxscript: pip install 'ageray\[onnx\]'"):
        command.main(["zoo:no-such-model", "ages.onnx"])
