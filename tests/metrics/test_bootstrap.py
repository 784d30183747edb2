"""Bootstrap intervals and paired tests: against SciPy, and by simulation of what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from ageray import metrics
from ageray.metrics.bootstrap import Bootstrap, with_intervals
from ageray.metrics.mean import Mean
from ageray.metrics.paired_tests import sign_flip_test, signed_rank_test
from ageray.metrics.risk_coverage import RiskCoverage

Values = NDArray[np.float64]


def names(unit_N: NDArray[np.int64]) -> list[str | None]:
    return [f"{unit}" for unit in unit_N]


def interval(values: Values, subjects: list[str | None] | None = None, **options: int) -> tuple[float, float]:
    (result,) = Bootstrap(len(values), subjects, **options).intervals([Mean.over(values)])
    assert result is not None
    return result


def test_the_interval_of_a_mean_is_scipys() -> None:
    """SciPy's BCa with 20,000 resamples: the ends agree up to the noise of other draws."""
    errors = np.random.default_rng(0).gamma(1.2, 4, 150)
    theirs = stats.bootstrap((errors,), np.mean, n_resamples=20_000, method="BCa", rng=1).confidence_interval
    assert interval(errors, resamples=20_000) == pytest.approx(
        (theirs.low, theirs.high), abs=0.02 * errors.std()
    )


def test_a_weighted_mean_of_a_part_is_scipys() -> None:
    """A ratio of sums over some of the rows; SciPy resamples the pairs."""
    rng = np.random.default_rng(3)
    errors, weights, part = rng.gamma(1, 5, 300), rng.integers(1, 5, 300).astype(float), rng.random(300) < 0.6

    def ratio(value: Values, weight: Values, axis: int) -> Values:
        return np.asarray((value * weight).sum(axis) / weight.sum(axis))

    pairs = (errors[part], weights[part])
    theirs = stats.bootstrap(
        pairs, ratio, paired=True, n_resamples=9999, method="BCa", rng=1
    ).confidence_interval
    (result,) = Bootstrap(300, resamples=9999).intervals([Mean.over(errors, part, weights)])
    assert result == pytest.approx((theirs.low, theirs.high), abs=0.04 * errors.std())


def test_the_figures_of_a_tree_stay_in_their_places() -> None:
    rng = np.random.default_rng(4)
    values, part = rng.normal(5, 1, 100), np.arange(100) < 50
    tree = {
        "all": Mean.over(values),
        "rows": [{"name": "half", "images": 50, "mae": Mean.over(values, part)}],
        "none": None,
    }
    result = with_intervals(tree, Bootstrap(100, resamples=300))
    assert (result["none"], result["rows"][0]["name"], result["rows"][0]["images"]) == (None, "half", 50)
    for place, part in ((result["all"], values), (result["rows"][0]["mae"], values[:50])):
        assert place["value"] == pytest.approx(part.mean())
        half = 1.96 * part.std() / np.sqrt(len(part))
        assert (place["low"], place["high"]) == pytest.approx(
            (part.mean() - half, part.mean() + half), abs=0.3 * half
        )


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(5).normal(0, 1, 200)
    assert interval(values, seed=3) == interval(values, seed=3)
    assert interval(values, seed=3) != interval(values, seed=4)


def test_figures_in_blocks_and_resamples_in_chunks_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(5).normal(0, 1, 200)
    means = [Mean.over(values), Mean.over(values**2), Mean.over(values > 0)]
    whole = Bootstrap(200).intervals(means)
    monkeypatch.setattr("ageray.metrics.bootstrap._CELLS", 1000)
    monkeypatch.setattr("ageray.metrics.bootstrap._TERMS", 250)
    for result, expected in zip(Bootstrap(200).intervals(means), whole, strict=True):
        assert result == pytest.approx(expected)


def test_counts_draw_as_many_units_as_there_are() -> None:
    bootstrap = Bootstrap(6, ["a", "a", "b", None, "c", None], resamples=300)
    assert (bootstrap.unit, bootstrap.units, bootstrap.unit_N.tolist()) == ("subject", 5, [0, 0, 1, 2, 3, 4])
    counts = np.concatenate(list(bootstrap.counts()))
    assert counts.shape == (300, 5)
    assert set(counts.sum(1)) == {5}
    assert counts.mean(0) == pytest.approx(np.ones(5), abs=0.25)
    faces = np.concatenate(list(bootstrap.face_counts()))
    assert np.array_equal(faces[:, 0], faces[:, 1])


def test_all_subjects_unknown_is_a_bootstrap_of_images() -> None:
    assert (Bootstrap(4, [None] * 4).unit, Bootstrap(4, [None] * 4).units) == ("image", 4)


