"""`two_tails` against the published network that it starts from: what stays, what trains, and
the mixture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ageray.errors import UserError
from ageray.experiment import Experiment
from ageray.losses.criterion import Criterion
from ageray.models.build import build
from ageray.models.decode import bins, quantiles
from ageray.models.mobilenet import MobileNetV1
from ageray.models.network import AgeNetwork
from ageray.models.two_tails import TwoTails
from ageray.train.optim import make_optimizer

FACES = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 255


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Random weights under the published names."""
    torch.manual_seed(1)
    state = {name: tensor.clone() for name, tensor in MobileNetV1().state_dict().items()}
    heads = {"feats.weight": (256, 1024), "feats.bias": (256,), "age.weight": (100, 256), "age.bias": (100,)}
    state |= {name: torch.randn(shape) * 0.1 for name, shape in heads.items()}
    file = tmp_path_factory.mktemp("weights") / "published.safetensors"
    save_file(state, str(file))
    return str(file)


def network(weights: str = "none", name: str = "two_tails", **model: Any) -> tuple[AgeNetwork, Experiment]:
    content = {"name": name, "ages": [-5, 104], "weights": weights, **model}
    experiment = Experiment.model_validate({"model": content})
    return build(experiment.model, seed=0), experiment


def test_every_tail_starts_as_the_published_network(published: str) -> None:
    whole, _ = network(published, "baseline", backbone="mobilenet_v1", hidden=256)
    both, _ = network(published, tails=2)
    assert isinstance(both, TwoTails)
    with torch.no_grad():
        expected = whole.eval()({"face": FACES})["logits"]
        maps = both.eval().maps(FACES)
        for tail in (both.published, *both.tails):
            torch.testing.assert_close(tail(maps)[0], expected, rtol=1e-4, atol=1e-4)
        # a mixture of equals is each of them
        mixed = both({"face": FACES})["logits"].softmax(-1)
    torch.testing.assert_close(mixed, expected.softmax(-1), rtol=1e-3, atol=1e-6)


def test_only_the_trained_tails_train(published: str) -> None:
    both, experiment = network(published, tails=2, dropout=0.5)
    both.train()
    criterion = Criterion(experiment.loss.model_validate({"dldl_v2": {}}), both.outputs, "two_tails")
    stage = experiment.train.stages[0]
    optimizer = make_optimizer(both, both.head_parameters(), stage.optimizer)
    before = {name: tensor.clone() for name, tensor in both.state_dict().items()}
    outputs = both({"face": FACES})
    assert outputs["aux_logits"].shape == (3, 1, 110)
    loss, terms = criterion(
        outputs | {"age": torch.tensor([5.0, 30.0, 70.0]), "bins": bins(experiment.model)}
    )
    assert terms.keys() == {"dldl_v2", "aux_dldl_v2"}
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    for name, tensor in both.state_dict().items():
        fixed = name.startswith(("trunk.", "published."))
        assert torch.equal(tensor, before[name]) == fixed, name


def test_the_published_tail_counts_for_those_it_sees_young(published: str) -> None:
    both, experiment = network(published, young={"age": 40.0, "width": 5.0, "share": 0.8})
    assert isinstance(both, TwoTails)
    tail = both.tails[0]
    with torch.no_grad():
        tail.age.bias += torch.linspace(0, 3, 110)
        maps = both.eval().maps(FACES)
        p, q = both.published(maps)[0].softmax(-1), tail(maps)[0].softmax(-1)
        got = both({"face": FACES})["logits"].softmax(-1)
    median = quantiles(p, bins(experiment.model), torch.tensor([0.5]))
    share = 0.8 / (1 + torch.exp((median - 40) / 5))
    torch.testing.assert_close(got, share * p + (1 - share) * q, rtol=1e-4, atol=1e-7)


def test_weights_without_an_age_layer_are_refused(published: str, tmp_path: Path) -> None:
    state: dict[str, Tensor] = dict(MobileNetV1().state_dict())
    save_file(state, str(tmp_path / "body.safetensors"))
    with pytest.raises(UserError, match=r"model\.weights=.*no age layer"):
        network(str(tmp_path / "body.safetensors"))
