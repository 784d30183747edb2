"""`train.compile`: network and loss are one graph, with the losses of the training as it is."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from ageray.experiment import Experiment
from ageray.faces import noise
from ageray.losses.triplet import triplet
from ageray.models.dhaa import RecurrentFusion
from ageray.train.loop import init_network, train_one_epoch
from ageray.train.state import State, new_state
from tests.train.test_golden import drawn_batches, scaled_down

CPU = torch.device("cpu")


def with_compile(experiment: Experiment, compiled: bool) -> Experiment:
    train = experiment.train.model_copy(update={"compile": compiled})
    return experiment.model_copy(update={"train": train})


def of_fixed_sizes(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
    """The graph as it is; AssertionError if a size or number in it depends on a tensor's values."""
    for node in graph.graph.nodes:
        value = node.meta.get("example_value")
        sizes = value.shape if isinstance(value, Tensor) else [value]
        assert not any(isinstance(size, torch.SymInt | torch.SymFloat) for size in sizes), node
    return graph


@pytest.fixture
def whole_graphs(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """torch.compile without a compiler, which raises an error where a graph would break; the
    options of each call.

    `fullgraph` itself takes sizes and numbers that depend on values into the graph, which break it
    without that option.
    """
    options: list[dict[str, Any]] = []
    compile_ = torch.compile

    def whole(function: Any, **given: Any) -> Any:
        options.append(given)
        return compile_(function, backend=of_fixed_sizes, fullgraph=True, dynamic=given["dynamic"])

    monkeypatch.setattr(torch, "compile", whole)
    torch._dynamo.reset()
    return options


@pytest.mark.parametrize(
    "recipe",
    [
        "default",
        "googlenet",
        "baseline",
        "cluster_cnn",
        "neighborhood",
        "siamese",
        pytest.param("deep_embedding", marks=pytest.mark.slow),
        pytest.param("dhaa", marks=pytest.mark.slow),
    ],
)
def test_network_and_loss_are_one_graph_with_the_same_losses(
    recipe: str, whole_graphs: list[dict[str, Any]]
) -> None:
    settings, losses = scaled_down(recipe), {}
    batches = drawn_batches(16, settings.align)
    for compiled in (False, True):
        state = new_state(with_compile(settings, compiled), CPU)
        init_network(state, batches)
        state.start_stage(0, 2)
        losses[compiled] = [train_one_epoch(state, [batch]).loss for batch in batches]
    assert losses[True] == pytest.approx(losses[False], rel=1e-3)
    assert whole_graphs == [{"mode": None, "dynamic": False}]  # CUDA graphs are for GPUs


def test_an_unrolled_lstm_is_the_lstm() -> None:
    torch.manual_seed(0)
    fusion = RecurrentFusion(32)
    z_BTD = torch.randn(5, 3, 32, requires_grad=True)
    torch.testing.assert_close(fusion.unrolled(z_BTD), fusion(z_BTD), rtol=0, atol=1e-6)
    gradients = []
    for output in (fusion.unrolled(z_BTD), fusion(z_BTD)):
        fusion.zero_grad()
        output.square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in fusion.parameters()])  # type: ignore[union-attr]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
    # weights are the LSTM's, also after they were loaded, copied and cast
    other = copy.deepcopy(fusion)
    other.load_state_dict({name: 2 * tensor for name, tensor in fusion.state_dict().items()})
    torch.testing.assert_close(other.unrolled(z_BTD), other(z_BTD), rtol=0, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        rough = fusion.unrolled(z_BTD)
        assert rough.dtype == fusion(z_BTD).dtype == torch.bfloat16
    torch.testing.assert_close(rough.float(), fusion(z_BTD), rtol=0, atol=0.03)


def test_an_lstm_does_not_break_a_graph() -> None:
    torch._dynamo.reset()
    fusion = RecurrentFusion(32)
    whole = torch.compile(fusion, backend="eager", fullgraph=True)
    z_BTD = torch.randn(5, 3, 32)
    torch.testing.assert_close(whole(z_BTD), fusion(z_BTD), rtol=0, atol=1e-6)


def test_mined_triplets_do_not_break_a_graph() -> None:
    """Of a batch with more candidates than faces, and of one with fewer."""
    torch._dynamo.reset()
    whole = torch.compile(triplet, backend=of_fixed_sizes, fullgraph=True, dynamic=False)
    torch.manual_seed(0)
    embedding_BD, age_B = torch.randn(12, 4), torch.tensor([20.0, 31.0, 47.0]).repeat(4)
    for top_k in (64, 5):
        expected = triplet(embedding_BD, age_B, top_k=top_k)
        torch.testing.assert_close(whole(embedding_BD, age_B, top_k=top_k), expected)


def test_noise_does_not_break_a_graph() -> None:
    torch._dynamo.reset()
    whole = torch.compile(noise.normal, backend=of_fixed_sizes, fullgraph=True)
    key = torch.tensor([3, -4])
    torch.testing.assert_close(whole(key, 9), noise.normal(key, 9))


def test_losses_outlive_the_memory_of_a_graph() -> None:
    """A CUDA graph writes its outputs into the same memory in each step."""
    loss, term = torch.zeros(()), torch.zeros(())

    def replayed(batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return loss.fill_(float(batch["age"])), {"term": term.fill_(2 * float(batch["age"]))}

    state: State = new_state(scaled_down("baseline"), CPU)
    state.batch_loss._replays, state.batch_loss._compute = True, replayed  # type: ignore[assignment]
    steps = [state.batch_loss({"age": torch.tensor(age)}) for age in (1.0, 5.0)]
    assert [float(value) for value, _ in steps] == [1, 5]
    assert [float(terms["term"]) for _, terms in steps] == [2, 10]
