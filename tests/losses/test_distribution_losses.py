"""regression, dldl_v2, mean_variance, sord and or_cnn: against naive loops, hand-worked values and
other packages.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

import pytest
import torch
from coral_pytorch.dataset import levels_from_labelbatch  # type: ignore[import-untyped]
from coral_pytorch.losses import coral_loss  # type: ignore[import-untyped]
from dlordinal.losses import SORDLoss  # type: ignore[import-untyped]
from torch import Tensor

from ageray.experiment import Loss
from ageray.losses.criterion import Criterion
from ageray.losses.cross_entropy import cross_entropy
from ageray.losses.crps import crps
from ageray.losses.distillation import distillation
from ageray.losses.dldl_v2 import dldl_v2
from ageray.losses.mean_variance import mean_variance
from ageray.losses.neighborhood import neighborhood
from ageray.losses.or_cnn import or_cnn
from ageray.losses.regression import number_error, regression
from ageray.losses.sord import sord

Norm = Literal["l1", "l2"]

BINS = torch.arange(-3.0, 31.0, dtype=torch.float64)
AGES = torch.tensor([-3.0, 0.5, 12.49, 12.5, 30.0, 44.0, -9.2], dtype=torch.float64)


def random_logits(columns: int = len(BINS), rows: int = len(AGES)) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * 3


def softmax(row: list[float]) -> list[float]:
    powers = [math.exp(value - max(row)) for value in row]
    return [power / sum(powers) for power in powers]


def rows_of(logits: Tensor) -> list[tuple[list[float], float]]:
    """The posterior and the age of each face."""
    return [(softmax(row), years) for row, years in zip(logits.tolist(), AGES.tolist(), strict=True)]


def mean_of(shares: list[float]) -> float:
    return sum(share * year for share, year in zip(shares, BINS.tolist(), strict=True))


# --- naive loops ----------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_regression_equals_a_naive_loop(norm: Norm) -> None:
    logits = random_logits()
    errors = [abs(mean_of(shares) - years) for shares, years in rows_of(logits)]
    expected = sum(error if norm == "l1" else error**2 for error in errors) / len(errors)
    assert float(regression(logits, AGES, BINS, norm=norm)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_the_error_of_one_regressed_number(norm: Norm) -> None:
    number = torch.tensor([[20.0], [31.5]], dtype=torch.float64)
    errors = (number_error(number, torch.tensor([22.0, 30.0], dtype=torch.float64), norm=norm),)
    assert float(errors[0]) == (1.75 if norm == "l1" else (4 + 2.25) / 2)
    criterion = Criterion(Loss.model_validate({"regression": {"norm": norm}}), {"number", "embedding"}, "m")
    total, _ = criterion({"number": number, "age": torch.tensor([22.0, 30.0]), "bins": BINS})
    assert float(total) == float(errors[0])


@pytest.mark.parametrize("sigma", [0.7, 2.0, 6.0])
@pytest.mark.parametrize("factor", [0.0, 1.0, 2.5])
def test_dldl_v2_equals_a_naive_loop(sigma: float, factor: float) -> None:
    logits, total = random_logits(), 0.0
    for shares, years in rows_of(logits):
        targets = softmax([-((year - years) ** 2) / (2 * sigma**2) for year in BINS.tolist()])
        total += sum(
            target * math.log(target / share) for target, share in zip(targets, shares, strict=True) if target
        )
        total += factor * abs(mean_of(shares) - years)
    got = float(dldl_v2(logits, AGES, BINS, sigma=sigma, expectation=factor))
    assert got == pytest.approx(total / len(AGES), rel=1e-10)


def test_mean_variance_equals_a_naive_loop() -> None:
    logits, mean_loss, variance_loss = random_logits(), 0.0, 0.0
    for shares, years in rows_of(logits):
        mean = mean_of(shares)
        mean_loss += (mean - years) ** 2 / (2 * len(AGES))
        variance_loss += sum(
            share * (year - mean) ** 2 for share, year in zip(shares, BINS.tolist(), strict=True)
        ) / len(AGES)
    for first, second in ((0.2, 0.05), (1.0, 0.0), (0.0, 1.0)):
        got = float(mean_variance(logits, AGES, BINS, mean=first, variance=second))
        assert got == pytest.approx(first * mean_loss + second * variance_loss, rel=1e-12)


def test_crps_equals_a_naive_loop() -> None:
    logits, total = random_logits(), 0.0
    for shares, years in rows_of(logits):
        for number, year in enumerate(BINS.tolist()):
            total += (sum(shares[: number + 1]) - (year >= years)) ** 2
    assert float(crps(logits, AGES, BINS)) == pytest.approx(total / len(AGES), rel=1e-10)


@pytest.mark.parametrize("metric", ["l1", "l2"])
@pytest.mark.parametrize("alpha", [0.1, 1.0, 3.0])
def test_sord_equals_a_naive_loop(metric: Norm, alpha: float) -> None:
    logits, total = random_logits(), 0.0
    for shares, years in rows_of(logits):
        targets = softmax(
            [-alpha * abs(year - years) ** (1 if metric == "l1" else 2) for year in BINS.tolist()]
        )
        total -= sum(target * math.log(share) for target, share in zip(targets, shares, strict=True))
    assert float(sord(logits, AGES, BINS, metric=metric, alpha=alpha)) == pytest.approx(
        total / len(AGES), rel=1e-10
    )


def naive_importance(ages: list[int], questions: list[float]) -> list[float]:
    groups = [sum(age > question for age in ages) for question in questions]
    roots = [math.sqrt(max(group, len(ages) - group)) for group in groups]
    return [root / max(roots) for root in roots]


@pytest.mark.parametrize("importance", ["uniform", "sqrt_count"])
def test_or_cnn_equals_a_naive_loop(importance: Literal["uniform", "sqrt_count"]) -> None:
    logits, questions = random_logits(len(BINS) - 1), BINS[:-1].tolist()
    ages = [min(max(math.floor(years + 0.5), -3), 30) for years in AGES.tolist()]
    weights = naive_importance(ages, questions) if importance == "sqrt_count" else [1.0] * len(questions)
    total = 0.0
    for row, age in zip(logits.tolist(), ages, strict=True):
        for logit, question, weight in zip(row, questions, weights, strict=True):
            share = 1 / (1 + math.exp(-logit))
            total -= weight * math.log(share if age > question else 1 - share)
    assert float(or_cnn(logits, AGES, BINS, importance=importance)) == pytest.approx(
        total / len(AGES), rel=1e-10
    )


# --- known values ---------------------------------------------------------------------------------


def test_two_even_bins_by_hand() -> None:
    """Ages 10 and 12 likely alike: mean 11, variance 1. A face of 14 is 3 years off."""
    bins, age = torch.tensor([10.0, 11.0, 12.0]), torch.tensor([14.0])
    logits = torch.tensor([[0.0, -1e4, 0.0]])
    assert float(regression(logits, age, bins)) == pytest.approx(3)
    assert float(regression(logits, age, bins, norm="l2")) == pytest.approx(9)
    assert float(mean_variance(logits, age, bins)) == pytest.approx(0.2 * 9 / 2 + 0.05 * 1)


def test_a_label_with_a_deviation_has_a_wider_target() -> None:
    logits = torch.randn(2, len(BINS), generator=torch.Generator().manual_seed(3))
    age, age_std = torch.tensor([30.0, 50.0]), torch.tensor([0.0, 4.0])
    each = [dldl_v2(logits[:1], age[:1], BINS, sigma=3.0), dldl_v2(logits[1:], age[1:], BINS, sigma=5.0)]
    got = dldl_v2(logits, age, BINS, sigma=3.0, age_std=age_std)
    torch.testing.assert_close(got, torch.stack(each).mean())
    # the neighborhood loss leaves the factor 2 out: its sigma^2 is twice the variance
    each = [
        neighborhood(logits[:1], age[:1], BINS, sigma=3.0),
        neighborhood(logits[1:], age[1:], BINS, sigma=41**0.5),
    ]
    torch.testing.assert_close(
        neighborhood(logits, age, BINS, sigma=3.0, age_std=age_std), torch.stack(each).mean()
    )
    outputs = {"logits": logits, "age": age, "bins": BINS, "age_std": age_std}
    for wide in (False, True):
        criterion = Criterion(
            Loss.model_validate({"dldl_v2": {"sigma": 3, "label_std": wide}}), {"logits"}, "baseline"
        )
        expected = dldl_v2(logits, age, BINS, sigma=3.0, age_std=age_std if wide else None)
        torch.testing.assert_close(criterion(outputs)[0], expected)
        weighed = criterion(outputs | {"weight": torch.ones(2)})[0]
        torch.testing.assert_close(weighed, expected)


def test_distillation_is_the_cross_entropy_to_the_teacher_of_the_young() -> None:
    generator = torch.Generator().manual_seed(5)
    logits, teacher = (torch.randn(3, len(BINS), generator=generator, dtype=torch.float64) for _ in range(2))
    teacher, age = teacher.softmax(-1), torch.tensor([2.0, 18.0, 30.0], dtype=torch.float64)
    each = -(teacher * logits.log_softmax(-1)).sum(-1)
    torch.testing.assert_close(distillation(logits, teacher, age), each.mean())
    share = torch.sigmoid(torch.tensor([4.0, 0.0, -3.0], dtype=torch.float64))
    torch.testing.assert_close(distillation(logits, teacher, age, below=18, width=4), (share * each).mean())


def test_crps_of_a_certain_posterior_is_its_absolute_error() -> None:
    certain = torch.full((2, len(BINS)), -1e4)
    certain[:, 13] = 0.0  # ten years of age
    age = torch.tensor([4.0, 17.0])
    assert float(crps(certain[:1], age[:1], BINS.float())) == pytest.approx(6)
    assert float(crps(certain[1:], age[1:], BINS.float())) == pytest.approx(7)
    # two halves ten years to either side: each of the 20 years between them costs (1/2)^2
    certain[0, [13, 33]] = torch.tensor([0.0, 0.0])
    assert float(crps(certain[:1], torch.tensor([20.0]), BINS.float())) == pytest.approx(5)
    assert torch.autograd.gradcheck(
        lambda values: crps(values, AGES, BINS), (random_logits().requires_grad_(),)
    )


def test_dldl_v2_is_zero_where_the_posterior_is_the_target() -> None:
    age = torch.tensor([10.0, 13.3], dtype=torch.float64)
    logits = -((BINS - age[:, None]) ** 2) / (2 * 2.0**2)
    assert float(dldl_v2(logits, age, BINS, expectation=0)) == pytest.approx(0, abs=1e-12)
    # a bin lower: the divergence of two Gaussians a year apart is 1 / (2 sigma^2), and the mean is
    # a year off
    assert float(dldl_v2(logits, age + 1, BINS)) == pytest.approx(1 / 8 + 1, rel=1e-4)


def test_sord_l2_is_the_normalised_neighborhood_loss() -> None:
    logits = random_logits()
    torch.testing.assert_close(
        sord(logits, AGES, BINS, alpha=1 / 9), neighborhood(logits, AGES, BINS, sigma=3, normalize=True)
    )


def test_dldl_v2_differs_from_the_cross_entropy_of_its_targets_by_their_entropy() -> None:
    logits, age = random_logits(), torch.full_like(AGES, 13.0)
    target = torch.softmax(-((BINS - 13) ** 2) / (2 * 1.5**2), 0)
    entropy = -(target * target.log()).sum()
    crossed = neighborhood(logits, age, BINS, sigma=1.5 * math.sqrt(2), normalize=True)
    torch.testing.assert_close(dldl_v2(logits, age, BINS, sigma=1.5, expectation=0), crossed - entropy)


def test_narrow_targets_give_cross_entropy() -> None:
    logits, age = random_logits(), AGES.clamp(-3, 30).add(0.5).floor()
    expected = cross_entropy(logits, age, BINS)
    torch.testing.assert_close(sord(logits, age, BINS, alpha=1e4), expected)
    torch.testing.assert_close(sord(logits, age, BINS, metric="l1", alpha=1e4), expected)
    torch.testing.assert_close(dldl_v2(logits, age, BINS, sigma=1e-3, expectation=0), expected)


def test_undecided_questions_cost_log_2_each() -> None:
    logits = torch.zeros(3, len(BINS) - 1, dtype=torch.float64)
    got = float(or_cnn(logits, AGES[:3], BINS))
    assert got == pytest.approx((len(BINS) - 1) * math.log(2))


@pytest.mark.parametrize(
    ("years", "older"),
    [(-9.0, 0), (-3.0, 0), (-2.51, 0), (-2.5, 1), (12.49, 15), (12.5, 16), (30.0, 33), (99.0, 33)],
)
def test_questions_are_answered_by_the_rounded_age(years: float, older: int) -> None:
    right = torch.cat([torch.full((1, older), 30.0), torch.full((1, len(BINS) - 1 - older), -30.0)], -1)
    assert float(or_cnn(right, torch.tensor([years]), BINS.float())) < 1e-10


# --- other packages -------------------------------------------------------------------------------


@pytest.mark.parametrize("importance", ["uniform", "sqrt_count"])
def test_or_cnn_equals_coral_pytorch(importance: Literal["uniform", "sqrt_count"]) -> None:
    bins, logits = torch.arange(0.0, 21.0), random_logits(20).float()
    labels = torch.tensor([0, 3, 3, 7, 12, 20, 19])
    levels = levels_from_labelbatch(labels, num_classes=21)
    weights = (
        torch.tensor(naive_importance(labels.tolist(), bins[:-1].tolist()))
        if importance == "sqrt_count"
        else None
    )
    expected = coral_loss(logits, levels, importance_weights=weights)
    torch.testing.assert_close(or_cnn(logits, labels.float(), bins, importance=importance), expected)


@pytest.mark.parametrize("alpha", [0.3, 1.0, 2.0])
def test_sord_equals_dlordinal(alpha: float) -> None:
    bins, logits, labels = torch.arange(0.0, 21.0), random_logits(21), torch.tensor([0, 3, 3, 7, 12, 20, 19])
    expected = SORDLoss(alpha=alpha, num_classes=21, train_targets=labels)(logits, labels)
    torch.testing.assert_close(
        sord(logits, labels.double(), bins.double(), metric="l1", alpha=alpha), expected
    )


# --- weights by count -----------------------------------------------------------------------------


def test_faces_of_one_age_make_all_questions_alike() -> None:
    logits, age = random_logits(len(BINS) - 1), torch.full_like(AGES, 8.0)
    torch.testing.assert_close(or_cnn(logits, age, BINS, importance="sqrt_count"), or_cnn(logits, age, BINS))
    torch.testing.assert_close(
        or_cnn(logits[:1], age[:1], BINS, importance="sqrt_count"), or_cnn(logits[:1], age[:1], BINS)
    )


def test_weights_by_count_have_a_true_gradient_and_bear_extremes() -> None:
    bins = torch.arange(0.0, 7.0, dtype=torch.float64)
    age, term = AGES[:4], partial(or_cnn, importance="sqrt_count")
    logits = random_logits(6, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda values: term(values, age, bins), (logits,))
    for size in (1e4, -1e4):
        extreme = torch.full((4, 6), size).requires_grad_()
        (gradient,) = torch.autograd.grad(term(extreme, age, bins), extreme)
        assert bool(torch.isfinite(gradient).all())
