"""Weights kept in bf16: outputs equal in every bit to autocast with float32 weights."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ageray import config
from ageray.models.bf16_weights import keep_bf16
from ageray.models.build import build
from ageray.models.network import AgeNetwork

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SIDE = 80  # of Inception-v3 the least is 75


def network_of(recipe: str, *words: str) -> AgeNetwork:
    experiment = config.load([str(CONFIGS / f"{recipe}.yaml")], ["model.weights=none", *words])
    return build(experiment.model, seed=0).eval().requires_grad_(False)


def outputs(network: AgeNetwork, side: int = SIDE) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    face = torch.rand(3, 3, side, side, generator=draw) * 255
    batch = {
        "face": face.contiguous(memory_format=torch.channels_last),
        "points": torch.rand(3, 5, 2, generator=draw) * side,
    }
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        return network.detailed(batch)


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("default", ["model.weights=none"]),
        ("two_tails", ["model.weights=none"]),
        ("baseline", ["model.backbone=mobilefacenet"]),
        ("baseline", ["model.backbone=edgeface_s"]),
        ("baseline", ["model.backbone=resnet18", "model.classifier=coral"]),
        ("googlenet", ["model.weights=none"]),
        ("cluster_cnn", ["model.assignment=nearest"]),
        ("cluster_cnn", ["model.assignment=mixture"]),
        ("neighborhood", ["model.width=0.25"]),
        ("siamese", ["model.backbone=resnet18"]),
        ("deep_embedding", ["model.backbone=resnet18"]),
        ("dhaa", ["model.width=0.25"]),
    ],
)
def test_outputs_are_those_of_autocast(recipe: str, words: list[str]) -> None:
    network = network_of(recipe, *words)
    expected = outputs(network)
    kept = copy.deepcopy(network)
    keep_bf16(kept)
    for name, tensor in outputs(kept).items():
        assert tensor.dtype == expected[name].dtype, name
        assert torch.equal(tensor, expected[name]), name


def test_only_convolutions_and_linear_layers_are_turned() -> None:
    network = network_of("dhaa", "model.width=0.25")
    keep_bf16(network)
    kinds = {}
    for layer in network.modules():
        for parameter in layer.parameters(recurse=False):
            kinds[type(layer)] = parameter.dtype
    assert kinds == {
        nn.Conv2d: torch.bfloat16,
        nn.Linear: torch.bfloat16,
        nn.BatchNorm2d: torch.float32,
        nn.LSTM: torch.float32,
    }
    for buffer in network.buffers():
        assert buffer.dtype != torch.bfloat16


def test_layers_that_compute_in_float32_stay() -> None:
    network = network_of("siamese", "model.backbone=resnet18")
    keep_bf16(network)
    assert network.get_submodule("embedding").weight.dtype == torch.float32
    assert network.get_submodule("gender_embedding").weight.dtype == torch.float32
