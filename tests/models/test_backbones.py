"""Backbones: against torchvision's own networks on the same weights, published counts, published
files, least sides.
"""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models._api import WeightsEnum

from ageray.errors import UserError
from ageray.experiment.model import Backbone as Name
from ageray.experiment.model import Baseline
from ageray.models import backbones, googlenet
from ageray.models.build import build
from ageray.models.network import Backbone

# The `num_params` of torchvision's documentation, and the weights of its 1000-way classifier and of
# the auxiliary head counted there.
PUBLISHED: dict[Name, tuple[int, int]] = {
    "resnet18": (11_689_512, 513_000),
    "resnet34": (21_797_672, 513_000),
    "resnet50": (25_557_032, 2_049_000),
    "vgg16": (138_357_544, 4_097_000),
    "googlenet": (6_624_904, 1_025_000),
    "inception_v3": (27_161_264, 2_049_000 + 3_326_696),
    "convnext_tiny": (28_589_128, 769_000),
    "efficientnet_b0": (5_288_548, 1_281_000),
}
FEATURES = {
    "resnet18": 512,
    "resnet34": 512,
    "resnet50": 2048,
    "vgg16": 4096,
    "googlenet": 1024,
    "bvlc_googlenet": 1024,
} | {
    "inception_v3": 2048,
    "convnext_tiny": 768,
    "efficientnet_b0": 1280,
    "mobilenet_v1": 1024,
    "edgeface_s": 304,
    "mobilefacenet": 512,
}
OWN = ("bvlc_googlenet", "mobilenet_v1", "edgeface_s", "mobilefacenet")
LEAST = {"vgg16": 32, "inception_v3": 75, "convnext_tiny": 32, "bvlc_googlenet": 32, "mobilenet_v1": 32} | {
    "edgeface_s": 32,
    "mobilefacenet": 32,
}
SMALL: list[Name] = ["resnet18", "googlenet", "efficientnet_b0"]


def rgb_faces(count: int, side: int, seed: int = 0) -> Tensor:
    """Smooth random pictures in 0..255."""
    coarse = torch.rand(count, 3, 7, 7, generator=torch.Generator().manual_seed(seed)) * 255
    return F.interpolate(coarse, (side, side), mode="bilinear")


# --- against torchvision's own --------------------------------------------------------------------


class Reference:
    """torchvision's own network, whole, with random weights, batch statistics in keeping with them
    and its preset's colours.
    """

    def __init__(self, name: Name) -> None:
        self.name = name
        torch.manual_seed(1)
        heads = {"aux_logits": True, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
        self.network: nn.Module = torchvision.models.get_model(name, weights=None, **heads)
        preset = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"].transforms()
        self._normalise = torchvision.transforms.Normalize(preset.mean, preset.std)
        if heads:
            self.network.transform_input = True  # as torchvision sets it beside published weights
        self._settle(LEAST.get(name, 48))

    def _settle(self, side: int) -> None:
        """One pass that sets every batch statistic: random networks of many layers fade to nothing
        without.
        """
        self.network.eval()
        for layer in self.network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = 1.0
                layer.train()
        self.features(rgb_faces(4, side, seed=5))
        self.network.eval()

    @torch.no_grad()
    def features(self, faces: Tensor) -> Tensor:
        """What the 1000-way classifier receives."""
        seen: list[Tensor] = []
        classifier = [layer for layer in self.network.modules() if isinstance(layer, nn.Linear)][-1]
        assert classifier.out_features == 1000
        handle = classifier.register_forward_pre_hook(lambda _layer, inputs: seen.append(inputs[0]))
        self.network(self._normalise(faces / 255))
        handle.remove()
        return seen[0]


@pytest.fixture(scope="module")
def reference(request: pytest.FixtureRequest) -> Reference:
    return Reference(request.param)


def same(ours: Tensor, theirs: Tensor) -> None:
    assert float(theirs.std()) > 1e-3  # there is something to compare
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))


