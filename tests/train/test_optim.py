"""Optimiser groups, freezing, the three optimisers' arithmetic, and the schedule."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import SGD, Adam, AdamW, Optimizer

from ageray.experiment import Optimizer as Config
from ageray.experiment import Schedule
from ageray.experiment.model import Baseline, ClusterCnn, Model
from ageray.models.build import build
from ageray.train.optim import factor, make_optimizer, make_schedule

MODELS: list[Model] = [Baseline(), ClusterCnn(name="cluster_cnn", head="plain")]


def settings_of(optimizer: Optimizer) -> dict[int, tuple[float, float]]:
    """Learning rate and weight decay of each parameter, by identity."""
    settings = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert id(parameter) not in settings
            settings[id(parameter)] = (group["lr"], group["weight_decay"])
    return settings


# --- groups -------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_every_parameter_has_its_rate_and_its_decay(model: Model, name: str) -> None:
    network = build(model)
    config = Config.model_validate({"name": name, "lr": 0.3, "body_lr": 0.02, "weight_decay": 0.01})
    settings = settings_of(make_optimizer(network, network.head_parameters(), config))
    for label, parameter in network.named_parameters():
        lr = 0.3 if label.startswith("head.") else 0.02
        assert settings[id(parameter)] == (
            lr,
            0.0 if label.endswith("bias") or parameter.ndim == 1 else 0.01,
        ), label


def test_without_a_rate_of_its_own_the_body_takes_the_heads() -> None:
    network = build(Baseline())
    settings = settings_of(make_optimizer(network, network.head_parameters(), Config(lr=0.3)))
    assert {lr for lr, _ in settings.values()} == {0.3}
    assert len(settings) == len(list(network.parameters()))


def test_a_body_rate_of_zero_freezes_and_a_later_stage_thaws() -> None:
    network = build(Baseline())
    head = {id(parameter) for parameter in network.head_parameters()}
    frozen = make_optimizer(network, network.head_parameters(), Config(lr=0.1, body_lr=0))
    assert settings_of(frozen).keys() == head
    assert {id(parameter) for parameter in network.parameters() if parameter.requires_grad} == head
    thawed = make_optimizer(network, network.head_parameters(), Config(lr=0.1, body_lr=0.01))
    assert len(settings_of(thawed)) == len(list(network.parameters()))
    assert all(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_on_a_gpu_adam_is_one_kernel_a_group(name: str) -> None:
    for device in ("cpu", "cuda"):
        with FakeTensorMode():
            network = nn.Linear(3, 2, device=device)
        optimizer = make_optimizer(network, [], Config(name=name))
        assert bool(optimizer.defaults["fused"]) == (device == "cuda")


# --- arithmetic ---------------------------------------------------------------------------------


class Tiny(nn.Module):
    """One matrix; its loss has the gradient that is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[1.0, -2.0]]))

    def step(self, optimizer: Optimizer, gradient: Tensor) -> None:
        optimizer.zero_grad()
        (self.weight * gradient).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()


GRADIENTS = (torch.tensor([[0.5, 1.0]]), torch.tensor([[-0.25, 2.0]]), torch.tensor([[0.125, 0.0]]))


def test_sgd_is_nesterovs_with_an_l2_penalty() -> None:
    network, rate, momentum, decay = Tiny(), 0.1, 0.9, 0.01
    expected, velocity = network.weight.detach().clone(), torch.zeros(1, 2)
    optimizer = make_optimizer(
        network, [], Config(name="sgd", lr=rate, momentum=momentum, weight_decay=decay)
    )
    assert isinstance(optimizer, SGD)
    for step, gradient in enumerate(GRADIENTS):
        network.step(optimizer, gradient)
        full = gradient + decay * expected
        velocity = momentum * velocity + full if step else full
        expected = expected - rate * (full + momentum * velocity)
        torch.testing.assert_close(network.weight.detach(), expected)


