"""Networks: against independent forward passes, published counts and files; starting points and
what is refused.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from ageray.errors import UserError
from ageray.experiment.model import Baseline, ClusterCnn, DeepEmbedding, Model, ResidualCnn
from ageray.models.build import build
from ageray.models.decode import bins, classifier_posterior, decode
from ageray.models.googlenet import GoogLeNet, ResponseNorm

BVLC = Path(__file__).resolve().parents[2] / ".." / "shared" / "weights" / "googlenet_bvlc_fp16.safetensors"
RESIDUAL, EMBEDDING = (
    ResidualCnn(name="residual_cnn", width=0.25),
    DeepEmbedding(name="deep_embedding", backbone="resnet18"),
)
MODELS: list[Model] = [Baseline(), ClusterCnn(name="cluster_cnn", head="plain"), RESIDUAL, EMBEDDING]
INCEPTIONS = ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")


def small_config(name: str, **changes: Any) -> Model:
    return (
        Baseline(**changes) if name == "baseline" else ClusterCnn(name="cluster_cnn", head="plain", **changes)
    )


def rgb_faces(count: int, side: int, seed: int = 0) -> Tensor:
    """Smooth random pictures in 0..255."""
    coarse = torch.rand(count, 3, 7, 7, generator=torch.Generator().manual_seed(seed)) * 255
    return F.interpolate(coarse, (side, side), mode="bilinear")


# --- response normalisation -----------------------------------------------------------------------


def torch_norm(x: Tensor, alpha: float = 1e-4) -> Tensor:
    return F.local_response_norm(x, 5, alpha=alpha, beta=0.75, k=1.0)


@pytest.mark.parametrize("channels", [1, 4, 5, 64, 192])
def test_response_norm_equals_torch(channels: int) -> None:
    x = torch.randn(2, channels, 4, 3, generator=torch.Generator().manual_seed(channels)) * 200
    ours = ResponseNorm(channels)(x)
    torch.testing.assert_close(ours, torch_norm(x), rtol=1e-5, atol=1e-4)
    assert float((ours - x).abs().max()) > 1  # at this size the normalisation shows


def test_response_norm_gradient_in_float64() -> None:
    x = (torch.randn(2, 7, 2, 2, generator=torch.Generator().manual_seed(1)) * 3).double().requires_grad_()
    assert torch.autograd.gradcheck(ResponseNorm(7, alpha=0.5).double(), (x,))


@pytest.mark.parametrize("channels", [3, 64])
def test_response_norm_gradient_equals_autograd(channels: int) -> None:
    generator = torch.Generator().manual_seed(2)
    x = (torch.randn(2, channels, 5, 4, generator=generator) * 200).requires_grad_()
    incoming = torch.randn(x.shape, generator=generator)
    (ours,) = torch.autograd.grad(ResponseNorm(channels)(x), x, incoming)
    (theirs,) = torch.autograd.grad(torch_norm(x), x, incoming)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


# --- GoogLeNet ------------------------------------------------------------------------------------


def caffe_googlenet(weights: dict[str, Tensor], rgb: Tensor) -> Tensor:
    """Pooled features by Caffe's deploy.prototxt, layer by layer in its own order, on BGR input."""

    def conv(name: str, x: Tensor, stride: int = 1) -> Tensor:
        kernel = weights[f"{name}.weight"].float()
        return F.relu(F.conv2d(x, kernel, weights[f"{name}.bias"].float(), stride, kernel.shape[-1] // 2))

    x = rgb.flip(1) - torch.tensor([104.0, 117.0, 123.0]).view(1, 3, 1, 1)
    x = torch_norm(F.max_pool2d(conv("conv1_7x7_s2", x, 2), 3, 2, ceil_mode=True))
    x = conv("conv2_3x3", conv("conv2_3x3_reduce", x))
    x = F.max_pool2d(torch_norm(x), 3, 2, ceil_mode=True)
    for block in INCEPTIONS:
        if block in ("4a", "5a"):
            x = F.max_pool2d(x, 3, 2, ceil_mode=True)
        layer = f"inception_{block}_"
        branches = [conv(layer + "1x1", x)]
        branches += [conv(layer + size, conv(f"{layer}{size}_reduce", x)) for size in ("3x3", "5x5")]
        branches += [conv(layer + "pool_proj", F.max_pool2d(x, 3, 1, 1))]
        x = torch.cat(branches, 1)
    return F.adaptive_avg_pool2d(x, 1).flatten(1)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the form in which BVLC's are published: Caffe's names, BGR, float16, with
    the 1000-way classifier.
    """
    network = GoogLeNet()
    for parameter in network.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, std=0.2)
    state = {name.removeprefix("layers."): tensor.half() for name, tensor in network.state_dict().items()}
    state["conv1_7x7_s2.weight"] = state["conv1_7x7_s2.weight"].flip(1).contiguous()
    state |= {
        "loss3_classifier.weight": torch.zeros(1000, 1024).half(),
        "loss3_classifier.bias": torch.zeros(1000).half(),
    }
    file = tmp_path_factory.mktemp("weights") / "googlenet.safetensors"
    save_file(state, file)
    return file


def googlenet(weights: Path) -> GoogLeNet:
    backbone = build(ClusterCnn(name="cluster_cnn", weights=str(weights))).eval().backbone
    assert isinstance(backbone, GoogLeNet)
    return backbone


def test_googlenet_has_the_published_number_of_weights() -> None:
    network = GoogLeNet()
    assert sum(parameter.numel() for parameter in network.parameters()) == 5_973_552
    assert sum(isinstance(layer, nn.Conv2d) for layer in network.modules()) == 57


@pytest.mark.parametrize("side", [32, 33, 50, 64, 96, 128, 224])
@torch.inference_mode()
def test_googlenet_takes_any_side_from_32_pixels(side: int) -> None:
    features = GoogLeNet()(rgb_faces(2, side))
    assert features.shape == (2, 1024)
    assert bool(torch.isfinite(features).all())


@pytest.mark.parametrize("side", [64, 75])
@torch.inference_mode()
def test_googlenet_computes_what_caffe_computes(published: Path, side: int) -> None:
    faces = rgb_faces(2, side)
    expected = caffe_googlenet(load_file(published), faces)
    assert float(expected.std()) > 0.01
    torch.testing.assert_close(
        googlenet(published)(faces), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())
    )


@pytest.fixture(scope="module")
def bvlc() -> Path:
    if not BVLC.is_file():
        pytest.skip("BVLC's weights are not at hand")
    return BVLC


def test_first_layer_of_bvlc_weights_by_hand(bvlc: Path) -> None:
    """One response of conv1, summed pixel by pixel from the file's BGR kernel over the BGR
    picture.
    """
    faces, seen = rgb_faces(1, 64), list[Tensor]()
    backbone = googlenet(bvlc)
    backbone.layers["conv1_7x7_s2"].register_forward_hook(lambda _layer, _inputs, output: seen.append(output))
    with torch.inference_mode():
        backbone(faces)
    file = load_file(bvlc)
    kernel, bias = file["conv1_7x7_s2.weight"].double().numpy(), file["conv1_7x7_s2.bias"].double().numpy()
    rgb = faces[0].double().numpy()
    blue_green_red = np.stack([rgb[2] - 104, rgb[1] - 117, rgb[0] - 123])
    for filter_, row, column in ((0, 9, 20), (17, 15, 4), (63, 28, 28)):
        patch = blue_green_red[:, 2 * row - 3 : 2 * row + 4, 2 * column - 3 : 2 * column + 4]
        by_hand = float((kernel[filter_] * patch).sum() + bias[filter_])
        assert float(seen[0][0, filter_, row, column]) == pytest.approx(by_hand, rel=1e-3, abs=0.05)


@torch.inference_mode()
def test_bvlc_weights_compute_what_caffe_computes(bvlc: Path) -> None:
    faces = rgb_faces(2, 96)
    expected = caffe_googlenet(load_file(bvlc), faces)
    torch.testing.assert_close(
        googlenet(bvlc)(faces), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())
    )


# --- ResNet-18 ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def resnet_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in torchvision's form."""
    file = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    save_file(torchvision.models.resnet18().state_dict(), file)
    return file


@torch.inference_mode()
def test_baseline_is_torchvisions_resnet18(resnet_file: Path) -> None:
    reference = torchvision.models.resnet18()
    reference.load_state_dict(load_file(resnet_file))
    reference.fc = nn.Identity()
    faces = rgb_faces(2, 64)
    normalise = torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    network = build(Baseline(weights=str(resnet_file))).eval()
    torch.testing.assert_close(
        network({"face": faces})["embedding"], reference.eval()(normalise(faces / 255)), rtol=1e-3, atol=1e-3
    )


@torch.inference_mode()
def test_imagenet_is_torchvisions_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resnet_file: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(load_file(resnet_file), tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth")
    ours = build(Baseline(weights="imagenet")).state_dict()
    for name, tensor in load_file(resnet_file).items():
        if not name.startswith("fc."):
            assert torch.equal(ours[f"backbone.network.{name}"], tensor)


# --- the whole network ----------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "features"), [("baseline", 512), ("cluster_cnn", 1024)])
@pytest.mark.parametrize(("ages", "bins"), [((0, 100), 101), ((-15, 120), 136)])
@torch.inference_mode()
def test_shapes_of_the_named_tensors(name: str, features: int, ages: tuple[int, int], bins: int) -> None:
    network = build(small_config(name, ages=ages)).eval()
    outputs = network({"face": rgb_faces(3, 64), "points": torch.zeros(3, 5, 2)})
    assert {key: tuple(tensor.shape) for key, tensor in outputs.items()} == {
        "logits": (3, bins),
        "embedding": (3, features),
    }
    assert outputs.keys() == network.outputs


@pytest.mark.parametrize("config", MODELS, ids=lambda config: config.name)
def test_head_parameters_are_the_classifier_and_nothing_else(config: Model) -> None:
    network = build(config)
    head = {id(parameter) for parameter in network.head_parameters()}
    names = [name for name, parameter in network.named_parameters() if id(parameter) in head]
    assert names == ["head.weight", "head.bias"]
    assert len(head) == 2


@pytest.mark.parametrize("config", MODELS, ids=lambda config: config.name)
def test_the_seed_fixes_the_weights_and_leaves_the_global_generator_alone(config: Model) -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first = build(config, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12)
    again, other = build(config, seed=5).state_dict(), build(config, seed=6).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.state_dict().items())
    assert not torch.equal(first.head.weight, other["head.weight"])
    deep = [name for name in other if name.startswith("backbone.") and other[name].ndim == 4]
    assert not any(torch.equal(again[name], other[name]) for name in deep)


@torch.inference_mode()
def test_dropout_acts_in_training_alone() -> None:
    network, faces = build(Baseline(dropout=0.5), seed=0), {"face": rgb_faces(2, 32)}
    network.backbone.eval()
    assert not torch.equal(network(faces)["logits"], network(faces)["logits"])
    network.eval()
    assert torch.equal(network(faces)["logits"], network(faces)["logits"])


# --- binary questions -----------------------------------------------------------------------------


@pytest.mark.parametrize("classifier", ["or_cnn", "coral"])
@pytest.mark.parametrize("ages", [(0, 100), (-15, 120)])
@torch.inference_mode()
def test_ordinal_classifiers_give_a_posterior(classifier: str, ages: tuple[int, int]) -> None:
    config = Baseline.model_validate({"classifier": classifier, "ages": ages})
    network = build(config, seed=0).eval()
    nn.init.normal_(network.head.weight, std=0.2)  # answers that contradict each other, for or_cnn
    outputs = network({"face": rgb_faces(4, 32)})
    count = ages[1] - ages[0] + 1
    assert network.outputs == outputs.keys() == {"ordinal_logits", "embedding"}
    assert outputs["ordinal_logits"].shape == (4, count - 1)
    posterior = classifier_posterior(outputs)
    assert posterior.shape == (4, count)
    assert float(posterior.min()) >= 0
    torch.testing.assert_close(posterior.sum(-1), torch.ones(4))
    older = posterior.flip(-1).cumsum(-1).flip(-1)[:, 1:]  # p(older than bin k) as the posterior has it
    assert bool((older.diff(dim=-1) <= 1e-6).all())
    assert bool(((decode(posterior, config) >= ages[0]) & (decode(posterior, config) <= ages[1])).all())


@torch.inference_mode()
def test_independent_questions_answer_as_asked_where_they_agree() -> None:
    """Descending answers need no repair: the posterior gives each of them back."""
    answers = torch.linspace(0.95, 0.05, 100)[None]
    posterior = classifier_posterior({"ordinal_logits": torch.logit(answers)})
    torch.testing.assert_close(posterior.flip(-1).cumsum(-1).flip(-1)[:, 1:], answers, rtol=1e-4, atol=1e-5)
    contradicted = torch.tensor(
        [[2.0, -1.0, 3.0]]
    )  # 'older than the third bin' although not older than the second
    older = torch.sigmoid(torch.tensor([2.0, -1.0, -1.0]))
    expected = torch.stack([1 - older[0], older[0] - older[1], torch.tensor(0.0), older[2]])
    torch.testing.assert_close(classifier_posterior({"ordinal_logits": contradicted})[0], expected)


@pytest.mark.parametrize("ages", [(0, 100), (-15, 120), (18, 19)])
@torch.inference_mode()
def test_coral_starts_from_an_even_posterior_and_has_one_weight_for_all(ages: tuple[int, int]) -> None:
    config = Baseline(classifier="coral", ages=ages)
    head = build(config).head
    count = len(bins(config))
    assert {name: tuple(parameter.shape) for name, parameter in head.named_parameters()} == {
        "weight": (1, 512),
        "bias": (count - 1,),
    }
    first = classifier_posterior({"ordinal_logits": head(torch.zeros(1, 512))})
    torch.testing.assert_close(first, torch.full((1, count), 1 / count), rtol=1e-3, atol=1e-6)
    x = torch.randn(3, 512, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        head(x) - head.bias, (x @ head.weight[0])[:, None].expand(3, count - 1), rtol=1e-4, atol=1e-5
    )
    assert bool((head(x).diff(dim=-1) < 0).all())  # rank consistent: the answers fall


# --- starting points ------------------------------------------------------------------------------


@pytest.mark.parametrize("config", MODELS, ids=lambda config: config.name)
def test_weights_of_our_own_model_load_whole(config: Model, tmp_path: Path) -> None:
    """As a bundle stores them: matrices in float16, vectors in float32, with the classifier."""
    state = build(config, seed=3).state_dict()
    stored = {
        name: (tensor.half() if tensor.ndim > 1 else tensor).contiguous() for name, tensor in state.items()
    }
    save_file(stored, tmp_path / "model.safetensors")
    loaded = build(
        config.model_copy(update={"weights": str(tmp_path / "model.safetensors")}), seed=4
    ).state_dict()
    for name, tensor in stored.items():
        assert torch.equal(loaded[name].to(tensor.dtype), tensor), name
    assert loaded["head.weight"].dtype == torch.float32


def test_published_weights_leave_the_classifier_as_the_seed_made_it(published: Path) -> None:
    config = ClusterCnn(name="cluster_cnn", weights=str(published))
    assert torch.equal(
        build(config, seed=7).head.weight, build(ClusterCnn(name="cluster_cnn"), seed=7).head.weight
    )


def test_a_bundle_that_brings_its_weights_needs_no_starting_point() -> None:
    assert build(Baseline(weights="/gone/weights.safetensors"), pretrained=False).head.out_features == 101
    assert (
        build(ClusterCnn(name="cluster_cnn", weights="imagenet"), pretrained=False).head.out_features == 101
    )


@pytest.mark.parametrize(
    "content", [None, b"no weights at all", b"", "resnet", "googlenet", "other ages", "half"]
)
@pytest.mark.parametrize("name", ["baseline", "cluster_cnn"])
def test_weights_that_are_none_are_refused_with_key_value_and_remedy(
    name: str, content: bytes | str | None, tmp_path: Path, published: Path, resnet_file: Path
) -> None:
    if (name, content) in (("baseline", "resnet"), ("cluster_cnn", "googlenet")):
        pytest.skip("these fit")
    file = tmp_path / "weights.safetensors"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content == "other ages":
        other = build(small_config(name, ages=(0, 50))).state_dict()
        save_file({key: tensor.contiguous() for key, tensor in other.items()}, file)
    elif content is not None:
        whole = load_file(
            published
            if content == "googlenet" or (content == "half" and name == "cluster_cnn")
            else resnet_file
        )
        keys = list(whole)[: len(whole) // 2] if content == "half" else list(whole)
        save_file({key: whole[key] for key in keys}, file)
    with pytest.raises(UserError) as caught:
        build(small_config(name, weights=str(file)))
    assert re.match(rf"model\.weights[=:] ?{re.escape(str(file))}: .*; \w+", str(caught.value))
    assert "\n" not in str(caught.value)


def test_imagenet_is_refused_where_torchvision_has_no_such_network() -> None:
    with pytest.raises(
        UserError, match=r"^model\.weights=imagenet: .*; name a safetensors file .*, or none$"
    ):
        build(ClusterCnn(name="cluster_cnn", weights="imagenet"))


def test_imagenet_without_a_way_to_download_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(UserError, match=r"^model\.weights=imagenet: .*; \w+"):
        build(Baseline(weights="imagenet"))
