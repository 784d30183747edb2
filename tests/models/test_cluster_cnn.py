"""Cluster-CNN: against per-face loops, half of the original GoogLeNet, what is saved, and two
workers against one.
"""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from safetensors.torch import save_file
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from ageray import bundle, config
from ageray.errors import UserError
from ageray.experiment import Experiment, Loss
from ageray.experiment.model import ClusterCnn as Config
from ageray.losses.criterion import Criterion
from ageray.models import cluster_cnn
from ageray.models.baseline import Classifier
from ageray.models.build import build
from ageray.models.cluster_cnn import ClusterCnn
from ageray.models.clusters import probabilities
from ageray.models.decode import bins, classifier_posterior
from ageray.models.googlenet import GoogLeNet
from ageray.models.network import Backbone, Batch, Number

RECIPE = Path(__file__).resolve().parents[2] / "configs" / "cluster_cnn.yaml"
LOSS = Loss.model_validate(
    {"cross_entropy": {"weight": 0.5}, "regression": {"weight": 0.5}, "cluster_scatter": {"weight": 0.1}}
)


class Small(Backbone):
    """A backbone of 6 features, to look at what comes after it."""

    name, features, least_side = "small", 6, 4

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(48, 6)

    def forward(self, face: Tensor) -> Tensor:
        return torch.tanh(self.layer(face.flatten(1) / 255 - 0.5))


def settings(**changes: Any) -> Config:
    return Config(
        name="cluster_cnn",
        **{"ages": (0, 9), "clusters": 4, "branch_features": 5, "momentum": 0.9, **changes},
    )


def faces(count: int, side: int = 4, seed: int = 0, dtype: torch.dtype = torch.float64) -> Batch:
    return {
        "face": (
            torch.rand(
                count, 3, side, side, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
            )
            * 255
        ).to(dtype)
    }


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_cnn, "_backbone", lambda _config: Small())


def small_network(seed: int = 0, **changes: Any) -> ClusterCnn:
    """In float64, its centroids by k-means of 40 faces, its classifier lively enough to see."""
    network = build(settings(**changes), seed=seed)
    assert isinstance(network, ClusterCnn)
    network = network.double()
    for name, parameter in network.named_parameters():
        if not name.startswith("backbone."):
            nn.init.normal_(parameter, std=0.7, generator=torch.Generator().manual_seed(len(name)))
    with torch.no_grad():
        network.init_from_features(
            network.init_features(faces(40, seed=9)), torch.Generator().manual_seed(seed)
        )
    return network


def branch(network: ClusterCnn, face: Tensor, cluster: int, centroid: Tensor) -> Tensor:
    """One face through one branch, neuron by neuron, and the classifier."""
    weight, bias = network.branches.weight, network.branches.bias
    width = len(bias) // len(network.clusters.centroids)
    rows = range(cluster * width, (cluster + 1) * width)
    v = torch.stack([((weight[row] * (face - centroid)).sum() + bias[row]).clamp_min(0) for row in rows])
    logits: Tensor = network.head(v)
    return logits


# --- training -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("classifier", ["softmax", "or_cnn", "coral"])
@pytest.mark.parametrize("clusters", [1, 3, 5, 7])
def test_training_sends_each_face_through_its_clusters_branch(clusters: int, classifier: str) -> None:
    network, batch = small_network(clusters=clusters, classifier=classifier), faces(12)
    before = network.clusters.centroids.clone()
    outputs = network(batch)
    assert outputs.keys() == network.outputs
    features = network.backbone(batch["face"])
    assert torch.equal(outputs["embedding"], features)
    assert torch.equal(outputs["features"], features)
    assert torch.equal(outputs["centroids"], network.clusters.centroids)
    assert not torch.equal(outputs["centroids"], before)
    logits = outputs["logits" if classifier == "softmax" else "ordinal_logits"]
    assert logits.shape == (12, 10 if classifier == "softmax" else 9)
    for row, (face, cluster) in enumerate(zip(features, outputs["cluster"].tolist(), strict=True)):
        torch.testing.assert_close(logits[row], branch(network, face, cluster, outputs["centroids"][cluster]))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("faces_in_batch", [1, 3])
