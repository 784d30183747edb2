"""From a posterior to an age and to quantiles: against naive loops, and what bins beyond the ends
are for.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ageray.experiment.model import Baseline, Decode
from ageray.models.decode import bins, decode, quantiles

LEVELS = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])


def posteriors(count: int, ages: tuple[int, int] = (0, 100), spread: float = 3.0, seed: int = 0) -> Tensor:
    logits = torch.randn(count, ages[1] - ages[0] + 1, generator=torch.Generator().manual_seed(seed)) * spread
    return torch.softmax(logits, -1)


def config(method: str = "expectation", ages: tuple[int, int] = (0, 100)) -> Baseline:
    return Baseline.model_validate({"ages": ages, "decode": {"method": method}})


def naive_quantile(shares: list[float], first: int, level: float) -> float:
    """Walks along a density that is flat over each bin's year."""
    mass, below = level * sum(shares), 0.0
    for index, share in enumerate(shares):
        if below + share >= mass and share > 0:
            return first + index - 0.5 + (mass - below) / share
        below += share
    raise AssertionError("the shares end below the level")


def test_bins_are_whole_years() -> None:
    assert bins(config(ages=(-2, 3))).tolist() == [-2, -1, 0, 1, 2, 3]
    assert bins(Baseline()).tolist() == list(range(101))


@pytest.mark.parametrize("ages", [(0, 100), (-15, 120)])
def test_expectation_argmax_and_median_equal_naive_loops(ages: tuple[int, int]) -> None:
    posterior = posteriors(40, ages)
    for row, expectation, mode, median in zip(
        posterior.double().tolist(),
        decode(posterior, config("expectation", ages)).tolist(),
        decode(posterior, config("argmax", ages)).tolist(),
        decode(posterior, config("median", ages)).tolist(),
        strict=True,
    ):
        assert expectation == pytest.approx(
            sum(share * (ages[0] + index) for index, share in enumerate(row)), abs=1e-3
        )
        assert mode == ages[0] + max(range(len(row)), key=row.__getitem__)
        assert median == pytest.approx(naive_quantile(row, ages[0], 0.5), abs=1e-3)


def test_levels_read_the_age_at_another_share_of_the_posterior() -> None:
    levels = [{"age": 20, "share": 0.3}, {"age": 30, "share": 0.5}, {"age": 50, "share": 0.5}]
    levels.append({"age": 60, "share": 0.8})
    settings = Baseline.model_validate({"decode": {"method": "median", "levels": levels}})
    posterior = torch.softmax(-((torch.arange(101) - torch.linspace(5, 90, 60)[:, None]) ** 2) / 50, -1)
    medians = decode(posterior, config("median")).tolist()
    shares = np.interp(medians, [20, 30, 50, 60], [0.3, 0.5, 0.5, 0.8]).tolist()
    assert {0.3, 0.5, 0.8} < set(shares)
    expected = []
    for row, share in zip(posterior.double().tolist(), shares, strict=True):
        expected.append(naive_quantile(row, 0, share))
    assert decode(posterior, settings).tolist() == pytest.approx(expected, abs=2e-3)
    (only,) = decode(posterior[:1], settings.model_copy(update={"decode": constant_level(0.25)})).tolist()
    assert only == pytest.approx(naive_quantile(posterior[0].double().tolist(), 0, 0.25), abs=2e-3)


def constant_level(share: float) -> Decode:
    return Decode.model_validate({"method": "median", "levels": [{"age": 40, "share": share}]})


def test_mistakes_with_levels() -> None:
    with pytest.raises(ValueError, match="levels are of method median, not of expectation; set levels to"):
        Decode.model_validate({"levels": [{"age": 40, "share": 0.4}]})
    twice = [{"age": 40, "share": 0.4}, {"age": 40, "share": 0.5}]
    with pytest.raises(ValueError, match="the ages of levels must ascend; got"):
        Decode.model_validate({"method": "median", "levels": twice})


def test_quantiles_equal_a_naive_loop() -> None:
    posterior = posteriors(40, (-15, 120))
    quantile_ages = quantiles(posterior, bins(config(ages=(-15, 120))), LEVELS)
    assert quantile_ages.shape == (40, 5)
    for row, ages in zip(posterior.double().tolist(), quantile_ages.tolist(), strict=True):
        assert ages == pytest.approx([naive_quantile(row, -15, level) for level in LEVELS.tolist()], abs=2e-3)