@pytest.mark.parametrize("share", [0, 1])
def test_a_share_of_none_or_all_has_the_exact_binomial_interval(share: int) -> None:
    """The bootstrap would claim certainty: no resample has another share."""
    exact = stats.binomtest(20 * share, 20).proportion_ci(method="exact")
    result = interval(np.full(20, bool(share)))
    assert result == pytest.approx((exact.low, exact.high))
    subjects = names(np.repeat(np.arange(5), 4))
    five = stats.binomtest(5 * share, 5).proportion_ci(method="exact")
    assert interval(np.full(20, bool(share)), subjects) == pytest.approx((five.low, five.high))


def test_fewer_than_ten_units_have_no_interval() -> None:
    values = np.arange(40.0)
    subjects = names(np.repeat(np.arange(9), 5)[:40])
    assert Bootstrap(40, subjects).intervals([Mean.over(values)]) == [None]
    assert Bootstrap(40).intervals([Mean.over(values, values < 9)]) == [None]
    assert Bootstrap(40).intervals([Mean.over(values, values < 10)]) != [None]
    assert Bootstrap(9).percentiles(lambda counts: counts[:, :2]) == [None, None]
    assert Bootstrap(40).intervals([Mean.over(values, values < 0)]) == [None]


def test_a_figure_that_does_not_vary_has_no_width() -> None:
    assert interval(np.full(50, 7.3)) == pytest.approx((7.3, 7.3))


def test_settings_that_make_no_sense_are_errors() -> None:
    for options in ({"level": 1.0}, {"level": 0.0}, {"resamples": 0}):
        with pytest.raises(ValueError, match="between 0 and 1"):
            Bootstrap(10, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="2 subjects for 3 faces"):
        Bootstrap(3, ["a", "b"])


def test_refusal_of_a_resample_is_that_of_the_repeated_faces() -> None:
    """Face counts give the same as the repeated faces, ties in the widths included."""
    rng = np.random.default_rng(6)
    errors, widths = rng.gamma(2, 3, 40), rng.integers(0, 12, 40).astype(float)
    counts = np.stack([np.bincount(rng.integers(0, 40, 40), minlength=40) for _ in range(20)])
    shares = (0.05, 0.3, 0.5, 0.99, 1.0)
    result = RiskCoverage(errors, widths).figures(counts.astype(float), shares)
    for drawn, row in zip(counts, result, strict=True):
        again = RiskCoverage(np.repeat(errors, drawn), np.repeat(widths, drawn)).figures(
            np.ones((1, 40)), shares
        )
        assert row == pytest.approx(again[0])


# --- by simulation --------------------------------------------------------------------------------


def test_intervals_cover_as_often_as_they_say() -> None:
    """95 % intervals of MAE and of a share hold the truth in 92 to 98 % of 300 data sets."""
    rng, sets, faces = np.random.default_rng(7), 300, 200
    hits = np.zeros(2)
    for run in range(sets):
        errors = np.abs(rng.laplace(0, 5, faces))
        result = Bootstrap(faces, resamples=400, seed=run).intervals(
            [Mean.over(errors), Mean.over(errors <= 5)]
        )
        for at, (truth, ends) in enumerate(zip((5.0, 1 - np.exp(-1)), result, strict=True)):
            assert ends is not None
            hits[at] += ends[0] <= truth <= ends[1]
    assert (hits / sets > 0.92).all()
    assert (hits / sets < 0.98).all()


def test_only_the_bootstrap_of_subjects_covers_when_faces_of_a_person_err_alike() -> None:
    """60 people with 8 photos: the person's own error is twice as large as the photo's."""
    rng, sets = np.random.default_rng(8), 250
    unit = np.repeat(np.arange(60), 8)
    hits = {"subject": 0, "image": 0}
    for run in range(sets):
        bias = rng.normal(0, 4, 60)[unit] + rng.normal(0, 2, len(unit))
        for name, subjects in (("subject", names(unit)), ("image", None)):
            low, high = interval(bias, subjects, resamples=200, seed=run)
            hits[name] += low <= 0 <= high
    assert 0.91 < hits["subject"] / sets < 0.98
    assert hits["image"] / sets < 0.7


# --- two models -----------------------------------------------------------------------------------


def two_models(
    rng: np.random.Generator, gain: float, people: int = 50, photos: int = 4
) -> tuple[Values, Values, Values, list[str | None]]:
    """True ages, predictions of two models, subjects; the second errs by `gain` years more."""
    unit = np.repeat(np.arange(people), photos)
    true = rng.uniform(10, 70, len(unit))
    hard = np.abs(rng.normal(0, 4, people))[unit] + 6
    first, second = (
        hard + own + rng.normal(0, 1, len(unit)) + rng.normal(0, 0.7, people)[unit] for own in (0, gain)
    )
    return true, true + first, true + second, names(unit)


