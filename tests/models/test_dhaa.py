"""DHAA: parameters counted by hand, the published ResNet-18 inside it, fusion by a written-out
loop, every ablation.
"""

from __future__ import annotations

import copy
import math
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from ageray import config as configuration
from ageray.errors import UserError
from ageray.experiment import Experiment, Loss, Optimizer
from ageray.experiment.model import Dhaa as Config
from ageray.faces import geometry
from ageray.losses.criterion import Criterion
from ageray.losses.cross_entropy import cross_entropy
from ageray.models import inference as posterior_module
from ageray.models.build import build
from ageray.models.decode import bins, classifier_posterior
from ageray.models.dhaa import Dhaa, RecurrentFusion
from ageray.synthetic.faces import draw_face
from ageray.train.optim import make_optimizer

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"width": 0.125, "features": 16}
NINE = ["G-1", "G-2", "G-3", "L-1", "L-2", "L-3", "GL-1", "GL-2", "GL-3"]
BRANCHES = [
    chosen for count in (1, 2, 3) for chosen in combinations(("global", "local", "global_local"), count)
]
ABLATIONS: list[dict[str, Any]] = [
    {},
    {"pooling": "roi"},
    {"fusion": "fc"},
    {"subnetwork_losses": False},
    *({"branches": chosen} for chosen in BRANCHES if len(chosen) < 3),
]


def named(changes: dict[str, Any]) -> str:
    return "-".join(f"{key}={value}" for key, value in changes.items()) or "whole"


def network(seed: int = 0, **changes: Any) -> Dhaa:
    dhaa = build(Config(name="dhaa", **{**SMALL, **changes}), seed=seed)
    assert isinstance(dhaa, Dhaa)
    return dhaa


def faces(count: int, side: int = 64, seed: int = 0) -> dict[str, Tensor]:
    """Drawn faces with their points, turned and shifted as the seed has it."""
    drawn = [draw_face(seed + k, 20 + 10 * k, size=side) for k in range(count)]
    return {
        "face": torch.stack([torch.from_numpy(face.pixels) for face in drawn]).permute(0, 3, 1, 2).float(),
        "points": torch.stack([torch.from_numpy(face.points) for face in drawn]),
    }


def resnet_state(seed: int = 0) -> dict[str, Tensor]:
    """torchvision's resnet18 with random weights and batch statistics."""
    torch.manual_seed(seed)
    reference = torchvision.models.resnet18()
    for layer in reference.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -0.2, 0.2)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
    return reference.state_dict()


# --- size and shape -------------------------------------------------------------------------------

STEM = 7 * 7 * 3 * 64 + 2 * 64 + 4 * (9 * 64 * 64 + 2 * 64)


def block(inputs: int, outputs: int) -> int:
    """Two residual units with a shortcut convolution, weights and batch norms (5 of them)."""
    return 9 * inputs * outputs + 3 * 9 * outputs**2 + inputs * outputs + 5 * 2 * outputs


TAIL = 512 * 128 + 2 * 128 + 128 * 128 + 128
LSTM = 4 * (128 * (128 + 128) + 2 * 128)
SECOND, THIRD, FOURTH = block(64, 128), block(128, 256), block(256, 512)
JOINED = block(256, 256)  # a global-local third block reads both parents' 128 channels


def counted(branches: tuple[str, ...], **changes: Any) -> int:
    with torch.device("meta"):
        dhaa = Dhaa(Config(name="dhaa", branches=branches, **changes))
    return sum(parameter.numel() for parameter in dhaa.parameters())


def test_the_number_of_parameters() -> None:
    """ResNet-18's 11,176,512 less the shared stem for each of six sub-networks; three that begin at
    the third block; ends, LSTMs, classifiers.
    """
    assert STEM + SECOND + THIRD + FOURTH == 11_176_512
    blocks = STEM + 6 * (SECOND + THIRD + FOURTH) + 3 * (JOINED + FOURTH)
    rest = 9 * TAIL + 3 * LSTM + (3 * 128 * 101 + 101)
    own = 9 * (128 * 101 + 101)
    assert counted(("global", "local", "global_local")) == blocks + rest + own == 100_028_082
    assert (
        counted(("global", "local", "global_local"), subnetwork_losses=False) == blocks + rest == 99_910_821
    )
    fc = 3 * (3 * 128 * 128 + 128)
    assert counted(("global", "local", "global_local"), fusion="fc") == blocks + rest + own - 3 * LSTM + fc


