"""Losses on a classifier: cross_entropy and neighborhood against naive loops and known values;
gradients, extremes and batches of all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ageray.losses.cross_entropy import cross_entropy
from ageray.losses.dldl_v2 import dldl_v2
from ageray.losses.mean_variance import mean_variance
from ageray.losses.neighborhood import neighborhood
from ageray.losses.or_cnn import or_cnn
from ageray.losses.regression import regression
from ageray.losses.sord import sord

Term = Callable[[Tensor, Tensor, Tensor], Tensor]

BINS = torch.arange(0.0, 101.0)
LONG = torch.arange(-15.0, 121.0)
AGES = torch.tensor([0.0, 0.4, 0.5, 24.5, 24.49, 63.2, 100.0, -2.0, 107.6])


def questions(logits: Tensor, age: Tensor, bins: Tensor) -> Tensor:
    return or_cnn(logits[:, 1:], age, bins)


SOFTMAX: list[Term] = [
    cross_entropy,
    partial(cross_entropy, label_smoothing=0.1),
    neighborhood,
    partial(neighborhood, sigma=1.5),
    partial(neighborhood, normalize=True),
    partial(neighborhood, sigma=2.0, normalize=True),
    regression,
    partial(regression, norm="l2"),
    dldl_v2,
    partial(dldl_v2, sigma=4.0, expectation=0.3),
    mean_variance,
    sord,
    partial(sord, metric="l1", alpha=0.5),
]
TERMS: list[Term] = [*SOFTMAX, questions]


def random_logits(rows: int, bins: Tensor, spread: float = 2.0) -> Tensor:
    return torch.randn(rows, len(bins), generator=torch.Generator().manual_seed(3)) * spread


# --- naive loops ----------------------------------------------------------------------------------


def log_softmax(row: list[float]) -> list[float]:
    top = max(row)
    total = top + math.log(sum(math.exp(value - top) for value in row))
    return [value - total for value in row]


def naive_cross_entropy(logits: Tensor, age: Tensor, bins: Tensor, label_smoothing: float = 0.0) -> float:
    total = 0.0
    for row, years in zip(logits.tolist(), age.tolist(), strict=True):
        own = min(max(math.floor(years + 0.5), int(bins[0])), int(bins[-1]))
        for year, log_share in zip(bins.tolist(), log_softmax(row), strict=True):
            target = (1 - label_smoothing) * (year == own) + label_smoothing / len(bins)
            total -= target * log_share
    return total / len(age)


def naive_neighborhood(
    logits: Tensor, age: Tensor, bins: Tensor, sigma: float = 5.0, normalize: bool = False
) -> float:
    total = 0.0
    for row, years in zip(logits.tolist(), age.tolist(), strict=True):
        if not normalize:  # an age outside the bins counts as that of the outermost
            years = min(max(years, float(bins[0])), float(bins[-1]))
        targets = [math.exp(-((year - years) ** 2) / sigma**2) for year in bins.tolist()]
        norm = sum(targets) if normalize else 1.0
        total -= sum(
            target / norm * log_share for target, log_share in zip(targets, log_softmax(row), strict=True)
        )
    return total / len(age)


@pytest.mark.parametrize("bins", [BINS, LONG], ids=["0..100", "-15..120"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_cross_entropy_equals_a_naive_loop(bins: Tensor, label_smoothing: float) -> None:
    logits = random_logits(len(AGES), bins)
    got = float(cross_entropy(logits, AGES, bins, label_smoothing=label_smoothing))
    assert got == pytest.approx(naive_cross_entropy(logits, AGES, bins, label_smoothing), rel=1e-6)


def test_cross_entropy_summed_over_the_batch() -> None:
    logits = random_logits(len(AGES), BINS)
    got = cross_entropy(logits, AGES, BINS, label_smoothing=0.1, reduction="sum")
    torch.testing.assert_close(got, len(AGES) * cross_entropy(logits, AGES, BINS, label_smoothing=0.1))


@pytest.mark.parametrize("bins", [BINS, LONG], ids=["0..100", "-15..120"])
@pytest.mark.parametrize("sigma", [1.0, 5.0, 12.0])
@pytest.mark.parametrize("normalize", [False, True])
def test_neighborhood_equals_a_naive_loop(bins: Tensor, sigma: float, normalize: bool) -> None:
    logits = random_logits(len(AGES), bins)
    got = float(neighborhood(logits, AGES, bins, sigma=sigma, normalize=normalize))
    assert got == pytest.approx(naive_neighborhood(logits, AGES, bins, sigma, normalize), rel=1e-6)


# --- known values ---------------------------------------------------------------------------------


def test_neighborhood_as_written_has_neither_a_factor_2_nor_a_norm() -> None:
    """Eq. 5 on three bins with sigma 2 and equal logits.

    The targets are e^-1/4, 1, e^-1/4, each times log 3.
    """
    bins, logits, age = torch.arange(3.0), torch.zeros(1, 3), torch.tensor([1.0])
    written = float(neighborhood(logits, age, bins, sigma=2.0))
    assert written == pytest.approx((1 + 2 * math.exp(-1 / 4)) * math.log(3), rel=1e-6)
    assert float(neighborhood(logits, age, bins, sigma=2.0, normalize=True)) == pytest.approx(
        math.log(3), rel=1e-6
    )


def test_normalizing_divides_by_the_sum_of_the_targets() -> None:
    logits, sigma = random_logits(1, BINS), 5.0
    for years in (0.0, 30.3, 100.0):
        norm = sum(math.exp(-((year - years) ** 2) / sigma**2) for year in BINS.tolist())
        age = torch.tensor([years])
        written, normalized = (
            float(neighborhood(logits, age, BINS, sigma=sigma, normalize=choice)) for choice in (False, True)
        )
        assert written == pytest.approx(norm * normalized, rel=1e-5)


@pytest.mark.parametrize("normalize", [True, False])
def test_a_vanishing_sigma_gives_cross_entropy(normalize: bool) -> None:
    age = torch.tensor([0.0, 17.0, 64.0, 100.0])
    logits = random_logits(4, BINS)
    narrow = neighborhood(logits, age, BINS, sigma=1e-3, normalize=normalize)
    torch.testing.assert_close(narrow, cross_entropy(logits, age, BINS))


@pytest.mark.parametrize("level", [0.0, -7.5, 300.0])
def test_uniform_logits(level: float) -> None:
    logits, age = torch.full((3, 101), level), torch.tensor([20.0, 50.0, 80.0])
    for term in (
        cross_entropy,
        partial(cross_entropy, label_smoothing=0.3),
        partial(neighborhood, normalize=True),
    ):
        assert float(term(logits, age, BINS)) == pytest.approx(math.log(101), rel=1e-5)
    # far from both ends the targets of Eq. 5 sum to sigma sqrt(pi)
    assert float(neighborhood(logits, age, BINS, sigma=4.0)) == pytest.approx(
        4 * math.sqrt(math.pi) * math.log(101), rel=1e-5
    )


def test_ages_are_rounded_half_up_to_bins() -> None:
    logits = random_logits(1, BINS)
    shares = torch.log_softmax(logits, -1)[0]
    for years, own in ((24.49, 24), (24.5, 25), (25.4, 25), (-0.4, 0), (99.6, 100)):
        torch.testing.assert_close(cross_entropy(logits, torch.tensor([years]), BINS), -shares[own])


@pytest.mark.parametrize(("years", "end"), [(-40.0, 0), (-0.7, 0), (101.0, 100), (1000.0, 100)])
def test_ages_outside_the_bins_count_as_the_outermost(years: float, end: int) -> None:
    logits, age = random_logits(1, BINS), torch.tensor([years])
    torch.testing.assert_close(cross_entropy(logits, age, BINS), -torch.log_softmax(logits, -1)[0, end])
    crowded = neighborhood(logits, age, BINS, sigma=0.5, normalize=True)
    nearest = neighborhood(logits, BINS[[end]], BINS, sigma=1e-3, normalize=True)
    torch.testing.assert_close(crowded, nearest, rtol=0.05 if abs(years - end) < 2 else 1e-4, atol=1e-4)


@pytest.mark.parametrize(("years", "end"), [(1000.0, 100.0), (-31.0, 0.0)])
def test_an_age_outside_the_bins_trains_at_the_end(years: float, end: float) -> None:
    """Without normalisation its targets would be zero, and the face would have no gradient."""
    logits = random_logits(1, BINS).requires_grad_()
    (gradient,) = torch.autograd.grad(neighborhood(logits, torch.tensor([years]), BINS), logits)
    (at_the_end,) = torch.autograd.grad(neighborhood(logits, torch.tensor([end]), BINS), logits)
    assert gradient.abs().max() > 0.1
    torch.testing.assert_close(gradient, at_the_end)


@pytest.mark.parametrize("normalize", [False, True])
def test_the_sum_of_eq_1_is_the_mean_times_the_batch(normalize: bool) -> None:
    logits, age = random_logits(3, BINS), torch.tensor([4.0, 33.5, 71.0])
    mean = neighborhood(logits, age, BINS, normalize=normalize)
    torch.testing.assert_close(
        neighborhood(logits, age, BINS, normalize=normalize, reduction="sum"), 3 * mean
    )


def test_logits_of_the_target_are_the_minimum() -> None:
    age = torch.tensor([3.0, 41.7, 96.0])
    logits = (-(((LONG[None] - age[:, None]) / 5.0) ** 2)).requires_grad_()
    (gradient,) = torch.autograd.grad(neighborhood(logits, age, LONG, normalize=True), logits)
    assert float(gradient.abs().max()) < 1e-7


# --- gradients and extremes -----------------------------------------------------------------------


@pytest.mark.parametrize("term", TERMS)
def test_gradient_in_float64(term: Term) -> None:
    bins = torch.arange(20.0, 28.0, dtype=torch.float64)
    age = torch.tensor([19.0, 22.5, 24.2, 31.0], dtype=torch.float64)
    logits = random_logits(4, bins).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda values: term(values, age, bins), (logits,))


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("size", [1e4, 1e20, -1e20])
def test_extreme_logits_stay_finite(term: Term, size: float) -> None:
    logits = torch.zeros(2, 101)
    logits[0, 7], logits[1, 60] = size, -size
    logits.requires_grad_()
    loss = term(logits, torch.tensor([7.0, 60.0]), BINS)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert bool(torch.isfinite(loss))
    assert bool(torch.isfinite(gradient).all())


@pytest.mark.parametrize("term", TERMS)
def test_half_precision_logits_give_a_float32_loss(term: Term) -> None:
    logits = random_logits(4, BINS).bfloat16()
    loss = term(logits, AGES[:4], BINS)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, term(logits.float(), AGES[:4], BINS))


@pytest.mark.parametrize("term", TERMS)
def test_autocast_does_not_reach_into_a_loss(term: Term) -> None:
    logits = random_logits(4, BINS).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss = term(logits, AGES[:4], BINS)
    torch.testing.assert_close(loss, term(logits, AGES[:4], BINS), rtol=0, atol=0)


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("years", [-300.0, 5000.0])
def test_ages_far_outside_the_bins_stay_finite(term: Term, years: float) -> None:
    logits = random_logits(3, BINS).requires_grad_()
    loss = term(logits, torch.tensor([years, 20.0, years]), BINS)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert bool(torch.isfinite(loss))
    assert bool(torch.isfinite(gradient).all())


# --- batches --------------------------------------------------------------------------------------


@pytest.mark.parametrize("term", TERMS)
def test_the_loss_of_a_batch_is_the_mean_over_its_faces(term: Term) -> None:
    logits = random_logits(len(AGES), BINS)
    alone = [float(term(logits[[row]], AGES[[row]], BINS)) for row in range(len(AGES))]
    assert float(term(logits, AGES, BINS)) == pytest.approx(sum(alone) / len(alone), rel=1e-5)
    same = torch.full((5,), 33.0)
    once = term(logits[:1], same[:1], BINS)
    torch.testing.assert_close(term(logits[:1].expand(5, -1), same, BINS), once)


@pytest.mark.parametrize("term", TERMS)
@given(order=st.permutations(range(len(AGES))))
@settings(max_examples=5, deadline=None)
def test_the_order_of_the_faces_does_not_matter(term: Term, order: list[int]) -> None:
    logits = random_logits(len(AGES), BINS)
    torch.testing.assert_close(
        term(logits[order], AGES[order], BINS), term(logits, AGES, BINS), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("term", SOFTMAX)
@given(years=st.floats(-10, 115), shift=st.floats(-50, 50), seed=st.integers(0, 1000))
@settings(max_examples=12, deadline=None)
def test_never_negative_and_blind_to_a_shift_of_all_logits(
    term: Term, years: float, shift: float, seed: int
) -> None:
    logits = torch.randn(1, 101, generator=torch.Generator().manual_seed(seed)) * 5
    age = torch.tensor([years])
    loss = term(logits, age, BINS)
    assert float(loss) >= 0
    torch.testing.assert_close(term(logits + shift, age, BINS), loss, rtol=1e-4, atol=1e-4)
