"""MobileNetV1: TensorFlow's padding against a naive loop, published files, its age head, blocks
that stay frozen, a bundle."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from ageray import bundle
from ageray.errors import UserError
from ageray.experiment import Experiment, Optimizer
from ageray.experiment.model import Baseline
from ageray.models.baseline import Classifier
from ageray.models.build import build
from ageray.models.decode import classifier_posterior
from ageray.models.mobilenet import MobileNetV1, SameConv2d
from ageray.train.optim import make_optimizer

PUBLISHED = (
    Path(__file__).resolve().parents[2]
    / ".."
    / "shared"
    / "weights"
    / "hse_mobilenet_age_imdbwiki_fp16.safetensors"
)


def published_state(seed: int = 0) -> dict[str, Tensor]:
    """A file as HSE_FaceRec_tf's converted network has it, with random weights."""
    torch.manual_seed(seed)
    backbone = MobileNetV1()
    layers = {"feats": (256, 1024), "age": (100, 256), "gender": (1, 256)}
    state = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    for name, shape in layers.items():
        state |= {
            f"{name}.weight": torch.randn(shape) / shape[1] ** 0.5,
            f"{name}.bias": torch.randn(shape[0]) / 4,
        }
    return state


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("published") / "mobilenet.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in published_state().items()}, path)
    return path


def network_of(file: Path | None, **settings: object) -> Classifier:
    values = {
        "backbone": "mobilenet_v1",
        "hidden": 256,
        "ages": (-3, 120),
        "weights": str(file) if file else "none",
    } | settings
    network = build(Baseline.model_validate(values), seed=3)
    assert isinstance(network, Classifier)
    return network.eval()