def test_one_face_and_clusters_without_any(faces_in_batch: int) -> None:
    network = small_network(clusters=7)
    outputs = network(faces(faces_in_batch))
    loss, terms = Criterion(LOSS, network.outputs, "cluster_cnn")(
        {**outputs, "age": torch.full((faces_in_batch,), 3.0), "bins": bins(settings())}
    )
    loss.backward()  # type: ignore[no-untyped-call]
    assert len(set(outputs["cluster"].tolist())) < 7
    assert all(bool(torch.isfinite(value)) for value in terms.values())
    assert all(
        bool(torch.isfinite(parameter.grad).all())
        for parameter in network.parameters()
        if parameter.grad is not None
    )


@pytest.mark.usefixtures("small")
def test_the_gradient_reaches_every_branch_that_was_used_and_no_other() -> None:
    network = small_network(clusters=7)
    outputs = network(faces(5))
    F.cross_entropy(outputs["logits"], torch.arange(5)).backward()  # type: ignore[no-untyped-call]
    assert network.branches.weight.grad is not None
    reached = network.branches.weight.grad.view(7, -1).abs().amax(1) > 0
    used = set(outputs["cluster"].tolist())
    assert set(reached.nonzero().squeeze(1).tolist()) == used
    assert 1 < len(used) < 7
    assert all(
        parameter.grad is not None for parameter in network.parameters()
    )  # DistributedDataParallel waits for all of them


@pytest.mark.usefixtures("small")
def test_the_scatter_term_alone_moves_the_backbone() -> None:
    network = small_network(momentum=0.999)
    outputs = network(faces(8))
    between = torch.pdist(outputs["centroids"]).mean()
    (gradient,) = torch.autograd.grad(between, network.backbone.layer.weight)
    assert float(gradient.abs().max()) > 1e-8


@pytest.mark.usefixtures("small")
def test_dropout_acts_on_the_branchs_output_in_training_alone() -> None:
    network = small_network(dropout=0.5)
    network.eval()
    assert torch.equal(network(faces(3))["logits"], network(faces(3))["logits"])
    network.train()
    torch.manual_seed(0)
    outputs = network(faces(6))
    plain = torch.stack(
        [
            branch(network, x, c, outputs["centroids"][c])
            for x, c in zip(outputs["features"], outputs["cluster"], strict=True)
        ]
    )
    assert not torch.allclose(outputs["logits"], plain)


@pytest.mark.usefixtures("small")
def test_half_precision_features_and_a_float32_module() -> None:
    network = small_network().float()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = network(faces(6, dtype=torch.float32))
        assert network.eval()(faces(6, dtype=torch.float32))["logits"].dtype == torch.bfloat16
    assert outputs["embedding"].dtype == outputs["logits"].dtype == torch.bfloat16
    assert outputs["features"].dtype == outputs["centroids"].dtype == torch.float32


# --- in use ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("assignment", ["nearest", "mixture"])
def test_in_use_nothing_is_drawn_and_nothing_moves(assignment: str) -> None:
    network = small_network(assignment=assignment).eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = torch.get_rng_state()
    first, again = network(faces(9)), network(faces(9))
    assert first.keys() == {"logits", "embedding"}
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.usefixtures("small")
def test_a_face_alone_has_the_answer_that_it_has_among_others() -> None:
    network = small_network().eval()
    batch = faces(6)["face"]
    alone = torch.cat([network({"face": face[None]})["logits"] for face in batch])
    torch.testing.assert_close(network({"face": batch})["logits"], alone)


