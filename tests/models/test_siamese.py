"""The siamese network: what it yields, how it starts, what it computes in; and its settings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ageray import config
from ageray.errors import UserError
from ageray.experiment.model import Siamese as Config
from ageray.losses.contrastive import contrastive
from ageray.losses.criterion import Criterion
from ageray.models.build import build
from ageray.models.siamese import Siamese, _embedding

SIDE = 64


def settings(**changes: Any) -> Config:
    return Config.model_validate({"name": "siamese", "backbone": "resnet18", **changes})


def small_network(**changes: Any) -> Siamese:
    network = build(settings(**changes), seed=0)
    assert isinstance(network, Siamese)
    return network


def faces(count: int = 6) -> dict[str, Tensor]:
    return {"face": torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 255}


# --- what it yields -------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_two_embeddings_in_training_and_in_use(training: bool) -> None:
    network = small_network().train(training)
    outputs = network(faces())
    assert outputs.keys() == network.outputs == {"embedding", "gender_embedding"}
    assert outputs["embedding"].shape == (6, 70)
    assert outputs["gender_embedding"].shape == (6, 10)


def test_sizes_are_settings_and_the_gender_task_can_be_left_out() -> None:
    network = small_network(age_features=2, gender_features=0)
    outputs = network(faces())
    assert outputs.keys() == network.outputs == {"embedding"}
    assert outputs["embedding"].shape == (6, 2)
    assert not [name for name, _ in network.named_parameters() if "gender" in name]
    criterion = config.load([], ["loss.contrastive={}", "loss.gender_contrastive={}"]).loss
    with pytest.raises(UserError, match="gender_contrastive: model 'siamese' does not give gender_embedding"):
        Criterion(criterion, network.outputs, "siamese")


def test_embeddings_are_linear_in_the_backbones_features_and_raw() -> None:
    network = small_network().eval()
    features = network.backbone(faces()["face"])
    with torch.no_grad():
        network.embedding.bias.fill_(3)
        embedding = network(faces())["embedding"]
    expected = features.double() @ network.embedding.weight.double().T + 3
    torch.testing.assert_close(embedding.double(), expected, rtol=1e-4, atol=1e-4)
    assert float(embedding.norm(dim=1).std()) > 1e-3  # normalised they would all be 1


def test_dropout_acts_on_features_in_training_alone() -> None:
    network = small_network(dropout=0.5)
    network.backbone.eval()
    outputs = [network.train()(faces())["embedding"] for _ in range(2)]
    assert not torch.equal(*outputs)
    outputs = [network.eval()(faces())["embedding"] for _ in range(2)]
    assert torch.equal(*outputs)
    assert settings().dropout == 0.5


# --- how it starts --------------------------------------------------------------------------------


class Spread(nn.Module):
    """Pooled features as an ImageNet network has them: positive, of mean 0.5 and spread 0.45."""

    features = 2048

    def forward(self, face: Tensor) -> Tensor:
        return torch.empty(len(face), self.features).log_normal_(
            -1, 0.78, generator=torch.Generator().manual_seed(4)
        )


def test_first_distances_are_where_both_halves_of_the_loss_pull() -> None:
    """At x = 42 the two slopes of Eq. 4 are equal.

    At ten times Q the slope of unlike pairs is 1e-12.
    """
    torch.manual_seed(0)
    network = small_network(gender_features=0).train()
    network.backbone, network.embedding = Spread(), _embedding(2048, 70)  # type: ignore[assignment]
    with torch.no_grad():
        outputs = network({"face": torch.zeros(64, 3, SIDE, SIDE)})
    distance = float(torch.pdist(outputs["embedding"], 1).mean())
    assert 25 < distance < 100
    slopes = {}
    for name, ages in (("like", torch.zeros(64)), ("unlike", torch.arange(64.0) * 10)):
        embedding = outputs["embedding"].clone().requires_grad_()
        contrastive(embedding, ages).backward()  # type: ignore[no-untyped-call]
        assert embedding.grad is not None
        slopes[name] = float(embedding.grad.norm())
    assert 0.1 < slopes["like"] / slopes["unlike"] < 10


def test_the_seed_fixes_the_start_and_no_bias_moves_it() -> None:
    one, two, other = (build(settings(), seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.get_parameter("embedding.weight"), two.get_parameter("embedding.weight"))
    assert not torch.equal(one.get_parameter("embedding.weight"), other.get_parameter("embedding.weight"))
    assert not one.get_parameter("embedding.bias").any()


def test_head_and_body_share_out_all_parameters() -> None:
    network = small_network()
    head, body = (
        {id(p) for p in network.head_parameters()},
        {id(p) for p in network.get_backbone().parameters()},
    )
    assert len(head) == 4
    assert head | body == {id(p) for p in network.parameters()}
    assert not head & body


def test_published_weights_go_into_the_backbone() -> None:
    donor, network = small_network(), build(settings(), seed=5)
    before = network.get_parameter("embedding.weight").clone()
    network.load_backbone(
        {name.removeprefix("network."): tensor for name, tensor in donor.backbone.state_dict().items()}
    )
    assert torch.equal(
        network.get_parameter("backbone.network.conv1.weight"),
        donor.get_parameter("backbone.network.conv1.weight"),
    )
    assert torch.equal(network.get_parameter("embedding.weight"), before)


# --- what it computes in --------------------------------------------------------------------------


def test_under_autocast_the_embedding_layers_stay_in_float32() -> None:
    network, batch = small_network().eval(), faces()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        features = network.backbone(batch["face"])
        outputs = network(batch)
    assert features.dtype == torch.bfloat16
    assert {tensor.dtype for tensor in outputs.values()} == {torch.float32}
    expected = features.float() @ network.embedding.weight.T + network.embedding.bias
    torch.testing.assert_close(outputs["embedding"], expected.detach(), rtol=1e-5, atol=1e-5)


def test_a_step_moves_every_layer() -> None:
    network = small_network().train()
    criterion = Criterion(
        config.load([], ["loss.contrastive={}", "loss.gender_contrastive={}"]).loss,
        network.outputs,
        "siamese",
    )
    batch = {"age": torch.tensor([1.0, 2, 30, 31, 60, 80]), "gender": torch.tensor([0, 1, 0, 1, -1, 1])}
    total, terms = criterion({**network(faces()), **batch})
    total.backward()  # type: ignore[no-untyped-call]
    assert terms.keys() == {"contrastive", "gender_contrastive"}
    still = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    # distances do not see a shift of all embeddings: what a pair gives to a bias, it takes from it
    assert set(still) <= {"embedding.bias", "gender_embedding.bias"}


# --- settings -------------------------------------------------------------------------------------


def test_ages_come_from_neighbours_and_from_nothing_else() -> None:
    assert settings().decode.method == "gallery"
    with pytest.raises(
        UserError,
        match=r"decode\.method 'median' needs a classifier, which 'siamese' has not; "
        r"set decode\.method=gallery",
    ):
        config.load([], ["model.name=siamese", "model.decode.method=median"])


def test_a_decode_that_names_only_one_setting_keeps_the_method() -> None:
    loaded = config.load([], ["model.name=siamese", "model.decode.gallery.neighbours=5"]).model
    assert (loaded.decode.method, loaded.decode.flip) == ("gallery", False)
    assert (loaded.decode.gallery.neighbours, loaded.decode.gallery.exclude_subject) == (5, True)
    assert config.load([], ["model.name=siamese", "model.decode.flip=true"]).model.decode.flip
