"""EdgeFace-S against timm's edgenext_small, MobileFaceNet, and where both start from a published
file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ageray.errors import UserError
from ageray.experiment.model import Baseline
from ageray.models import backbones
from ageray.models.build import build
from ageray.models.edgeface import EdgeFace, FourierPosition
from ageray.models.mobilefacenet import MobileFaceNet
from ageray.models.network import Backbone


def fixed_state(network: nn.Module) -> dict[str, Tensor]:
    """Weights that are the same everywhere: waves over the positions of each tensor, small,
    scales about 1."""
    state = {}
    for order, (name, tensor) in enumerate(network.state_dict().items()):
        place = torch.arange(tensor.numel(), dtype=torch.float64)
        wave = torch.sin(place * place * 0.37 + order).view(tensor.shape)
        scale = 0.02 if tensor.ndim == 1 else (8.0 / tensor[0].numel()) ** 0.5
        is_scale = (
            name.endswith(("norm.weight", "norm_xca.weight")) or "gamma" in name or "temperature" in name
        )
        state[name] = ((1 + 0.2 * wave) if is_scale else scale * wave).float()
    return state


def fixed_faces(side: int) -> Tensor:
    """Two pictures of waves, (2, 3, side, side) in 0..255."""
    place = torch.arange(2 * 3 * side * side, dtype=torch.float64)
    return (127.5 + 127.5 * torch.sin(place * 0.011 + (place * 0.00037).sin())).view(2, 3, side, side).float()


def test_edgeface_computes_what_timm_computes() -> None:
    """The expected numbers are those of timm 1.0.31's `edgenext_small` with low-rank linear
    layers."""
    backbone = EdgeFace().eval()
    backbone.load_state_dict(fixed_state(backbone))
    with torch.inference_mode():
        large, small = backbone(fixed_faces(112)), backbone(fixed_faces(96))
    torch.testing.assert_close(large[0, :4], torch.tensor(LARGE_FIRST), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(large[1, 100:104], torch.tensor(LARGE_SECOND), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(small[0, :4], torch.tensor(SMALL_FIRST), rtol=1e-3, atol=1e-3)


LARGE_FIRST = (0.0900, 0.8074, -0.1785, -1.6562)
LARGE_SECOND = (-1.6379, 1.1145, -1.1763, -0.1476)
SMALL_FIRST = (-0.0953, 0.8585, -0.0029, -1.6973)


def test_a_position_is_told_by_its_share_of_the_map() -> None:
    position = FourierPosition(8).eval()
    with torch.no_grad():
        position.token_projection.weight.copy_(torch.eye(64)[:8, :, None, None])
        position.token_projection.bias.zero_()
    small, large = position(4, 6)[0], position(8, 6)[0]
    assert small.shape == (8, 4, 6)
    # the second of four rows is the fourth of eight
    torch.testing.assert_close(small[:, 1], large[:, 3], atol=1e-4, rtol=0)
    assert float((small[:, 0] - small[:, 1]).abs().max()) > 0.1


@pytest.mark.parametrize("side", [96, 112, 128, 160, 192, 224])
@pytest.mark.parametrize("name", ["edgeface_s", "mobilefacenet"])
def test_any_side(name: str, side: int) -> None:
    with torch.device("meta"):
        backbone = backbones.make(name).eval()  # type: ignore[arg-type]
        assert backbone(torch.empty(2, 3, side, side)).shape == (2, backbone.features)


def test_a_larger_face_keeps_the_scale_of_the_pooled_features() -> None:
    """The global convolution's weights are interpolated: their sum, what an even map gives,
    stays nearly the same."""
    backbone = MobileFaceNet().eval()
    with torch.no_grad():
        backbone.gd.weight.copy_(torch.rand_like(backbone.gd.weight))
        for side in (128, 224):
            even = torch.full((1, 3, side, side), 90.0)
            small = backbone(torch.full((1, 3, 112, 112), 90.0))
            ratio = float(backbone(even).norm() / small.norm())
            assert 0.7 < ratio < 1.4, side


@pytest.mark.parametrize(
    ("name", "head"), [("edgeface_s", "head.fc.linear1.weight"), ("mobilefacenet", "head.0.weight")]
)
def test_a_published_file_is_a_starting_point(name: str, head: str, tmp_path: Path) -> None:
    backbone = backbones.make(name)  # type: ignore[arg-type]
    state = {name: tensor.half() for name, tensor in published_names(backbone).items()}
    save_file(state | {head: torch.zeros(3)}, tmp_path / "face.safetensors")
    network = build(
        Baseline.model_validate(
            {"name": "baseline", "backbone": name, "weights": str(tmp_path / "face.safetensors")}
        )
    )
    for key, tensor in backbone.state_dict().items():
        torch.testing.assert_close(network.get_backbone().state_dict()[key], tensor, rtol=1e-2, atol=1e-3)
    del state[next(iter(state))]
    save_file(state, tmp_path / "face.safetensors")
    with pytest.raises(UserError, match=f"not weights of {name}"):
        build(
            Baseline.model_validate(
                {"name": "baseline", "backbone": name, "weights": str(tmp_path / "face.safetensors")}
            )
        )


def published_names(backbone: Backbone) -> dict[str, Tensor]:
    """The backbone's tensors under the names of its published file."""
    renamed = {}
    for name, tensor in backbone.state_dict().items():
        if name.startswith("norm."):
            name = "head." + name
        renamed[name.replace("bottlenecks.", "blocks.")] = tensor
    return renamed


@pytest.mark.parametrize(("name", "count"), [("edgeface_s", 5), ("mobilefacenet", 17)])
def test_blocks_start_at_the_input(name: str, count: int) -> None:
    backbone = backbones.make(name)  # type: ignore[arg-type]
    blocks = backbone.blocks()
    assert len(blocks) == count
    first = next(backbone.parameters())
    assert any(parameter is first for parameter in blocks[0].parameters())