@pytest.mark.usefixtures("small")
@torch.no_grad()
def test_nearest_is_the_branch_of_the_nearest_centroid() -> None:
    network, batch = small_network().eval(), faces(10)
    logits, chosen = network(batch)["logits"], set[int]()
    for row, face in enumerate(network.backbone(batch["face"])):
        away = [math.dist(face.tolist(), place) for place in network.clusters.centroids.tolist()]
        cluster = away.index(min(away))
        chosen.add(cluster)
        torch.testing.assert_close(
            logits[row], branch(network, face, cluster, network.clusters.centroids[cluster])
        )
    assert len(chosen) > 1


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("classifier", ["softmax", "or_cnn", "coral"])
@pytest.mark.parametrize("clusters", [1, 4])
@torch.no_grad()
def test_mixture_is_the_branches_posteriors_weighed_by_eq_2(clusters: int, classifier: str) -> None:
    network, batch = (
        small_network(assignment="mixture", classifier=classifier, clusters=clusters).eval(),
        faces(7),
    )
    output = "logits" if classifier == "softmax" else "ordinal_logits"
    posterior = classifier_posterior({output: network(batch)[output]})
    torch.testing.assert_close(posterior.sum(1), torch.ones(7))
    if classifier == "softmax":
        torch.testing.assert_close(network(batch)[output].exp().sum(1), torch.ones(7, dtype=torch.float64))
    features, centroids = network.backbone(batch["face"]), network.clusters.centroids
    for row, (face, shares) in enumerate(zip(features, probabilities(features, centroids), strict=True)):
        branches = [
            classifier_posterior({output: branch(network, face, k, centroids[k])[None]})[0]
            for k in range(clusters)
        ]
        mixed = torch.stack([share * one for share, one in zip(shares, branches, strict=True)]).sum(0)
        torch.testing.assert_close(posterior[row], mixed.float(), rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("small")
@torch.no_grad()
def test_mixture_of_a_face_on_a_centroid_is_that_centroids_branch() -> None:
    network, batch = small_network(assignment="mixture").eval(), faces(1)
    network.clusters.centroids[2] = network.backbone(batch["face"])[0]
    expected = branch(network, network.clusters.centroids[2], 2, network.clusters.centroids[2])
    torch.testing.assert_close(network(batch)["logits"][0], F.log_softmax(expected, -1))


# --- start, save, load ----------------------------------------------------------------------------


@pytest.mark.usefixtures("small")
def test_faces_are_asked_for_once() -> None:
    network = build(settings(init_faces=30), seed=0)
    assert network.num_init_faces == 30
    before = network.clusters.centroids.clone()
    cached = network.init_features(faces(30, dtype=torch.float32)).detach()
    network.init_from_features(cached, torch.Generator().manual_seed(0))
    assert network.num_init_faces == 0
    assert not torch.equal(network.clusters.centroids, before)
    assert float(cached.amin()) <= float(network.clusters.centroids.amin())
    assert float(cached.amax()) >= float(network.clusters.centroids.amax())


@pytest.mark.usefixtures("small")
def test_saved_weights_bring_their_centroids(tmp_path: Path) -> None:
    network = small_network().float()
    network(faces(5, dtype=torch.float32))
    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    other = build(settings(), seed=3)
    other.load_state_dict(load_safetensors(save_safetensors(state)))
    assert torch.equal(other.clusters.centroids, network.clusters.centroids)
    save_file(state, tmp_path / "model.safetensors")
    continued = build(settings(weights=str(tmp_path / "model.safetensors")), seed=4)
    assert torch.equal(continued.clusters.centroids, network.clusters.centroids)
    assert (other.num_init_faces, continued.num_init_faces) == (0, 0)


def test_a_bundle_keeps_centroids_and_answers(tmp_path: Path) -> None:
    experiment = Experiment.model_validate(
        {"model": {**settings().model_dump(), "depth": "half"}, "align": {"size": 32}}
    )
    network = build(experiment.model, seed=0)
    assert isinstance(network, ClusterCnn)
    pictures = faces(12, 32, dtype=torch.float32)
    with torch.no_grad():
        network.eval().init_from_features(network.init_features(pictures), torch.Generator().manual_seed(0))
        bundle.save(str(tmp_path), network, experiment, {})
        loaded = bundle.load(str(tmp_path)).network()
        assert loaded.num_init_faces == 0
        torch.testing.assert_close(
            loaded.clusters.centroids, network.clusters.centroids, rtol=1e-3, atol=1e-6
        )
        torch.testing.assert_close(loaded(pictures)["logits"], network(pictures)["logits"], rtol=0, atol=0.02)


# --- the real network -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "backbone", "features"), [("full", 5_973_552, 1024), ("half", 1_502_184, 512)]
)
def test_number_of_weights(depth: str, backbone: int, features: int) -> None:
    network = build(Config(name="cluster_cnn", depth=depth, clusters=5, branch_features=256))
    head = sum(parameter.numel() for parameter in network.head_parameters())
    assert head == 5 * (features * 256 + 256) + 256 * 101 + 101
    assert sum(parameter.numel() for parameter in network.parameters()) == backbone + head


def test_head_parameters_are_all_but_the_backbones() -> None:
    network = build(Config(name="cluster_cnn"))
    head = {id(parameter) for parameter in network.head_parameters()}
    names = {name for name, parameter in network.named_parameters() if id(parameter) in head}
    assert names == {name for name, _ in network.named_parameters() if not name.startswith("backbone.")}
    assert names == {"branches.weight", "branches.bias", "head.weight", "head.bias"}
    assert network.get_backbone() is network.backbone


