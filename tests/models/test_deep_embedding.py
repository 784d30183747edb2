"""The Deep Embedding Network: classifier and triplets share an embedding; both losses reach it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ageray.experiment import Optimizer
from ageray.experiment.model import DeepEmbedding as Config
from ageray.losses.cross_entropy import cross_entropy
from ageray.models.build import build
from ageray.models.decode import bins, classifier_posterior
from ageray.models.deep_embedding import DeepEmbedding
from ageray.train.optim import make_optimizer


def small_network(**changes: Any) -> DeepEmbedding:
    network = build(Config(name="deep_embedding", **{"backbone": "resnet18", **changes}), seed=0)
    assert isinstance(network, DeepEmbedding)
    return network


def rgb_faces(count: int, side: int = 32) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0)) * 255


@torch.inference_mode()
def test_the_papers_network_is_vgg16_and_its_embedding_fc7() -> None:
    with torch.device("meta"):  # shapes alone: the network is large
        network = build(Config(name="deep_embedding")).eval()
        outputs = network({"face": torch.empty(2, 3, 224, 224)})
    assert {name: tuple(tensor.shape) for name, tensor in outputs.items()} == {
        "logits": (2, 101),
        "embedding": (2, 4096),
    }
    assert network.least_side == 32
    assert (
        sum(parameter.numel() for parameter in network.parameters())
        == 138_357_544 - 4_097_000 + 4096 * 101 + 101
    )


@pytest.mark.parametrize(("size", "features"), [(0, 512), (70, 70)])
@pytest.mark.parametrize(
    ("classifier", "tensor", "count"), [("softmax", "logits", 101), ("or_cnn", "ordinal_logits", 100)]
)
@torch.inference_mode()
def test_shapes_and_what_the_classifier_reads(
    size: int, features: int, classifier: str, tensor: str, count: int
) -> None:
    network = small_network(embedding=size, classifier=classifier).eval()
    outputs = network({"face": rgb_faces(3)})
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {
        tensor: (3, count),
        "embedding": (3, features),
    }
    assert outputs.keys() == network.outputs
    torch.testing.assert_close(
        outputs[tensor], outputs["embedding"] @ network.head.weight.T + network.head.bias
    )
    torch.testing.assert_close(classifier_posterior(outputs).sum(-1), torch.ones(3))


@torch.inference_mode()
def test_without_a_layer_of_its_own_the_embedding_is_the_backbones() -> None:
    network, faces = small_network().eval(), rgb_faces(2)
    assert torch.equal(network({"face": faces})["embedding"], network.backbone(faces))
    assert not any(name.startswith("embedding") for name in network.state_dict())


@pytest.mark.parametrize("size", [0, 16])
def test_both_losses_reach_the_embedding_and_all_below_it(size: int) -> None:
    """Classification alone and distances alone each move the same weights; the distances leave the
    classifier's alone.
    """
    network, faces = small_network(embedding=size), rgb_faces(4)
    shared = [parameter for name, parameter in network.named_parameters() if not name.startswith("head.")]

    def gradients(of_logits: bool) -> list[Tensor | None]:
        network.zero_grad()
        outputs = network({"face": faces})
        ages = torch.tensor([1.0, 1.0, 50.0, 70.0])
        distances = torch.cdist(outputs["embedding"], outputs["embedding"]).square()
        loss = (
            cross_entropy(outputs["logits"], ages, torch.arange(101.0))
            if of_logits
            else distances[0, 1] - distances[0, 2]
        )
        loss.backward()
        return [parameter.grad for parameter in network.parameters()]

    for of_logits in (True, False):
        gradient_of = dict(
            zip((name for name, _ in network.named_parameters()), gradients(of_logits), strict=True)
        )
        assert (gradient_of["head.weight"] is not None) == of_logits
        reached = [
            name
            for name, gradient in gradient_of.items()
            if gradient is not None and bool(gradient.abs().sum() > 0)
        ]
        assert len([name for name in reached if not name.startswith("head.")]) == len(shared)


@torch.inference_mode()
def test_dropout_is_the_classifiers_alone() -> None:
    network, batch = small_network(embedding=16, dropout=0.5), {"face": rgb_faces(2)}
    network.get_backbone().eval()
    first, second = network(batch), network(batch)
    assert torch.equal(first["embedding"], second["embedding"])
    assert not torch.equal(first["logits"], second["logits"])


@pytest.mark.parametrize("size", [0, 16])
def test_the_embedding_layer_takes_the_heads_rate_and_learns_over_a_frozen_body(size: int) -> None:
    network = small_network(embedding=size)
    new = {"head.weight", "head.bias"} | ({"embedding.weight", "embedding.bias"} if size else set())
    head = {id(parameter) for parameter in network.head_parameters()}
    assert {name for name, parameter in network.named_parameters() if id(parameter) in head} == new
    optimizer = make_optimizer(network, network.head_parameters(), Optimizer(name="sgd", lr=0.1, body_lr=0))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.train()
    network.get_backbone().eval()
    logits = network({"face": rgb_faces(4)})["logits"]
    loss = cross_entropy(logits, torch.tensor([5.0, 20.0, 40.0, 60.0]), torch.arange(101.0))
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    assert {
        name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])
    } == new


@torch.no_grad()
def test_the_new_layer_keeps_the_scale_of_its_input() -> None:
    network = small_network(embedding=512)
    assert isinstance(network.embedding, nn.Linear)
    x = torch.randn(64, 512, generator=torch.Generator().manual_seed(1))
    assert float(network.embedding(x).std()) == pytest.approx(1.0, rel=0.1)


def test_it_learns_four_faces_under_bf16_autocast() -> None:
    config = Config(name="deep_embedding", backbone="resnet18", embedding=32)
    network = build(config, seed=0)
    optimizer = make_optimizer(network, network.head_parameters(), Optimizer(name="adam", lr=1e-3))
    faces, age, years = rgb_faces(4), torch.tensor([4.0, 30.0, 50.0, 80.0]), bins(config)
    losses = []
    for _ in range(10):
        with torch.autocast("cpu", torch.bfloat16):
            outputs = network({"face": faces})
        assert outputs["logits"].dtype == torch.bfloat16
        optimizer.zero_grad()
        loss = cross_entropy(outputs["logits"], age, years)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
