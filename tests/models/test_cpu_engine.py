"""Networks translated for ONNX Runtime against the same networks in torch."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import nn

from ageray.experiment.model import Baseline, ResidualCnn
from ageray.models import cpu_engine
from ageray.models.build import build
from ageray.models.network import AgeNetwork


def shipped_kind(**options: Any) -> AgeNetwork:
    """The kind of network that ships: MobileNetV1 with a hidden layer."""
    return build(Baseline(name="baseline", backbone="mobilenet_v1", weights="none", **options), seed=1).eval()


@pytest.mark.parametrize("options", [{"hidden": 32}, {"hidden": 0, "classifier": "or_cnn"}])
def test_equal_tensors_for_any_batch_and_side(options: dict[str, Any]) -> None:
    """Odd sides too: TensorFlow's padding depends on them."""
    network = shipped_kind(**options)
    engine = cpu_engine.for_cpu(network, 1)
    assert engine is not network
    for count, side in ((3, 64), (1, 47), (2, 33)):
        batch = {"face": torch.rand(count, 3, side, side) * 255, "points": torch.zeros(count, 5, 2)}
        batch["face"] = batch["face"].contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            expected, outputs = network(batch), engine(batch)
        assert outputs.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(outputs[name], tensor, rtol=1e-5, atol=1e-5)


def test_dropout_is_off() -> None:
    network = shipped_kind(hidden=32, dropout=0.9)
    engine = cpu_engine.for_cpu(network, 1)
    batch = {"face": torch.rand(1, 3, 64, 64) * 255}
    torch.testing.assert_close(engine(batch), engine(batch), rtol=0, atol=0)


def test_other_layers_stay_in_torch() -> None:
    network = build(ResidualCnn(name="residual_cnn"), seed=1)
    assert cpu_engine.for_cpu(network, 1) is network


@pytest.mark.parametrize(
    "layer",
    [nn.Conv2d(3, 4, 3, padding="same"), nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.GELU()],
)
def test_a_layer_with_other_options_stays_in_torch(layer: nn.Module) -> None:
    network = shipped_kind(hidden=32)
    network.get_backbone().conv1 = layer
    assert cpu_engine.for_cpu(network, 1) is network


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_without_the_packages_torch_computes(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = shipped_kind(hidden=32)
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(cpu_engine, "find_spec", lambda name: None if name == package else find_spec(name))
    assert cpu_engine.for_cpu(network, 1) is network