@pytest.mark.parametrize("side", [72, 96, 128])
@torch.inference_mode()
def test_half_depth_is_the_first_half_of_the_whole(side: int, tmp_path: Path) -> None:
    """Loaded from the file of the whole network, in BVLC's form."""
    whole, seen = GoogLeNet(), list[Tensor]()
    state = {name.removeprefix("layers."): tensor for name, tensor in whole.state_dict().items()}
    state["conv1_7x7_s2.weight"] = state["conv1_7x7_s2.weight"].flip(1).contiguous()
    state |= {"loss3_classifier.weight": torch.zeros(1000, 1024), "loss3_classifier.bias": torch.zeros(1000)}
    save_file(state, tmp_path / "googlenet.safetensors")
    half = (
        build(Config(name="cluster_cnn", depth="half", weights=str(tmp_path / "googlenet.safetensors")))
        .eval()
        .backbone
    )
    whole.layers["inception_4c_1x1"].register_forward_pre_hook(
        lambda _layer, inputs: seen.append(inputs[0].clone())
    )
    pictures = faces(2, side, dtype=torch.float32)["face"]
    whole(pictures)
    features = half(pictures)
    assert features.shape == (2, 512)
    torch.testing.assert_close(features, seen[0].mean((2, 3)), rtol=1e-4, atol=1e-3)
    assert float(features.std()) > 0.1


@pytest.mark.parametrize(("head", "depth", "heads"), [("plain", "full", 2), ("cluster", "half", 1)])
def test_auxiliary_classifiers_are_googlenets(head: str, depth: str, heads: int) -> None:
    """After 4a and 4d, in training only, with the terms on `logits` times `loss.auxiliary`."""
    changes = {"head": head, "depth": depth, "auxiliary": True, "ages": (0, 9), "dropout": 0.4}
    network = build(Config.model_validate({"name": "cluster_cnn", **changes}), seed=0)
    batch = faces(2, 64, dtype=torch.float32)
    if head == "cluster":
        network.init_from_features(torch.randn(9, 512), torch.Generator().manual_seed(0))
    network.train()
    outputs = network(batch)
    assert network.outputs >= {"aux_logits", "logits"}
    assert outputs["aux_logits"].shape == (2, heads, 10)
    loss = {"cross_entropy": {}, "auxiliary": 0.3}
    criterion = Criterion(Loss.model_validate(loss), network.outputs, "cluster_cnn")
    fields = {"age": torch.tensor([3.0, 7.0]), "bins": torch.arange(10.0)}
    total, terms = criterion(outputs | fields)
    expected = terms["cross_entropy"] + 0.3 * terms["aux_cross_entropy"]
    torch.testing.assert_close(total.detach(), expected)
    total.backward()
    head_ids = {id(parameter) for parameter in network.head_parameters()}
    names = [name for name, parameter in network.named_parameters() if id(parameter) in head_ids]
    assert sum(name.startswith("auxiliary.heads.") for name in names) == 6 * heads
    assert "aux_logits" not in network.eval()(batch)
    with torch.no_grad():
        network(batch)
    backbone = network.get_backbone()
    assert isinstance(backbone, GoogLeNet)
    assert backbone.auxiliary_maps == []  # nothing stays in memory in use


def test_auxiliary_classifiers_need_the_original() -> None:
    with pytest.raises(ValueError, match="set backbone=bvlc_googlenet, not 'resnet18', or auxiliary=false"):
        Config(name="cluster_cnn", backbone="resnet18", auxiliary=True)


@pytest.mark.parametrize("head", ["plain", "nearest", "mixture"])
def test_one_regressed_number_in_place_of_classes(head: str) -> None:
    """'Cls' off: the posterior's expectation is the number, clipped to the bins."""
    changes: dict[str, Any] = {"head": "plain"} if head == "plain" else {"assignment": head}
    config_ = Config.model_validate(
        {"name": "cluster_cnn", "classifier": "number", "ages": (0, 9), **changes}
    )
    network = build(config_, seed=0)
    batch = faces(3, 32, dtype=torch.float32)
    if head != "plain":
        network.init_from_features(torch.randn(9, 1024), torch.Generator().manual_seed(0))
    network.train()
    outputs = network(batch)
    assert outputs["number"].shape == (3, 1)
    criterion = Criterion(Loss.model_validate({"regression": {}}), network.outputs, "cluster_cnn")
    total, _ = criterion({**outputs, "age": torch.tensor([1.0, 5.0, 9.0]), "bins": torch.arange(10.0)})
    total.backward()
    with pytest.raises(UserError, match="does not give logits"):
        Criterion(Loss.model_validate({"cross_entropy": {}}), network.outputs, "cluster_cnn")
    number = network.head
    assert isinstance(number, Number)
    ages = torch.tensor([[4.25], [-3.0], [12.0]])
    posterior = classifier_posterior({"logits": number.logits(ages)})
    torch.testing.assert_close(posterior @ torch.arange(10.0), torch.tensor([4.25, 0.0, 9.0]))
    with torch.no_grad():
        answers = network.eval()(batch)
    assert answers["logits"].shape == (3, 10)