@pytest.mark.parametrize(("name", "kind"), [("adam", Adam), ("adamw", AdamW)])
def test_adam_and_adamw_by_hand(name: str, kind: type[Optimizer]) -> None:
    network, rate, beta, decay = Tiny(), 0.1, 0.8, 0.01
    expected = network.weight.detach().clone()
    first, second = torch.zeros(1, 2), torch.zeros(1, 2)
    config = Config.model_validate({"name": name, "lr": rate, "momentum": beta, "weight_decay": decay})
    optimizer = make_optimizer(network, [], config)
    assert type(optimizer) is kind
    for step, gradient in enumerate(GRADIENTS, 1):
        network.step(optimizer, gradient)
        if name == "adam":
            gradient = gradient + decay * expected
        else:  # adamw's decay is decoupled
            expected = expected * (1 - rate * decay)
        first, second = beta * first + (1 - beta) * gradient, 0.999 * second + 0.001 * gradient**2
        expected = expected - rate * (first / (1 - beta**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
        torch.testing.assert_close(network.weight.detach(), expected)


def test_sgd_without_momentum_is_plain() -> None:
    network = Tiny()
    network.step(
        make_optimizer(network, [], Config(name="sgd", lr=0.5, momentum=0, weight_decay=0)), GRADIENTS[0]
    )
    torch.testing.assert_close(network.weight.detach(), torch.tensor([[0.75, -2.5]]))


# --- schedule -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"name": "constant", "warmup": 0}, {0: 1, 57: 1, 99: 1}),
        ({"name": "constant", "warmup": 0.05}, {0: 0.2, 1: 0.4, 4: 1, 5: 1, 99: 1}),
        (
            {"name": "cosine", "warmup": 0},
            {0: 1, 25: 0.5 + math.sqrt(0.125), 50: 0.5, 75: 0.5 - math.sqrt(0.125), 100: 0},
        ),
        ({"name": "cosine", "warmup": 0.2}, {0: 0.05, 9: 0.5, 19: 1, 20: 1, 60: 0.5, 100: 0}),
        (
            {"name": "step", "warmup": 0, "milestones": [0.5, 0.75]},
            {0: 1, 49: 1, 50: 0.1, 74: 0.1, 75: 0.01, 99: 0.01},
        ),
        ({"name": "step", "warmup": 0.1, "milestones": [0.3]}, {0: 0.1, 9: 1, 10: 1, 29: 1, 30: 0.1}),
        ({"name": "step", "warmup": 0, "milestones": []}, {0: 1, 99: 1}),
    ],
)
def test_factors_by_hand(config: dict[str, Any], expected: dict[int, float]) -> None:
    schedule = Schedule.model_validate(config)
    assert {step: factor(schedule, step, 100) for step in expected} == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", ["constant", "cosine", "step"])
@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 1.0])
def test_the_shortest_runs_have_a_rate_at_every_step(name: str, steps: int, warmup: float) -> None:
    schedule = Schedule.model_validate({"name": name, "warmup": warmup})
    assert all(0 < factor(schedule, step, steps) <= 1 for step in range(steps))


def test_the_scheduler_scales_every_group_alike() -> None:
    network = build(Baseline())
    optimizer = make_optimizer(network, network.head_parameters(), Config(lr=0.3, body_lr=0.02))
    config = Schedule(name="cosine", warmup=0.2)
    schedule = make_schedule(optimizer, config, 10)
    peaks = {0.3, 0.02}
    for step in range(10):
        rates = sorted({group["lr"] for group in optimizer.param_groups})
        assert rates == pytest.approx(sorted(peak * factor(config, step, 10) for peak in peaks))
        optimizer.step()
        schedule.step()


def test_sgd_may_have_plain_momentum() -> None:
    network = Tiny()
    config = Config(name="sgd", lr=0.5, momentum=0.9, weight_decay=0, nesterov=False)
    optimizer = make_optimizer(network, [], config)
    network.step(optimizer, GRADIENTS[0])
    network.step(optimizer, GRADIENTS[1])
    velocity = 0.9 * GRADIENTS[0] + GRADIENTS[1]
    torch.testing.assert_close(
        network.weight.detach(), torch.tensor([[1.0, -2.0]]) - 0.5 * (GRADIENTS[0] + velocity)
    )


def test_adadelta_has_the_decay_of_the_settings() -> None:
    optimizer = make_optimizer(Tiny(), [], Config(name="adadelta", lr=1.0, rho=0.95))
    assert optimizer.param_groups[0]["rho"] == 0.95