@pytest.mark.parametrize("reference", PUBLISHED, indirect=True)
def test_published_weights_compute_what_torchvision_computes(reference: Reference) -> None:
    backbone = backbones.make(reference.name).eval()
    backbone.load_backbone(reference.network.state_dict())
    faces = rgb_faces(2, LEAST.get(reference.name, 48) + 6)
    with torch.inference_mode():
        same(backbone(faces), reference.features(faces))


@pytest.mark.parametrize(
    "reference",
    [pytest.param(name, marks=pytest.mark.slow if name == "vgg16" else ()) for name in PUBLISHED],
    indirect=True,
)
def test_imagenet_is_the_same_network(reference: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's route for published weights (other options, auxiliary heads built and thrown
    away), without the download.
    """
    loaded_weights: list[str] = []

    def published(weights: WeightsEnum, *_args: object, **_options: object) -> dict[str, Tensor]:
        loaded_weights.append(weights.name)
        return reference.network.state_dict()

    monkeypatch.setattr(WeightsEnum, "get_state_dict", published)
    backbone = backbones.make(reference.name, imagenet=True).eval()
    assert loaded_weights == ["IMAGENET1K_V1"]
    state, own = reference.network.state_dict(), backbone.state_dict()
    assert all(torch.equal(tensor, state[name.removeprefix("network.")]) for name, tensor in own.items())
    faces = rgb_faces(2, LEAST.get(reference.name, 48))
    with torch.inference_mode():
        same(backbone(faces), reference.features(faces))


def on_meta(name: Name) -> Backbone:
    """Shapes alone, without memory or time for what they hold."""
    with torch.device("meta"):
        return backbones.make(name)


@pytest.mark.parametrize("name", PUBLISHED)
def test_number_of_weights_is_the_published_less_the_classifiers(name: Name) -> None:
    count, classifier = PUBLISHED[name]
    assert sum(parameter.numel() for parameter in on_meta(name).parameters()) == count - classifier


def test_vgg16_keeps_fc6_and_fc7_with_their_dropout() -> None:
    ours = on_meta("vgg16").get_submodule("network.classifier")
    assert [type(layer) for layer in ours.children()] == [
        nn.Linear,
        nn.ReLU,
        nn.Dropout,
        nn.Linear,
        nn.ReLU,
        nn.Dropout,
        nn.Identity,
    ]
    assert {layer.p for layer in ours.modules() if isinstance(layer, nn.Dropout)} == {0.5}


@pytest.mark.parametrize("name", ["googlenet", "inception_v3", "efficientnet_b0"])
def test_pooled_features_have_no_dropout_of_their_own(name: Name) -> None:
    assert not any(isinstance(layer, nn.Dropout) for layer in on_meta(name).modules())


# --- sides and types ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", get_args(Name))
def test_each_takes_its_least_side_and_names_it(name: Name) -> None:
    backbone = on_meta(name).eval()
    assert (backbone.name, backbone.features, backbone.least_side) == (
        name,
        FEATURES[name],
        LEAST.get(name, 16),
    )
    with torch.device("meta"):
        for side in (backbone.least_side, backbone.least_side + 1, 128):
            assert backbone(torch.empty(2, 3, side, side)).shape == (2, backbone.features)
        if name in (
            "vgg16",
            "inception_v3",
            "convnext_tiny",
        ):  # the others reach lower than `align.size`, or further than they say
            with pytest.raises(RuntimeError):
                backbone(torch.empty(2, 3, backbone.least_side - 1, backbone.least_side - 1))


@pytest.mark.parametrize("name", SMALL)
def test_the_network_tells_the_least_side(name: Name) -> None:
    network = build(Baseline(backbone=name))
    assert network.least_side == network.get_backbone().least_side == 16


@pytest.mark.parametrize("name", [*SMALL, "bvlc_googlenet"])
def test_bf16_and_memory_order_change_little(name: Name) -> None:
    torch.manual_seed(2)
    backbone, faces = backbones.make(name), rgb_faces(8, 64)
    with torch.no_grad():
        for layer in backbone.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = 1.0
        backbone(faces)
        expected = backbone.eval()(faces)
        last = backbone.to(memory_format=torch.channels_last)(
            faces.contiguous(memory_format=torch.channels_last)
        )
        same(last, expected)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = backbone(faces).float()
    assert (
        float(F.cosine_similarity(rounded.flatten(), expected.flatten(), 0)) > 0.95
    )  # random layers amplify what is rounded


# --- files ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random weights as torchvision names them, classifier and auxiliary heads with them."""
    folder = tmp_path_factory.mktemp("published")
    paths = {}
    for name in SMALL:
        heads = {"aux_logits": True, "init_weights": False} if name == "googlenet" else {}
        paths[name] = folder / f"{name}.safetensors"
        save_file(torchvision.models.get_model(name, weights=None, **heads).state_dict(), paths[name])
    return paths