def test_auxiliary_tensors_of_a_file_are_ignored(tmp_path: Path) -> None:
    whole = GoogLeNet()
    state = {name.removeprefix("layers."): tensor.clone() for name, tensor in whole.state_dict().items()}
    for name in ("loss1_conv", "loss1_fc", "loss2_classifier", "loss3_classifier"):
        state[f"{name}.weight"] = torch.zeros(3, 3)
    save_file(state, tmp_path / "googlenet.safetensors")
    network = build(Config(name="cluster_cnn", weights=str(tmp_path / "googlenet.safetensors")))
    own = network.get_backbone().state_dict()["layers.inception_5b_1x1.weight"]
    torch.testing.assert_close(own, whole.state_dict()["layers.inception_5b_1x1.weight"])


def test_half_a_file_is_not_enough_for_half_a_depth(tmp_path: Path) -> None:
    state = {
        name.removeprefix("layers."): tensor
        for name, tensor in GoogLeNet().state_dict().items()
        if "inception_3b" not in name
    }
    save_file({**state}, tmp_path / "part.safetensors")
    with pytest.raises(UserError, match=r"^model\.weights=.*inception_3b"):
        build(Config(name="cluster_cnn", depth="half", weights=str(tmp_path / "part.safetensors")))


@pytest.mark.parametrize("depth", ["full", "half"])
@pytest.mark.parametrize("head", ["plain", "cluster"])
def test_imagenet_is_refused_for_the_original(head: str, depth: str) -> None:
    with pytest.raises(UserError, match=r"^model\.weights=imagenet: "):
        build(Config(name="cluster_cnn", head=head, depth=depth, weights="imagenet"))


def test_the_plain_head_is_the_classifier_of_the_shipped_weights() -> None:
    network = build(Config(name="cluster_cnn", head="plain"))
    assert type(network) is Classifier
    assert {name.split(".")[0] for name in network.state_dict()} == {"backbone", "head"}
    shipped = bundle.load("zoo:default@1").network()
    assert type(shipped) is Classifier
    assert shipped.state_dict().keys() == network.state_dict().keys()
    half = build(Config(name="cluster_cnn", head="plain", depth="half"))
    assert half.head.in_features == 512


def test_another_backbone() -> None:
    network = build(Config(name="cluster_cnn", backbone="resnet18"))
    network.train()
    outputs = network(faces(3, 32, dtype=torch.float32))
    assert outputs["features"].shape == (3, 512)
    with pytest.raises(ValueError, match="depth 'half'"):
        Config(name="cluster_cnn", backbone="resnet18", depth="half")


def test_the_recipe_is_the_papers() -> None:
    recipe = config.load([str(RECIPE)])
    assert isinstance(recipe.model, Config)
    assert (recipe.model.head, recipe.model.clusters, recipe.model.momentum, recipe.model.init_faces) == (
        "cluster",
        5,
        0.999,
        5000,
    )
    assert (recipe.align.mode, recipe.align.size, recipe.train.batch_size) == ("eyes", 128, 128)
    optimizer = recipe.train.stages[0].optimizer
    assert (optimizer.name, optimizer.lr, recipe.train.stages[0].epochs) == ("adam", 1e-4, 5)
    assert recipe.loss.cross_entropy is not None
    assert recipe.loss.regression is not None
    assert recipe.loss.cross_entropy.weight + recipe.loss.regression.weight == 1
    assert recipe.loss.cluster_scatter is not None
    assert recipe.train.augment.scale > 0


# --- two workers ----------------------------------------------------------------------------------


def gradients(
    network: nn.Module, inner: ClusterCnn, batch: Batch, age: Tensor
) -> tuple[float, dict[str, Tensor]]:
    """The loss, and the parameters' gradients after it."""
    network.zero_grad()
    criterion = Criterion(LOSS, inner.outputs, "cluster_cnn")
    loss, _ = criterion({**network(batch), "age": age, "bins": bins(settings())})
    loss.backward()  # type: ignore[no-untyped-call]
    by_name = {
        name: parameter.grad.clone()
        for name, parameter in inner.named_parameters()
        if parameter.grad is not None
    }
    return float(loss.detach()), by_name


