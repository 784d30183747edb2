"""The weighted sum of loss terms: what it calls with what, what it gives back, what it refuses."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import Tensor

from ageray.errors import UserError
from ageray.experiment.loss import CrossEntropy, Loss, Neighborhood
from ageray.losses.criterion import FIELDS, TERMS, Criterion, check_finite
from ageray.losses.cross_entropy import cross_entropy
from ageray.losses.neighborhood import neighborhood

OUTPUTS = frozenset({"embedding", "logits"})
BOTH = Loss(cross_entropy=CrossEntropy(weight=0.4, label_smoothing=0.1), neighborhood=Neighborhood(weight=2.5, sigma=3, normalize=True))


def tensors() -> dict[str, Tensor]:
    """In an order that no term's signature has, with names that no term asks for."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 136, generator=generator, requires_grad=True)
    bins, age = torch.arange(-15.0, 121.0), torch.tensor([3.0, 20.5, 41.0, 66.6, 90.0])
    return {"points": torch.zeros(5, 5, 2), "bins": bins, "embedding": torch.zeros(5, 8), "age": age, "logits": logits}


def test_sum_of_weighted_terms_and_each_term_unweighted() -> None:
    batch = tensors()
    total, terms = Criterion(BOTH, OUTPUTS, "baseline")(batch)
    logits, age, bins = batch["logits"], batch["age"], batch["bins"]
    first = cross_entropy(logits, age, bins, label_smoothing=0.1)
    second = neighborhood(logits, age, bins, sigma=3, normalize=True)
    assert list(terms) == ["cross_entropy", "neighborhood"]
    assert torch.equal(terms["cross_entropy"], first)
    assert torch.equal(terms["neighborhood"], second)
    torch.testing.assert_close(total, 0.4 * first + 2.5 * second)


def test_only_the_sum_carries_a_gradient() -> None:
    batch = tensors()
    total, terms = Criterion(BOTH, OUTPUTS, "baseline")(batch)
    assert total.shape == ()
    assert not any(value.requires_grad for value in terms.values())
    (gradient,) = torch.autograd.grad(total, batch["logits"])
    assert bool(gradient.abs().sum() > 0)


def test_a_term_that_is_not_named_is_not_used() -> None:
    total, terms = Criterion(Loss(neighborhood=Neighborhood()), OUTPUTS, "baseline")(tensors())
    assert list(terms) == ["neighborhood"]
    assert float(total) == float(terms["neighborhood"])


def test_a_term_whose_tensors_the_model_lacks_is_refused_naming_both() -> None:
    with pytest.raises(UserError) as caught:
        Criterion(Loss(neighborhood=Neighborhood()), frozenset({"embedding", "distances"}), "gallery")
    assert str(caught.value) == (
        "loss.neighborhood: model 'gallery' does not give logits (it gives distances, embedding); use another term or another model"
    )


def test_a_loss_without_terms_is_refused_naming_those_there_are() -> None:
    with pytest.raises(UserError, match=f"^loss: no term is configured; name at least one of {', '.join(TERMS)}, e.g. loss."):
        Criterion(Loss(), OUTPUTS, "baseline")


@pytest.mark.parametrize("name", list(Loss.model_fields))
def test_every_term_of_the_vocabulary_has_a_function_with_its_options(name: str) -> None:
    """Options are the keyword-only parameters, with the configuration's defaults; the others name tensors."""
    parameters = inspect.signature(TERMS[name]).parameters.values()
    settings = {"cross_entropy": CrossEntropy(), "neighborhood": Neighborhood()}[name].model_dump(exclude={"weight"})
    assert {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY} == settings
    named = {p.name for p in parameters if p.kind is not p.KEYWORD_ONLY}
    assert named <= FIELDS | OUTPUTS
    assert TERMS.keys() == Loss.model_fields.keys()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_not_finite_is_named_with_its_step(value: float) -> None:
    values = {"loss": torch.tensor(value), "cross_entropy": torch.tensor(1.0), "neighborhood": torch.tensor(value)}
    with pytest.raises(FloatingPointError, match=r"^step 17: loss term loss, neighborhood is not finite; "):
        check_finite(values, 17)


def test_finite_losses_pass() -> None:
    check_finite({"loss": torch.tensor(0.0), "neighborhood": torch.tensor(3e38)}, 1)