def test_a_branch_alone_owns_what_it_needs_and_nothing_else() -> None:
    one = STEM + 3 * TAIL + LSTM + 4 * (128 * 101 + 101)
    assert counted(("global",)) == counted(("local",)) == one + 3 * (SECOND + THIRD + FOURTH)
    assert counted(("global_local",)) == one + 6 * SECOND + 3 * (JOINED + FOURTH)


@pytest.mark.parametrize("changes", ABLATIONS, ids=named)
@pytest.mark.parametrize("classifier", ["softmax", "coral"])
def test_shapes_of_every_ablation(changes: dict[str, Any], classifier: str) -> None:
    dhaa = network(ages=(0, 70), classifier=classifier, **changes)
    count, name, answers = (
        len(changes.get("branches", "GLC")),
        *(("logits", 71) if classifier == "softmax" else ("ordinal_logits", 70)),
    )
    outputs = dhaa(faces(2, 48))
    shapes = {name: (2, answers), "embedding": (2, 16 * count)}
    own = {} if changes.get("subnetwork_losses") is False else {f"aux_{name}": (2, 3 * count, answers)}
    assert {key: tuple(tensor.shape) for key, tensor in outputs.items()} == {**shapes, **own}
    assert outputs.keys() == dhaa.outputs
    in_use = dhaa.eval()(faces(2, 48))
    assert {key: tuple(tensor.shape) for key, tensor in in_use.items()} == shapes


@pytest.mark.parametrize(("side", "region"), [(16, 4), (112, 25), (128, 28), (224, 49), (256, 56)])
@torch.inference_mode()
def test_sides_of_faces_and_regions(side: int, region: int) -> None:
    dhaa, sizes = network().eval(), {}
    for name, layer in dhaa.backbone.layer2.items():
        layer.register_forward_pre_hook(
            lambda _, inputs, name=name: sizes.update({name: inputs[0].shape[-1]})
        )
    outputs = dhaa({"face": torch.rand(1, 3, side, side) * 255, "points": geometry.template(side)[None]})
    assert sizes == {"G-1": math.ceil(side / 4), **dict.fromkeys(("G-2", "G-3", "L-1", "L-2", "L-3"), region)}
    assert bool(torch.isfinite(outputs["logits"]).all())


@torch.inference_mode()
def test_the_size_of_a_region_can_be_set() -> None:
    dhaa, seen = network(region_size=11).eval(), []
    dhaa.backbone.layer2["L-2"].register_forward_pre_hook(
        lambda _, inputs: seen.append(tuple(inputs[0].shape))
    )
    dhaa(faces(2, 64))
    assert seen == [(2, 16, 11, 11)]


def test_points_are_read_where_the_shared_features_look() -> None:
    """Cell j of C^B1 depends on input pixels that lie evenly about pixel 4 j."""
    trunk = network().eval().backbone.trunk
    face = (torch.rand(1, 3, 160, 160, generator=torch.Generator().manual_seed(0)) * 255).requires_grad_()
    features = trunk(face)
    (gradient,) = torch.autograd.grad(features[0, :, 20, 18].square().sum(), face)
    for axis, cell in ((1, 20), (0, 18)):
        seen = gradient[0].abs().sum(0).sum(axis).nonzero().squeeze(-1)
        assert abs(float(seen[0] + seen[-1]) / 2 - 4 * cell) <= 1


# --- ResNet-18 inside -----------------------------------------------------------------------------


@torch.inference_mode()
def test_the_first_global_sub_network_is_resnet_18_to_its_last_block() -> None:
    """'We simply use the entire features of C^B1 as the first global feature.'"""
    dhaa, state, batch = network(width=1.0).eval(), resnet_state(), faces(2, 64)
    dhaa.load_backbone(state)
    reference = torchvision.models.resnet18()
    reference.load_state_dict(state)
    reference.fc = nn.Identity()
    normalise = torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    ours = dhaa.backbone(batch["face"], batch["points"])["G-1"].mean((2, 3))
    torch.testing.assert_close(ours, reference.eval()(normalise(batch["face"] / 255)), rtol=1e-3, atol=1e-4)