def network_for_workers() -> ClusterCnn:
    cluster_cnn._backbone = lambda _config: Small()
    return small_network()


AGES = torch.tensor([0.0, 3.0, 9.0, 4.0, 4.0, 7.0, 1.0, 2.0])


def work(rank: int, folder: str) -> None:
    """One of two workers: a gradient in float64, then 20 steps in float32 from different caches;
    writes what it holds.
    """
    torch.set_num_threads(1)
    network, mine = network_for_workers(), slice(4 * rank, 4 * rank + 4)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.manual_seed(5)
    wrapped = DistributedDataParallel(network)
    loss, averaged = gradients(wrapped, network, {"face": faces(8)["face"][mine]}, AGES[mine])
    first = network.clusters.centroids.clone()

    network = network_for_workers().float()
    with torch.no_grad():  # unequal caches, unequal generators
        network.init_from_features(
            network.init_features(faces(20 + rank, seed=rank, dtype=torch.float32)),
            torch.Generator().manual_seed(rank),
        )
    initial, init_faces = network.clusters.centroids.clone(), build(settings(init_faces=31)).num_init_faces
    wrapped = DistributedDataParallel(network, broadcast_buffers=False)  # they are equal without it
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    torch.manual_seed(6 + rank)
    for step in range(20):
        gradients(
            wrapped, network, {"face": faces(8, seed=step, dtype=torch.float32)["face"][mine]}, AGES[mine]
        )
        optimizer.step()
    results = {
        "loss": loss,
        "gradients": averaged,
        "first": first,
        "begun": initial,
        "asked": init_faces,
        "end": network.clusters.centroids,
    }
    torch.save(results, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_workers_are_one_with_the_whole_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two real processes over gloo, each with half of the batch, under DistributedDataParallel."""
    monkeypatch.setattr(cluster_cnn, "_backbone", lambda _config: Small())
    torch.multiprocessing.spawn(work, args=(str(tmp_path),), nprocs=2)  # type: ignore[no-untyped-call]
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    network = small_network()
    torch.manual_seed(5)
    loss, whole = gradients(network, network, faces(8), AGES)
    assert (one["loss"] + two["loss"]) / 2 == pytest.approx(loss, rel=1e-6)
    assert whole.keys() == one["gradients"].keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(one["gradients"][name], gradient, rtol=1e-5, atol=1e-8)
        assert torch.equal(one["gradients"][name], two["gradients"][name])
    torch.testing.assert_close(one["first"], network.clusters.centroids)
    for name in ("first", "begun", "end"):
        assert torch.equal(one[name], two[name]), name
    assert not torch.equal(one["begun"], one["end"])
    assert one["asked"] == 31


# --- the training loop ----------------------------------------------------------------------------


def test_a_run_starts_its_centroids_and_resumes_as_if_it_had_not_stopped() -> None:
    from ageray.train.loop import init_network, train_one_epoch
    from ageray.train.state import new_state
    from tests.train.test_loop import batches
    from tests.train.test_loop import faces as drawn

    experiment = config.load(
        [str(RECIPE)],
        [
            "model.depth=half",
            "model.auxiliary=false",
            "model.init_faces=12",
            "model.clusters=3",
            "align.size=32",
            "train.batch_size=4",
            "train.precision=float32",
        ],
    )
    cut = batches(drawn(16, experiment.align), 4)
    straight = new_state(experiment, torch.device("cpu"))
    straight.start_stage(0, 4)
    init_network(straight, cut)
    assert straight.network.num_init_faces == 0
    train_one_epoch(straight, cut[:2])
    file = io.BytesIO()
    torch.save(straight.state_dict(), file)
    file.seek(0)
    resumed = new_state(experiment, torch.device("cpu"))
    resumed.load_state_dict(torch.load(file, weights_only=True), 4)
    again = train_one_epoch(resumed, cut[2:])
    torch.manual_seed(99)  # whoever draws in between must not count: the state is restored below
    torch.set_rng_state(torch.load(io.BytesIO(file.getvalue()), weights_only=True)["torch"])
    further = train_one_epoch(straight, cut[2:])
    assert again.terms == further.terms
    assert again.terms.keys() == {"cross_entropy", "regression", "cluster_scatter"}
    theirs = resumed.network.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in straight.network.state_dict().items())