def same_padding(image: Tensor, kernel: Tensor, stride: int) -> Tensor:
    """TensorFlow's rule, written out: total padding max((ceil(n / s) - 1) s + 3 - n, 0), the
    smaller half first. One channel, (H, W)."""
    sides = []
    for length in image.shape:
        total = max((-(-length // stride) - 1) * stride + 3 - length, 0)
        sides.append((total // 2, total - total // 2, -(-length // stride)))
    (top, bottom, rows), (left, right, columns) = sides
    padded = F.pad(image, (left, right, top, bottom))
    result = torch.zeros(rows, columns)
    for row in range(rows):
        for column in range(columns):
            window = padded[row * stride : row * stride + 3, column * stride : column * stride + 3]
            result[row, column] = (window * kernel).sum()
    return result


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [(8, 8), (7, 7), (8, 5), (5, 6)])
def test_padding_is_tensorflows(shape: tuple[int, int], stride: int) -> None:
    torch.manual_seed(1)
    layer, image = SameConv2d(1, 1, 3, stride=stride), torch.randn(shape)
    expected = same_padding(image, layer.weight[0, 0], stride) + layer.bias
    torch.testing.assert_close(layer(image[None, None])[0, 0], expected)


def test_published_size_and_sides() -> None:
    """The paper's 4,231,976 weights less 1000 classes and less batch normalisation's scales,
    which the convolutions carry."""
    backbone = MobileNetV1()
    scales = 32 + sum(layer.out_channels for layer in (*backbone.dw, *backbone.pw))
    assert sum(parameter.numel() for parameter in backbone.parameters()) == 4_231_976 - 1_025_000 - scales
    for side in (32, 112, 128, 160, 192, 224):
        assert backbone(torch.zeros(1, 3, side, side)).shape == (1, 1024)
    assert len(backbone.blocks()) == 14


def test_activations_end_at_six() -> None:
    backbone = MobileNetV1()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.mul_(10)
        assert float(backbone(torch.rand(2, 3, 64, 64) * 255).max()) <= 6


def test_a_published_file_reads_bgr(file: Path) -> None:
    """The file's network on a BGR face minus the BGR mean equals ours on the RGB face."""
    network, state = network_of(file), published_state()
    face_B3SS = torch.rand(2, 3, 64, 64) * 255
    bgr_B3SS = face_B3SS.flip(1) - torch.tensor([103.939, 116.779, 123.68]).view(1, 3, 1, 1)
    padded = F.pad(bgr_B3SS, (0, 1, 0, 1))
    expected = F.conv2d(padded, state["conv1.weight"], state["conv1.bias"], stride=2)
    backbone = network.backbone
    assert isinstance(backbone, MobileNetV1)
    torch.testing.assert_close(backbone.conv1(face_B3SS - backbone.mean), expected, rtol=1e-3, atol=1e-2)


def test_the_age_head_comes_with_the_file(file: Path) -> None:
    network, state = network_of(file).requires_grad_(False), published_state()
    assert network.hidden is not None
    features_BD = torch.rand(5, 1024)
    hidden = F.relu(features_BD @ state["feats.weight"].T + state["feats.bias"])
    logits_BK = network.head(F.relu(network.hidden(features_BD)))
    torch.testing.assert_close(logits_BK[:, 3:103], hidden @ state["age.weight"].T + state["age.bias"])
    lowest = float(state["age.bias"].min())
    for beyond in (logits_BK[:, :3], logits_BK[:, 103:]):
        assert beyond.unique().numel() == 1
        assert float(beyond[0, 0]) < lowest - 3
    posterior_BK = classifier_posterior({"logits": logits_BK})
    assert float(posterior_BK[:, 3:103].sum(-1).min()) > 0.97


def test_a_narrow_range_takes_the_middle_of_the_head(file: Path) -> None:
    network, state = network_of(file, ages=(18, 60)), published_state()
    torch.testing.assert_close(network.head.weight, state["age.weight"][18:61])


@pytest.mark.parametrize("settings", [{"weights_head": False}, {"hidden": 128}, {"classifier": "coral"}])
def test_the_age_layer_starts_anew_where_it_does_not_fit(file: Path, settings: dict[str, object]) -> None:
    network, state = network_of(file, **settings), published_state()
    assert torch.equal(network.backbone.get_parameter("dw.5.weight"), state["dw.5.weight"])
    assert float(network.head.weight.abs().max()) < 0.1  # random, near 0; the file's is ten times as wide


def test_without_a_hidden_layer_it_is_a_backbone_like_the_others(file: Path) -> None:
    network = network_of(file, hidden=0)
    outputs = network({"face": torch.zeros(2, 3, 64, 64)})
    assert outputs["embedding"].shape == (2, 1024)
    assert outputs["logits"].shape == (2, 124)


def test_another_networks_file_is_refused_in_one_line(tmp_path: Path) -> None:
    state = published_state()
    del state["pw.4.weight"]
    save_file(state, tmp_path / "broken.safetensors")
    with pytest.raises(
        UserError, match=r"model.weights=.*broken.safetensors: not weights of mobilenet_v1 \("
    ):
        network_of(tmp_path / "broken.safetensors")


def test_head_trains_at_its_rate_and_frozen_blocks_not_at_all(file: Path) -> None:
    network = network_of(file)
    config = Optimizer(lr=4e-4, body_lr=4e-5, frozen_blocks=4)
    rates = {}
    for group in make_optimizer(network, network.head_parameters(), config).param_groups:
        rates |= {id(parameter): group["lr"] for parameter in group["params"]}
    first = ["conv1", "dw.0", "dw.1", "dw.2", "pw.0", "pw.1", "pw.2"]
    for name, parameter in network.named_parameters():
        layer = name.removeprefix("backbone.").rsplit(".", 1)[0]
        assert parameter.requires_grad == (layer not in first), name
        if layer in first:
            assert id(parameter) not in rates, name
        else:
            assert rates[id(parameter)] == (4e-4 if layer in ("hidden", "head") else 4e-5), name
    make_optimizer(network, network.head_parameters(), Optimizer())
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_too_many_frozen_blocks_is_a_users_mistake() -> None:
    network = network_of(None)
    with pytest.raises(UserError, match="frozen_blocks=15, but mobilenet_v1 has 14 blocks"):
        make_optimizer(network, network.head_parameters(), Optimizer(frozen_blocks=15))
    torchvisions = build(Baseline())
    with pytest.raises(UserError, match="frozen_blocks=1, but resnet18 has 0 blocks"):
        make_optimizer(torchvisions, torchvisions.head_parameters(), Optimizer(frozen_blocks=1))


def test_a_bundle_of_it_needs_no_starting_file(file: Path, tmp_path: Path) -> None:
    settings = Experiment.model_validate(
        {
            "model": {"name": "baseline", "backbone": "mobilenet_v1", "hidden": 256, "weights": str(file)},
            "align": {"size": 64},
        }
    )
    network = build(settings.model).eval()
    bundle.save(str(tmp_path / "b"), network, settings, {})
    face = {"face": torch.rand(2, 3, 64, 64) * 255}
    torch.testing.assert_close(
        bundle.load(str(tmp_path / "b")).network()(face)["logits"],
        network(face)["logits"],
        rtol=1e-2,
        atol=1e-2,
    )


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the published weights are not here")
def test_the_published_file_fits() -> None:
    network = network_of(PUBLISHED)
    posterior_BK = classifier_posterior(network({"face": torch.rand(2, 3, 128, 128) * 255}))
    assert float(posterior_BK[:, 3:103].sum(-1).min()) > 0.9