def test_published_weights_reach_every_sub_network() -> None:
    state, dhaa = resnet_state(), network(width=1.0)
    dhaa.load_backbone(state)
    own = dhaa.backbone.state_dict()
    for name, tensor in state.items():
        part, _, rest = name.partition(".")
        if part in ("layer2", "layer3", "layer4"):
            holders = [key for key in NINE if part != "layer2" or not key.startswith("GL")]
            joined = part == "layer3" and rest in ("0.conv1.weight", "0.downsample.0.weight")
            alike = [key for key in holders if not (joined and key.startswith("GL"))]
            assert all(torch.equal(own[f"{part}.{key}.{rest}"], tensor) for key in alike)
        elif part != "fc":
            assert torch.equal(own[f"trunk.{name}"], tensor)
    x = torch.rand(2, 128, 6, 6, generator=torch.Generator().manual_seed(0))
    dhaa.eval()
    one, both = dhaa.backbone.layer3["G-1"](x), dhaa.backbone.layer3["GL-2"](torch.cat([x, x], 1))
    torch.testing.assert_close(both, one, rtol=1e-4, atol=1e-5)


def test_published_weights_come_from_a_file_or_from_torchvision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = resnet_state()
    save_file(
        {name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "resnet18.safetensors"
    )
    from_file = network(
        width=1.0, branches=("local",), weights=str(tmp_path / "resnet18.safetensors")
    ).state_dict()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(state, tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth")
    downloaded = network(width=1.0, branches=("local",), weights="imagenet").state_dict()
    assert torch.equal(from_file["backbone.layer4.L-3.1.conv2.weight"], state["layer4.1.conv2.weight"])
    assert all(torch.equal(tensor, downloaded[name]) for name, tensor in from_file.items())


def test_imagenet_is_refused_for_another_width() -> None:
    with pytest.raises(
        UserError,
        match=r"^model\.weights=imagenet: .* model\.width=0\.5; set model\.width=1, or model\.weights=none$",
    ):
        network(width=0.5, weights="imagenet")


@pytest.mark.parametrize("wrong", ["resnet34", "half", "empty", "width"])
def test_weights_of_another_network_are_refused(wrong: str, tmp_path: Path) -> None:
    state = torchvision.models.resnet34().state_dict() if wrong == "resnet34" else resnet_state()
    names = list(state)[: {"half": len(state) // 2, "empty": 0}.get(wrong, len(state))]
    save_file({name: state[name].contiguous() for name in names}, tmp_path / "weights.safetensors")
    with pytest.raises(
        UserError, match=r"weights\.safetensors: not weights of resnet18 .*; name another file, or none$"
    ):
        network(
            width=0.5 if wrong == "width" else 1.0,
            branches=("global_local",),
            weights=str(tmp_path / "weights.safetensors"),
        )


# --- fusion, classifiers, loss --------------------------------------------------------------------


def test_recurrent_fusion_is_a_loop_of_lstm_steps() -> None:
    """Eq. 2 and 3 with the gates written out: i, f, g, o of one LSTM unit, h_0 = c_0 = 0."""
    fusion = RecurrentFusion(7).double()
    for parameter in fusion.parameters():
        nn.init.normal_(parameter, std=0.5)
    z_btd = torch.randn(4, 3, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = dict(fusion.lstm.named_parameters())
    hidden = cell = total = torch.zeros(4, 7, dtype=torch.float64)
    for k in range(3):
        gates = (
            z_btd[:, k] @ weights["weight_ih_l0"].T
            + weights["bias_ih_l0"]
            + hidden @ weights["weight_hh_l0"].T
            + weights["bias_hh_l0"]
        )
        i, f, g, o = gates[:, :7], gates[:, 7:14], gates[:, 14:21], gates[:, 21:]
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        hidden = o.sigmoid() * cell.tanh()
        total = total + hidden
    torch.testing.assert_close(fusion(z_btd), total)
    assert not torch.allclose(fusion(z_btd.flip(1)), total)  # the order 1, 2, 3 matters


def test_the_forget_gate_starts_open() -> None:
    lstm = RecurrentFusion(5).lstm
    assert (lstm.bias_ih_l0 + lstm.bias_hh_l0).tolist() == [0.0] * 5 + [1.0] * 5 + [0.0] * 10


@torch.inference_mode()
def test_all_classifiers_answer_in_use_too() -> None:
    """The bars of Figure 6; the last is the answer that counts, the others are those that training
    sees.
    """
    dhaa, batch = network(dropout=0.5).eval(), faces(3)
    answers = dhaa.classifiers(batch)
    assert list(answers) == [*NINE, "DHAA"]
    assert torch.equal(answers["DHAA"], dhaa(batch)["logits"])
    dhaa.training = True  # batch norms and dropout stay in use
    stacked = dhaa(batch)["aux_logits"]
    assert all(torch.equal(stacked[:, k], answers[name]) for k, name in enumerate(NINE))
    assert len({tuple(answer.flatten().tolist()) for answer in answers.values()}) == 10
    assert list(network(subnetwork_losses=False).eval().classifiers(batch)) == ["DHAA"]
    assert list(network(branches=("local",)).eval().classifiers(batch)) == ["L-1", "L-2", "L-3", "DHAA"]


def test_the_loss_is_the_sum_of_ten_cross_entropies() -> None:
    """Eq. 4."""
    dhaa, batch = network(), faces(4)
    outputs, age, years = dhaa(batch), torch.tensor([3.0, 20.0, 41.0, 77.0]), bins(Config(name="dhaa"))
    total, terms = Criterion(Loss(cross_entropy={}), dhaa.outputs, "dhaa")(
        {**outputs, "age": age, "bins": years}
    )
    assert terms.keys() == {"cross_entropy", "aux_cross_entropy"}
    ten = [outputs["logits"], *outputs["aux_logits"].unbind(1)]
    assert len(ten) == 10
    torch.testing.assert_close(
        total, torch.stack([cross_entropy(logits, age, years) for logits in ten]).sum()
    )


@pytest.mark.parametrize("changes", ABLATIONS, ids=named)
def test_the_loss_reaches_every_parameter(changes: dict[str, Any]) -> None:
    dhaa = network(**changes)
    outputs = dhaa(faces(3))
    sum(tensor.float().square().sum() for name, tensor in outputs.items() if name != "embedding").backward()
    idle = [
        name
        for name, parameter in dhaa.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    assert idle == []


@torch.inference_mode()
def test_every_ablation_changes_the_answer() -> None:
    batch, answers = faces(2), []
    for changes in (changes for changes in ABLATIONS if changes.get("subnetwork_losses", True)):
        answers.append(network(**changes).eval()(batch)["logits"])
    assert all(not torch.allclose(one, two) for one, two in combinations(answers, 2))
    in_order = network(branches=("global", "local")).eval()(batch)["logits"]
    assert torch.equal(network(branches=("local", "global")).eval()(batch)["logits"], in_order)


def test_head_and_body_share_no_parameter_and_leave_none_out() -> None:
    dhaa = network()
    head, body = (
        {id(parameter) for parameter in part}
        for part in (dhaa.head_parameters(), dhaa.get_backbone().parameters())
    )
    assert not head & body
    assert head | body == {id(parameter) for parameter in dhaa.parameters()}
    make_optimizer(dhaa, dhaa.head_parameters(), Optimizer(name="sgd", lr=0.1, body_lr=0))
    assert not any(parameter.requires_grad for parameter in dhaa.get_backbone().parameters())
    dhaa(faces(2))["logits"].sum().backward()


# --- in use ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["arp", "roi"])
@torch.inference_mode()
def test_a_photo_and_its_mirror_image_have_the_same_age(pooling: str) -> None:
    """Flip averaging with mirrored points: in the mirror image the region of the left eye shows the
    other eye, so the mean sees both.
    """
    experiment = Experiment(
        model=Config(name="dhaa", pooling=pooling, **SMALL), align={"size": 64, "coverage": 1.2}
    )
    dhaa = build(experiment.model, seed=1).eval()
    for head in (dhaa.head, *dhaa.subnetwork_heads.values()):
        nn.init.normal_(head.weight)
    batch = faces(2, 144)
    photo = {"canvas": batch["face"], "points": batch["points"], "box": torch.zeros(2, 4)}
    mirrored = {
        **photo,
        "canvas": batch["face"].flip(-1),
        "points": geometry.mirror_points(batch["points"], 144),
    }
    both = [
        posterior_module.posterior(dhaa, which, experiment, autocast=False) for which in (photo, mirrored)
    ]
    torch.testing.assert_close(both[1], both[0], atol=1e-4, rtol=1e-2)
    wrong = {**photo, "canvas": batch["face"].flip(-1), "points": batch["points"]}
    assert (
        float((posterior_module.posterior(dhaa, wrong, experiment, autocast=False) - both[0]).abs().max())
        > 1e-3
    )


@torch.inference_mode()
def test_a_face_without_points_is_taken_as_one_where_alignment_puts_it() -> None:
    dhaa, batch = network().eval(), faces(3)
    batch["points"][1] = geometry.template(64)
    expected = dhaa(batch)
    batch["points"][1] = math.nan
    outputs = dhaa(batch)
    torch.testing.assert_close(outputs["embedding"], expected["embedding"], atol=1e-5, rtol=1e-3)
    batch["points"][1] = geometry.template(64) + 3.0
    assert not torch.allclose(dhaa(batch)["embedding"][1], expected["embedding"][1], atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("training", [True, False])
def test_bf16_autocast_gives_about_the_same(training: bool) -> None:
    dhaa, batch = network().train(training), faces(4)
    with torch.no_grad():
        exact = copy.deepcopy(dhaa)(batch)
    with torch.autocast("cpu", torch.bfloat16):
        rough = dhaa(batch)
    for name, tensor in exact.items():
        assert float(F.cosine_similarity(rough[name].float().flatten().detach(), tensor.flatten(), 0)) > 0.98
    sum(tensor.float().square().mean() for tensor in rough.values()).backward()
    gradients = [parameter.grad for parameter in dhaa.parameters() if parameter.grad is not None]
    assert len(gradients) > 100
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)


def test_training_learns_four_faces() -> None:
    dhaa, batch = network(), faces(4)
    age, years = torch.tensor([3.0, 25.0, 50.0, 80.0]), bins(Config(name="dhaa"))
    criterion = Criterion(Loss(cross_entropy={}), dhaa.outputs, "dhaa")
    optimizer = make_optimizer(dhaa, dhaa.head_parameters(), Optimizer(name="sgd", lr=0.01))
    terms = []
    for _ in range(25):
        total, values = criterion({**dhaa(batch), "age": age, "bins": years})
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        terms.append({name: float(value) for name, value in values.items()})
    assert terms[0]["cross_entropy"] == pytest.approx(math.log(101), rel=0.05)
    assert terms[-1]["cross_entropy"] < 0.6 * terms[0]["cross_entropy"]
    assert terms[-1]["aux_cross_entropy"] < 0.6 * terms[0]["aux_cross_entropy"]


@torch.inference_mode()
def test_a_copy_gives_the_same() -> None:
    """The moving average of the weights starts as a deep copy."""
    dhaa, batch = network(pooling="roi").eval(), faces(2)
    assert torch.equal(copy.deepcopy(dhaa)(batch)["logits"], dhaa(batch)["logits"])
    posterior = classifier_posterior(dhaa(batch))
    torch.testing.assert_close(posterior.sum(-1), torch.ones(2))


def test_the_recipe_has_the_papers_constants() -> None:
    experiment = configuration.load([str(ROOT / "configs" / "dhaa.yaml")])
    stage, model = experiment.train.stages[-1], experiment.model
    assert (model.name, model.weights, model.width, model.features, model.region_size) == (
        "dhaa",
        "imagenet",
        1,
        128,
        0,
    )
    assert (
        stage.optimizer.name,
        stage.optimizer.lr,
        stage.optimizer.momentum,
        stage.optimizer.weight_decay,
    ) == ("sgd", 0.01, 0.9, 5e-4)
    assert stage.schedule.name == "step"
    assert experiment.align.size == 256
    assert model.decode.flip
    assert model.decode.method == "expectation"
    assert experiment.loss.auxiliary == 1


def test_ages_classifiers_and_embedding_come_from_one_pass() -> None:
    """An evaluation ran the blocks five times for a face: ages, classifiers and the map."""
    words = ["model={name: dhaa, width: 0.25, ages: [0, 9]}", "align.size=64", "loss={cross_entropy: {}}"]
    config_ = configuration.load([], words)
    network = build(config_.model, seed=0).eval()
    passes = list[int]()
    network.get_backbone().register_forward_pre_hook(lambda *_: passes.append(1))
    generator = torch.Generator().manual_seed(0)
    batch = {
        "canvas": torch.randint(0, 255, (2, 3, 144, 144), dtype=torch.uint8, generator=generator),
        "points": geometry.template(64).expand(2, 5, 2) + 40,
        "box": torch.tensor([[40.0, 40, 104, 104]]).expand(2, 4),
    }
    with torch.inference_mode():
        whole = posterior_module.predict(network, batch, config_, False, details=True)
        assert len(passes) == 1  # the face and its mirror image together
        plain = posterior_module.predict(network, batch, config_, False)
        assert plain.classifiers is None
        assert torch.equal(whole.posterior, plain.posterior)
        apart = posterior_module.classifier_posteriors(network, batch, config_, False)
    assert whole.classifiers is not None
    assert list(whole.classifiers) == list(apart) == list(network.classifier_names)
    for name, posterior in apart.items():
        torch.testing.assert_close(whole.classifiers[name], posterior)
    torch.testing.assert_close(whole.classifiers["DHAA"], whole.posterior)
    assert whole.embedding is not None
    assert whole.embedding.shape == (2, 3 * 128)
