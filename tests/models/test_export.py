"""ONNX files against the network in torch, by onnxruntime; what a network costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ageray.errors import UserError
from ageray.experiment import Experiment
from ageray.faces import geometry
from ageray.models import cost
from ageray.models.build import build
from ageray.models.export import FacesToAges, export

MOBILE = {"name": "baseline", "backbone": "mobilenet_v1", "hidden": 16, "ages": [-5, 80]}
MEMBERS = [{"model": MOBILE | {"ages": [0, 70]}, "size": 32}, {"model": MOBILE, "standardize": True}]
FACES = 3


def experiment_of(model: dict[str, Any], **align: Any) -> Experiment:
    return Experiment.model_validate({"model": model, "align": {"size": 48} | align})


LEVELS = [{"age": 0, "share": 0.3}, {"age": 80, "share": 0.7}]
MODELS = {
    "median": experiment_of(MOBILE | {"decode": {"method": "median", "levels": LEVELS}}, standardize=True),
    "ensemble": experiment_of({"name": "ensemble", "ages": [-5, 80], "members": MEMBERS}),
    "edgeface_s": experiment_of({"name": "baseline", "backbone": "edgeface_s"}),
    "mobilefacenet": experiment_of({"name": "baseline", "backbone": "mobilefacenet"}),
    "bvlc_googlenet": experiment_of({"name": "cluster_cnn", "head": "plain"}),
    "resnet18": experiment_of({"name": "baseline"}),
    "dhaa": experiment_of({"name": "dhaa"}),
}
QUICK = ("median", "ensemble")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in MODELS]
)
def test_onnxruntime_gives_the_same_ages(name: str, tmp_path: Path) -> None:
    """Three faces through a file that was traced with two."""
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    experiment = MODELS[name]
    network = build(experiment.model, seed=1, pretrained=False).eval()
    file = tmp_path / "ages.onnx"
    export(network, experiment, file)
    side = experiment.align.size
    inputs = {"face": torch.rand(FACES, 3, side, side) * 255}
    if network.reads_points:
        inputs["points"] = geometry.template(side).expand(FACES, 5, 2) + torch.rand(FACES, 5, 2)
    session = runtime.InferenceSession(str(file))
    assert [each.name for each in session.get_inputs()] == list(inputs)
    assert [each.name for each in session.get_outputs()] == ["posterior", "age"]
    posterior, age = session.run(None, {key: value.numpy() for key, value in inputs.items()})
    with torch.inference_mode():
        expected, years = FacesToAges(network, experiment)(**inputs)
    np.testing.assert_allclose(posterior, expected.numpy(), atol=1e-4)
    np.testing.assert_allclose(age, years.numpy(), atol=1e-3)


def test_the_exported_age_is_that_of_both_mirror_images() -> None:
    experiment = MODELS["median"]
    network = build(experiment.model, seed=1).eval()
    with torch.inference_mode():
        network.get_parameter("head.weight").mul_(100)
        face = torch.rand(2, 3, 48, 48) * 255
        ages = FacesToAges(network, experiment)
        torch.testing.assert_close(ages(face)[1], ages(face.flip(-1))[1], atol=1e-3, rtol=0)
        alone = network({"face": face})["logits"].softmax(-1)
        assert float((ages(face)[0] - alone).abs().max()) > 1e-5


def test_a_gallery_is_not_exported() -> None:
    experiment = experiment_of({"name": "siamese", "backbone": "resnet18"})
    with pytest.raises(UserError, match="model 'siamese' takes ages from a gallery"):
        FacesToAges(build(experiment.model), experiment)


def test_operations_are_those_of_the_layers() -> None:
    """MobileNetV1 at 48 pixels, counted by hand: two for each multiplication and addition."""
    experiment = MODELS["median"]
    network = build(experiment.model, seed=1)
    side, channels, total = 24, 32, 3 * 9 * 32 * 24 * 24
    outputs = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
    for index, out in enumerate(outputs):
        if index in (1, 3, 5, 11):
            side = -(-side // 2)
        total += side * side * (9 * channels + channels * out)
        channels = out
    total += 1024 * 16 + 16 * 86
    assert cost.flop(network, experiment) == 2 * total
    assert cost.parameters(network) == sum(tensor.numel() for tensor in network.parameters())


def test_a_rate_is_measured() -> None:
    experiment = MODELS["median"]
    measured = cost.measure(build(experiment.model, seed=1), experiment, batch=2, rounds=1)
    assert measured.rate > 0
    assert measured.threads == torch.get_num_threads()
    assert measured.flop == cost.flop(build(experiment.model, seed=1), experiment)