@pytest.mark.parametrize("name", SMALL)
def test_a_published_file_is_a_starting_point(name: Name, files: dict[str, Path]) -> None:
    first = build(Baseline(backbone=name, weights=str(files[name])), seed=1)
    again = build(Baseline(backbone=name, weights=str(files[name])), seed=2)
    body = again.get_backbone().state_dict()
    assert all(torch.equal(tensor, body[key]) for key, tensor in first.get_backbone().state_dict().items())
    assert not torch.equal(next(first.head_parameters()), next(again.head_parameters()))


WRONG = [
    ("resnet18", "googlenet"),
    ("resnet34", "resnet18"),
    ("googlenet", "resnet18"),
    ("bvlc_googlenet", "googlenet"),
] + [
    ("convnext_tiny", "efficientnet_b0"),
    ("efficientnet_b0", "resnet18"),
]


@pytest.mark.parametrize(("name", "other"), WRONG)
def test_another_networks_file_is_refused_in_one_line(
    name: Name, other: Name, files: dict[str, Path]
) -> None:
    with pytest.raises(UserError) as caught:
        build(Baseline(backbone=name, weights=str(files[other])))
    text = str(caught.value)
    assert text.startswith(f"model.weights={files[other]}: not weights of {name} (")
    assert text.endswith("; name another file, or none")
    assert "\n" not in text


def test_every_name_of_the_vocabulary_is_one_of_these() -> None:
    assert set(get_args(Name)) == {*PUBLISHED, *OWN} == FEATURES.keys()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="autocast of a GPU has rules of its own")
def test_response_norm_trains_in_bf16_on_a_gpu() -> None:
    norm, x = (
        googlenet.ResponseNorm(16).cuda(),
        torch.randn(2, 16, 4, 4, device="cuda", dtype=torch.bfloat16, requires_grad=True),
    )
    with torch.autocast("cuda", torch.bfloat16):
        y = norm(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_response_norm_does_not_overflow_in_fp16() -> None:
    """The squares of activations above 256 are beyond fp16; the original GoogLeNet has such."""
    x = torch.linspace(-2000, 2000, 2 * 64 * 9).view(2, 64, 3, 3)
    norm = googlenet.ResponseNorm(64)
    half = x.half().requires_grad_()
    normalised = norm(half)
    assert normalised.dtype == torch.float16
    torch.testing.assert_close(normalised.float(), norm(x), rtol=2e-3, atol=0.1)
    (gradient,) = torch.autograd.grad(normalised.float().sum(), half)
    assert gradient.isfinite().all()


def test_the_original_googlenet_trains_in_fp16() -> None:
    """On a CPU autocast to fp16 has the same range as on a GPU."""
    network = googlenet.GoogLeNet().train()
    with torch.autocast("cpu", torch.float16):
        features = network(torch.rand(2, 3, 64, 64) * 255)
    assert features.isfinite().all()
    features.float().sum().backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in network.parameters())  # type: ignore[union-attr]
