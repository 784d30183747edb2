"""The neighborhood paper's network: against a functional forward pass, counts by derivation, sizes
of Table 1, and that it trains.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from ageray.errors import UserError
from ageray.experiment import Optimizer
from ageray.experiment.model import ResidualCnn as Config
from ageray.losses.neighborhood import neighborhood
from ageray.models.build import build
from ageray.models.decode import bins, classifier_posterior
from ageray.models.network import scaled
from ageray.models.residual_cnn import ResidualBackbone, ResidualUnit
from ageray.train.optim import make_optimizer

UNITS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
LETTERS = Config(name="residual_cnn", depth=18, width=0.125)


def rgb_faces(count: int, side: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 255


def settled(depth: int, width: float, side: int = 48) -> ResidualBackbone:
    """Random weights with batch statistics and affine terms that are not those of a new network."""
    torch.manual_seed(depth)
    backbone = ResidualBackbone(depth, width)
    for layer in backbone.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.3)
    backbone(rgb_faces(4, side, seed=9))
    return backbone.eval()


# --- what it computes -----------------------------------------------------------------------------


def by_hand(state: dict[str, Tensor], depth: int, rgb: Tensor) -> Tensor:
    """Table 1 from the bottom up, from the weights alone."""

    def normed(name: str, x: Tensor) -> Tensor:
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        scale = state[f"{name}.weight"] / torch.sqrt(var + 1e-5)
        return torch.clamp(
            (x - mean[:, None, None]) * scale[:, None, None] + state[f"{name}.bias"][:, None, None], min=0
        )

    def conv(name: str, x: Tensor, stride: int = 1) -> Tensor:
        kernel = state[f"{name}.weight"]
        return F.conv2d(F.pad(x, [kernel.shape[-1] // 2] * 4), kernel, stride=stride)

    x = normed("norm1", conv("conv1", rgb / 128 - 127.5 / 128))
    x = F.max_pool2d(F.pad(x, [1, 1, 1, 1], value=-math.inf), 3, 2)
    for stage, units in enumerate(UNITS[depth]):
        for unit in range(units):
            name, stride = f"stages.{stage}.{unit}", 2 if unit == 0 else 1
            active = x if stage == unit == 0 else normed(f"{name}.norm1", x)
            shortcut = conv(f"{name}.shortcut", active, 2) if unit == 0 else x
            x = shortcut + conv(
                f"{name}.conv2", normed(f"{name}.norm2", conv(f"{name}.conv1", active)), stride
            )
    return F.adaptive_avg_pool2d(normed("norm2", x), 1).flatten(1)


@pytest.mark.parametrize("depth", [18, 34])
@pytest.mark.parametrize("side", [32, 47])
@torch.no_grad()
def test_it_computes_table_1(depth: int, side: int) -> None:
    backbone, faces = settled(depth, 0.25), rgb_faces(2, side)
    expected = by_hand(backbone.state_dict(), depth, faces)
    assert float(expected.std()) > 0.05
    torch.testing.assert_close(backbone(faces), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("depth", [18, 34])
@torch.no_grad()
def test_sizes_of_table_1_at_224(depth: int) -> None:
    backbone = ResidualBackbone(depth, 0.0625).eval()
    sides: list[int] = []

    def note(_layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        sides.extend(tensor.shape[-1] for tensor in (*inputs, output))

    for layer in (backbone.conv1, backbone.stages[0], *backbone.stages[1:]):
        layer.register_forward_hook(note)
    assert backbone(rgb_faces(1, 224)).shape == (1, 32)
    assert sides == [224, 224, 112, 56, 56, 28, 28, 14, 14, 7]


@pytest.mark.parametrize("depth", [18, 34])
def test_layers_and_counts_by_derivation(depth: int) -> None:
    with torch.device("meta"):
        network = build(Config(name="residual_cnn", depth=depth, ages=(0, 99)))
    total, inputs = 3 * 3 * 3 * 64 + 2 * 64, 64
    for stage, (channels, units) in enumerate(zip((64, 128, 256, 512), UNITS[depth], strict=True)):
        for unit in range(units):
            total += (
                9 * inputs * channels + 9 * channels**2 + 2 * channels
            )  # two convolutions, the norm between them
            total += inputs * channels if unit == 0 else 0  # the strided shortcut
            total += 0 if stage == unit == 0 else 2 * inputs  # the norm before both
            inputs = channels
    total += 2 * 512 + 512 * 100 + 100
    assert sum(parameter.numel() for parameter in network.parameters()) == total
    counted = [
        layer
        for layer in network.modules()
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3))
    ]
    assert len(counted) == depth


def test_width_multiplies_every_channel_count() -> None:
    with torch.device("meta"):
        full, half = ResidualBackbone(18).state_dict(), ResidualBackbone(18, 0.5).state_dict()
    assert full.keys() == half.keys()
    for name, tensor in full.items():
        shape = [side // 2 if side >= 64 else side for side in tensor.shape]
        assert list(half[name].shape) == shape, name


@pytest.mark.parametrize(
    ("width", "channels"), [(0.01, 16), (0.125, 16), (0.25, 16), (0.3, 16), (0.35, 24), (0.5, 32), (2, 128)]
)
def test_channels_come_in_eights_and_never_below_16(width: float, channels: int) -> None:
    assert scaled(64, width) == channels


@torch.no_grad()
def test_a_unit_adds_to_its_input_untouched() -> None:
    """Pre-activation: nothing acts after the sum, so negative values pass."""
    unit, x = ResidualUnit(8, 8, 1, first=False), torch.randn(2, 8, 5, 5)
    assert unit.shortcut is None
    nn.init.zeros_(unit.conv2.weight)
    assert torch.equal(unit(x), x)


@torch.no_grad()
def test_the_second_convolution_strides() -> None:
    unit = ResidualUnit(4, 8, 2, first=True)
    assert unit.conv1(torch.zeros(1, 4, 9, 9)).shape == (1, 8, 9, 9)
    assert unit(torch.zeros(1, 4, 9, 9)).shape == (1, 8, 5, 5)


@torch.no_grad()
def test_colours_are_centred_and_scaled() -> None:
    seen: list[Tensor] = []
    backbone = ResidualBackbone(18, 0.0625)
    backbone.conv1.register_forward_pre_hook(lambda _layer, inputs: seen.append(inputs[0]))
    backbone(torch.tensor([0.0, 127.5, 255.0]).view(1, 3, 1, 1).expand(2, 3, 32, 32))
    assert seen[0][0, :, 4, 4].tolist() == [-127.5 / 128, 0.0, 127.5 / 128]


@torch.no_grad()
def test_convolutions_start_by_he_et_al() -> None:
    torch.manual_seed(0)
    for name, parameter in ResidualBackbone(18, 0.5).named_parameters():
        if parameter.ndim == 4 and parameter.numel() > 30_000:
            fan_in = parameter[0].numel()
            assert float(parameter.std()) == pytest.approx(math.sqrt(2 / fan_in), rel=0.02), name
            assert abs(float(parameter.mean())) < 0.1 * math.sqrt(2 / fan_in), name


# --- the whole network ----------------------------------------------------------------------------


@pytest.mark.parametrize("side", [32, 33, 50, 64])
@pytest.mark.parametrize(
    ("classifier", "tensor", "count"), [("softmax", "logits", 101), ("coral", "ordinal_logits", 100)]
)
@torch.inference_mode()
def test_it_takes_any_side_from_32_pixels(side: int, classifier: str, tensor: str, count: int) -> None:
    network = build(
        Config.model_validate({"name": "residual_cnn", "width": 0.125, "classifier": classifier})
    ).eval()
    assert network.least_side == 32
    outputs = network({"face": rgb_faces(2, side)})
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {
        tensor: (2, count),
        "embedding": (2, 64),
    }
    assert outputs.keys() == network.outputs
    posterior = classifier_posterior(outputs)
    torch.testing.assert_close(posterior.sum(-1), torch.ones(2))


@torch.inference_mode()
def test_dropout_is_the_papers_and_acts_before_the_classifier_alone() -> None:
    assert Config(name="residual_cnn").dropout == 0.2
    network, batch = build(LETTERS, seed=0), {"face": rgb_faces(2, 32)}
    network.get_backbone().eval()
    first, second = network(batch), network(batch)
    assert torch.equal(first["embedding"], second["embedding"])
    assert not torch.equal(first["logits"], second["logits"])


def test_a_frozen_body_leaves_the_classifier_to_learn() -> None:
    network = build(LETTERS, seed=0)
    optimizer = make_optimizer(network, network.head_parameters(), Optimizer(name="adam", lr=0.1, body_lr=0))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.train()
    network.get_backbone().eval()
    loss = neighborhood(
        network({"face": rgb_faces(4, 32)})["logits"], torch.tensor([5.0, 20.0, 40.0, 60.0]), bins(LETTERS)
    )
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"head.weight", "head.bias"}


def test_it_learns_four_faces_in_bf16_and_channels_last() -> None:
    network = build(LETTERS.model_copy(update={"dropout": 0.0}), seed=0)
    optimizer = make_optimizer(network, network.head_parameters(), Optimizer(name="adam", lr=3e-3))
    faces = rgb_faces(4, 32).contiguous(memory_format=torch.channels_last)
    age, years = torch.tensor([4.0, 30.0, 50.0, 80.0]), bins(LETTERS)
    for _ in range(40):
        with torch.autocast("cpu", torch.bfloat16):
            logits = network({"face": faces})["logits"]
        optimizer.zero_grad()
        neighborhood(logits, age, years).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        assert float((torch.softmax(logits.float(), -1) @ years - age).abs().mean()) < 5


# --- starting points ------------------------------------------------------------------------------


def test_a_body_of_its_own_is_a_starting_point(tmp_path: Path) -> None:
    """As for other ages: everything but the classifier."""
    trained, file = settled(18, 0.125), tmp_path / "body.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in trained.state_dict().items()}, file)
    body = (
        build(LETTERS.model_copy(update={"weights": str(file), "ages": (0, 50)}), seed=3)
        .get_backbone()
        .state_dict()
    )
    assert all(torch.equal(tensor, body[name]) for name, tensor in trained.state_dict().items())
    with pytest.raises(
        UserError,
        match=r"^model\.weights=.*: not weights of residual_cnn \(.*\); name another file, or none$",
    ):
        build(LETTERS.model_copy(update={"weights": str(file), "depth": 34}))


def test_there_are_no_imagenet_weights() -> None:
    with pytest.raises(
        UserError,
        match=r"^model\.weights=imagenet: there are no published ImageNet weights for residual_cnn; ",
    ):
        build(LETTERS.model_copy(update={"weights": "imagenet"}))