def test_a_planted_difference_is_found_and_a_worse_model_is_named() -> None:
    true, first, second, subjects = two_models(np.random.default_rng(9), gain=0.7)
    result = metrics.compare(true, first, second, subjects)
    difference = result["mae"]["difference"]
    assert difference["value"] == pytest.approx(
        result["mae"]["first"]["value"] - result["mae"]["second"]["value"]
    )
    assert difference["high"] < 0
    assert difference["low"] < -0.7 < difference["high"] + 0.5
    assert result["permutation_p"] < 0.001
    assert result["wilcoxon_p"] < 0.001
    assert result["bootstrap"]["unit"] == "subject"
    other = metrics.compare(true, second, first, subjects)
    assert other["mae"]["difference"]["value"] == pytest.approx(-difference["value"])
    # two intervals that are not paired overlap
    assert result["mae"]["first"]["high"] > result["mae"]["second"]["low"]


def test_equal_models_are_told_apart_no_more_often_than_the_level() -> None:
    rng, sets = np.random.default_rng(10), 300
    rejected = np.zeros(3)
    for run in range(sets):
        true, first, second, subjects = two_models(rng, gain=0.0)
        result = metrics.compare(true, first, second, subjects, resamples=300, flips=399, seed=run)
        ends = result["mae"]["difference"]
        rejected += [
            result["permutation_p"] <= 0.05,
            result["wilcoxon_p"] <= 0.05,
            not ends["low"] <= 0 <= ends["high"],
        ]
    assert (rejected / sets < 0.085).all()
    assert (rejected / sets > 0.02).all()


def test_a_paired_test_that_ignores_subjects_would_find_too_much() -> None:
    rng, sets = np.random.default_rng(11), 200
    rejected = 0
    for run in range(sets):
        true, first, second, _ = two_models(rng, gain=0.0, people=25, photos=12)
        rejected += (
            metrics.compare(true, first, second, None, resamples=1, flips=199, seed=run)["permutation_p"]
            <= 0.05
        )
    assert rejected / sets > 0.15


def test_the_sign_flip_test_equals_all_sign_patterns() -> None:
    sums = np.array([1.0, -0.4, 2.5, 0.3, 1.1, -0.2, 0.9, 1.7])
    theirs = stats.permutation_test((sums,), np.sum, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip_test(sums, 20_000) == pytest.approx(theirs.pvalue, abs=0.006)
    # both patterns of a lone pair are as extreme: a tie counts
    assert sign_flip_test([3.0]) == 1
    assert sign_flip_test([0.0, 0.0]) == 1


def test_a_p_value_is_never_zero() -> None:
    """40 units with the same sign: no random pattern is as extreme, and p is 1 / (1 + flips)."""
    assert sign_flip_test(np.ones(40), 99) == 0.01
    assert sign_flip_test(-np.ones(40), 999) == 0.001


def test_the_interval_of_a_difference_is_that_of_the_paired_errors() -> None:
    """Both ends equal the bootstrap of |p1 - y| - |p2 - y|; the width fits its standard error."""
    true, first, second, subjects = two_models(np.random.default_rng(14), gain=0.3)
    difference = np.abs(first - true) - np.abs(second - true)
    ends = metrics.compare(true, first, second, subjects)["mae"]["difference"]
    assert (ends["low"], ends["high"]) == interval(difference, subjects)
    units = difference.reshape(50, 4).mean(1)
    half = 1.96 * units.std(ddof=1) / np.sqrt(50)
    assert ends["high"] - ends["low"] == pytest.approx(2 * half, rel=0.15)


def test_percentiles_cut_off_equal_tails() -> None:
    """95 % over 400 resamples: 2.5 % of them lie outside each end."""
    values = np.random.default_rng(15).normal(0, 1, 60)
    bootstrap = Bootstrap(60, resamples=400)
    means = np.concatenate([counts @ values / 60 for counts in bootstrap.face_counts()])
    (ends,) = bootstrap.percentiles(lambda counts: (counts @ values / 60)[:, None])
    assert ends == pytest.approx((np.quantile(means, 0.025), np.quantile(means, 0.975)))
    assert ((means < ends[0]).sum(), (means > ends[1]).sum()) == (10, 10)


def test_the_signed_rank_test_is_scipys() -> None:
    differences = np.random.default_rng(12).normal(0.3, 1, 40)
    assert signed_rank_test(differences) == stats.wilcoxon(differences).pvalue
    assert signed_rank_test(np.zeros(5)) == 1


def test_faces_that_a_model_gave_no_age_are_left_out_and_counted() -> None:
    true, first, second, subjects = two_models(np.random.default_rng(13), gain=0.2)
    first[3], second[10] = np.nan, np.nan
    result = metrics.compare(true, first, second, subjects)
    assert (result["images"], result["missing"]) == (198, 2)
    fine = np.isfinite(first) & np.isfinite(second)
    assert result["mae"]["first"]["value"] == pytest.approx(np.abs(first - true)[fine].mean())
    with pytest.raises(ValueError, match="no face has an age by both"):
        metrics.compare([1.0, 2.0], [1.0, np.nan], [np.nan, 2.0])
