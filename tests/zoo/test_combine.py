"""Bundles made from bundles: the posterior of an ensemble, the weights of a soup, cards,
mistakes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ageray import bundle, storage
from ageray.errors import UserError
from ageray.experiment import Experiment
from ageray.experiment.model import Decode
from ageray.faces.canvases import face_canvases
from ageray.models.build import build
from ageray.predictor import Predictor
from ageray.synthetic import faces as synthetic_faces
from ageray.zoo import combine, export

MODEL = {"name": "baseline", "backbone": "mobilenet_v1", "hidden": 8}


def make(folder: Path, seed: int, card: dict[str, Any] | None = None, **align: Any) -> str:
    """A bundle of a random network."""
    ages = [0, 60] if seed % 2 else [-5, 70]
    settings = Experiment.model_validate(
        {"model": MODEL | {"ages": ages}, "align": {"size": 48} | align, "train": {"precision": "float32"}}
    )
    network = build(settings.model, seed=seed)
    with torch.no_grad():
        network.get_parameter("head.weight").mul_(20)
    bundle.save(str(folder), network, settings, card or {"name": folder.name})
    return str(folder)


def posterior(model: str) -> np.ndarray[Any, Any]:
    loaded = bundle.load(model)
    face = next(iter(synthetic_faces.faces(1, seed=3, size=110)))
    canvas = face_canvases(face.jpeg(), face.points[None], face.box[None], loaded.experiment.align)
    return Predictor(loaded, "cpu", 1).predict(canvas.pixels, canvas.points, canvas.box).posterior


def test_an_ensemble_of_bundles_averages_their_posteriors(tmp_path: Path) -> None:
    models = [
        make(tmp_path / "a", 1, {"terms": "Not for sale."}),
        make(tmp_path / "b", 2, {"terms": "Cite us."}),
    ]
    combine.ensemble(str(tmp_path / "both"), models, Decode(method="median"), [1, 3])
    loaded = bundle.load(str(tmp_path / "both"))
    assert loaded.experiment.model.ages == (-5, 70)
    assert loaded.experiment.model.decode.method == "median"
    first, second = (posterior(model) for model in models)
    expected = 0.25 * np.pad(first, ((0, 0), (5, 10))) + 0.75 * second
    np.testing.assert_allclose(posterior(str(tmp_path / "both")), expected, atol=1e-4)
    assert loaded.card["terms"] == "Not for sale. Cite us."
    identities = [bundle.load(model).identity for model in models]
    assert [part["identity"] for part in loaded.card["made_of"]] == identities


def test_members_keep_their_size_and_their_standardisation(tmp_path: Path) -> None:
    models = [make(tmp_path / "a", 1, size=64), make(tmp_path / "b", 2, size=48, standardize=True)]
    combine.ensemble(str(tmp_path / "both"), models)
    experiment = bundle.load(str(tmp_path / "both")).experiment
    assert (experiment.align.size, experiment.align.standardize) == (64, False)
    members = experiment.model.members
    assert [(member.size, member.standardize) for member in members] == [(0, False), (48, True)]


def test_a_soup_of_bundles_has_the_mean_weights(tmp_path: Path) -> None:
    models = [make(tmp_path / "a", 1), make(tmp_path / "b", 3)]
    combine.soup(str(tmp_path / "mean"), models)
    states = [bundle.load(model).network().state_dict() for model in (*models, str(tmp_path / "mean"))]
    for name, tensor in states[2].items():
        torch.testing.assert_close(tensor, (states[0][name] + states[1][name]) / 2, atol=1e-3, rtol=1e-3)


def test_the_same_weights_can_look_at_a_face_in_another_way(tmp_path: Path) -> None:
    model = make(tmp_path / "a", 1, {"terms": "Not for sale."})
    words = ["model.decode.flip=false", "model.decode.views=[{size: 32}]", "align.size=64"]
    combine.main(["views", str(tmp_path / "b"), model, *words])
    first, other = bundle.load(model), bundle.load(str(tmp_path / "b"))
    assert other.experiment.align.size == 64
    assert [view.size for view in other.experiment.model.decode.views] == [32]
    assert other.experiment.model_copy(
        update={"align": first.experiment.align, "model": first.experiment.model}
    ) == (first.experiment)
    weights = first.network().state_dict()
    for name, tensor in other.network().state_dict().items():
        assert torch.equal(tensor, weights[name])
    assert other.card["terms"] == "Not for sale."
    assert other.card["made_of"][0]["identity"] == first.identity
    assert np.abs(posterior(model) - posterior(str(tmp_path / "b"))).max() > 1e-4


def test_a_training_starts_from_a_bundle_or_a_run(tmp_path: Path) -> None:
    model = make(tmp_path / "run" / "bundle", 1)
    settings = bundle.load(model).experiment.model
    expected = bundle.load(model).network().state_dict()
    for weights in (model, str(tmp_path / "run"), str(tmp_path / "run" / "bundle" / "model.safetensors")):
        started = build(settings.model_copy(update={"weights": weights}), seed=5).state_dict()
        for name, tensor in expected.items():
            assert torch.equal(started[name], tensor)
    first, last = settings.ages
    moved = settings.model_copy(update={"weights": model, "ages": (first + 5, last + 5)})
    with pytest.raises(UserError, match=r"has model\.ages=\[0, 60\], this model \[5, 65\]; set model\.ages"):
        build(moved)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"model\.weights=.*empty"):
        build(settings.model_copy(update={"weights": str(tmp_path / "empty")}))


def test_a_file_of_weights_is_read_without_looking_for_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(tmp_path / "a", 1)
    settings, looked = bundle.load(model).experiment.model, list[str]()
    monkeypatch.setattr(storage, "exists", looked.append)
    build(settings.model_copy(update={"weights": f"{model}/model.safetensors"}))
    assert not looked


def test_an_ensemble_has_no_levels_of_a_member_and_keeps_its_size(tmp_path: Path) -> None:
    first, second = make(tmp_path / "a", 1), make(tmp_path / "b", 3)
    levels = "model.decode.levels=[{age: 20, share: 0.4}]"
    combine.views(str(tmp_path / "levels"), first, ["model.decode.method=median", levels])
    combine.ensemble(str(tmp_path / "both"), [str(tmp_path / "levels"), second])
    decode = bundle.load(str(tmp_path / "both")).experiment.model.decode
    assert (decode.method, decode.levels) == ("median", ())
    with pytest.raises(UserError, match=r"align\.size=96: the members of an ensemble were made for their"):
        combine.views(str(tmp_path / "wide"), str(tmp_path / "both"), ["align.size=96"])


def test_views_change_nothing_else(tmp_path: Path) -> None:
    model = make(tmp_path / "a", 1)
    with pytest.raises(UserError, match=r"train\.seed=3: changes more than how a face is scored"):
        combine.views(str(tmp_path / "b"), model, ["train.seed=3"])
    with pytest.raises(UserError, match=r"model\.decode\.flip: 'maybe' is not allowed"):
        combine.views(str(tmp_path / "b"), model, ["model.decode.flip=maybe"])
    with pytest.raises(UserError, match=r"model\.decode\.method=gallery: .* has no gallery"):
        combine.views(str(tmp_path / "b"), model, ["model.decode.method=gallery"])
    with pytest.raises(UserError, match=r"views: takes neither --weight nor --decode"):
        combine.main(["views", str(tmp_path / "b"), model, "--decode", "median"])
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("kind", ["crop", "ages", "one", "weights", "nested", "there"])
def test_what_cannot_be_combined(kind: str, tmp_path: Path) -> None:
    first, second = make(tmp_path / "a", 1), make(tmp_path / "b", 2)
    if kind == "crop":
        wide = make(tmp_path / "c", 3, coverage=1.5)
        with pytest.raises(
            UserError, match="align.coverage=1.5, but .*a has 1.0; members of an ensemble see"
        ):
            combine.ensemble(str(tmp_path / "out"), [first, wide])
    elif kind == "ages":
        with pytest.raises(UserError, match="differs from .* a soup is of trainings of one configuration"):
            combine.soup(str(tmp_path / "out"), [first, second])
    elif kind == "one":
        with pytest.raises(UserError, match="name two or more"):
            combine.soup(str(tmp_path / "out"), [first])
    elif kind == "weights":
        with pytest.raises(UserError, match="one number above 0 for each of the 2 models"):
            combine.ensemble(str(tmp_path / "out"), [first, second], None, [1.0])
    elif kind == "nested":
        combine.ensemble(str(tmp_path / "out"), [first, second])
        with pytest.raises(UserError, match="is an ensemble itself"):
            combine.ensemble(str(tmp_path / "more"), [str(tmp_path / "out"), first])
    else:
        with pytest.raises(UserError, match="there is a bundle already"):
            combine.ensemble(first, [first, second])


def test_the_command_line_tells_a_mistake_in_one_line(tmp_path: Path) -> None:
    words = [
        sys.executable,
        "-m",
        "ageray.zoo.combine",
        "soup",
        str(tmp_path / "out"),
        "zoo:nobody",
        "zoo:none",
    ]
    result = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("error: zoo:nobody: no such model in the zoo; it has zoo:")
    assert result.stderr.count("\n") == 1


def test_exporting_tells_a_mistake(tmp_path: Path) -> None:
    model = make(tmp_path / "a", 1)
    with pytest.raises(UserError, match="there is no folder .*nowhere; make it first"):
        export.main([model, str(tmp_path / "nowhere" / "a.onnx")])


def test_without_the_package_exporting_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"pip install 'ageray\[onnx\]'"):
        export.main([make(tmp_path / "a", 1), str(tmp_path / "a.onnx")])