def test_quantiles_of_posteriors_that_can_be_read_off() -> None:
    years, ends = torch.arange(0.0, 101.0), torch.tensor([0.0, 0.05, 0.5, 0.95, 1.0])
    flat, one, two = torch.full((101,), 1 / 101), torch.zeros(101), torch.zeros(101)
    one[42], two[10], two[90] = 1, 0.5, 0.5
    quantile_ages = quantiles(torch.stack([flat, one, two]), years, ends)
    torch.testing.assert_close(quantile_ages[0], -0.5 + 101 * ends, atol=1e-3, rtol=0)
    torch.testing.assert_close(quantile_ages[1, 1:], 41.5 + ends[1:], atol=1e-3, rtol=0)
    torch.testing.assert_close(quantile_ages[2, 1:], torch.tensor([9.6, 10.5, 90.4, 90.5]), atol=1e-3, rtol=0)
    outer = torch.zeros(2, 101)
    outer[0, 0], outer[1, 100] = 1, 1
    torch.testing.assert_close(quantiles(outer, years, torch.tensor([0.5])), torch.tensor([[0.0], [100.0]]))


@given(
    seed=st.integers(0, 10_000),
    spread=st.floats(0, 30),
    low=st.floats(0.001, 0.999),
    high=st.floats(0.001, 0.999),
)
@settings(max_examples=80, deadline=None)
def test_quantiles_ascend_within_the_bins_and_cut_off_their_share(
    seed: int, spread: float, low: float, high: float
) -> None:
    posterior = posteriors(3, (-15, 120), spread, seed)
    levels = torch.tensor(sorted((low, high)))
    quantile_ages = quantiles(posterior, torch.arange(-15.0, 121.0), levels)
    assert bool((quantile_ages[:, 0] <= quantile_ages[:, 1] + 1e-4).all())
    assert bool(((quantile_ages >= -15.5) & (quantile_ages <= 120.5)).all())
    for row, ages in zip(posterior.double().numpy(), quantile_ages.double().numpy(), strict=True):
        edges, shares = np.arange(-15.5, 121), np.concatenate([[0], row.cumsum()])
        assert np.interp(ages, edges, shares) == pytest.approx(levels.numpy(), abs=1e-4)


def test_an_empty_batch() -> None:
    nobody = torch.zeros(0, 101)
    assert (
        decode(nobody, config()).shape
        == decode(nobody, config("median")).shape
        == decode(nobody, config("argmax")).shape
        == (0,)
    )
    assert quantiles(nobody, torch.arange(0.0, 101.0), LEVELS).shape == (0, 5)


def test_half_precision_posteriors_decode() -> None:
    posterior = posteriors(5)
    torch.testing.assert_close(
        decode(posterior.double(), config()).float(), decode(posterior, config()), atol=1e-3, rtol=0
    )


# --- bins beyond the ends -------------------------------------------------------------------------


def gaussian(age: float, ages: tuple[int, int], sigma: float = 5.0) -> Tensor:
    """The neighborhood term's normalised target: what a perfect network would answer."""
    return torch.softmax(-((bins(config(ages=ages)) - age) / sigma).square(), -1)[None]


@pytest.mark.parametrize("method", ["expectation", "median"])
def test_bins_beyond_both_ends_take_the_bias_from_infants_and_the_very_old(method: str) -> None:
    for age, pull in ((0, 2.0), (1, 1.3), (2, 0.7), (98, -0.7), (99, -1.3), (100, -2.0)):
        cut, whole = (
            float(decode(gaussian(age, ages), config(method, ages))) - age for ages in ((0, 100), (-15, 120))
        )
        assert cut * np.sign(pull) > abs(pull) * (1 if method == "expectation" else 0.7)
        assert abs(whole) < 0.01


def test_the_pull_of_bins_cut_off_at_birth() -> None:
    """The expectation of half a Gaussian with standard deviation 5 / sqrt(2), over whole years."""
    shares = [np.exp(-(year**2) / 25) for year in range(101)]
    expected = sum(year * share for year, share in enumerate(shares)) / sum(shares)
    assert float(decode(gaussian(0, (0, 100)), config())) == pytest.approx(expected, abs=1e-4)
    assert expected == pytest.approx(2.5, abs=0.1)


def test_every_age_in_between_comes_back() -> None:
    for age in np.linspace(0, 105, 50):
        assert float(decode(gaussian(age, (-15, 120)), config(ages=(-15, 120)))) == pytest.approx(
            age, abs=0.02
        )


def test_default_decoding_is_the_expectation() -> None:
    assert Decode().method == "expectation"
