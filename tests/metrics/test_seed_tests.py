"""The test between two recipes with several seeds, worked by hand and in plain Python."""

from __future__ import annotations

import statistics

import pytest
from scipy import stats

from ageray import metrics


def compare(first: list[list[float]], subjects: list[str | None] | None = None) -> dict[str, object]:
    """`first` against a recipe that is always right; the true age is always 0."""
    faces = len(first[0])
    return metrics.compare_seeds([0.0] * faces, first, [[0.0] * faces] * len(first), subjects)


def test_noise_of_faces_alone() -> None:
    """Errors 1, 2, 6 with both seeds: sample variance 7, over 3 faces; 2 degrees of freedom."""
    result = compare([[1, 2, 6], [1, 2, 6]])
    deviation = (7 / 3) ** 0.5
    reach = 4.302652729911275 * deviation  # the 97.5 % quantile of Student's t with 2 degrees of freedom
    assert (result["first"], result["second"]) == (3, 0)
    assert result["deviation"] == {"faces": pytest.approx(deviation), "seeds": 0}
    assert result["freedom"] == pytest.approx(2)
    assert result["difference"] == {
        "value": 3,
        "low": pytest.approx(3 - reach),
        "high": pytest.approx(3 + reach),
    }
    assert result["p"] == pytest.approx(2 * stats.t.sf(3 / deviation, 2))


def test_noise_of_seeds_alone() -> None:
    """Means 1, 3, 2 over the seeds: sample variance 1 over 3 seeds."""
    result = compare([[1, 1], [3, 3], [2, 2]])
    reach = 4.302652729911275 * (1 / 3) ** 0.5
    assert result["deviation"] == {"faces": 0, "seeds": pytest.approx((1 / 3) ** 0.5)}
    assert result["difference"] == {
        "value": 2,
        "low": pytest.approx(2 - reach),
        "high": pytest.approx(2 + reach),
    }


def test_both_kinds_of_noise_and_subjects() -> None:
    """The formula in plain Python; with two faces per subject, a unit is a subject's mean."""
    errors = [[1.0, 2.0, 6.0, 4.0, 3.0, 8.0], [2.0, 1.0, 7.0, 6.0, 4.0, 4.0], [0.5, 3.0, 5.0, 5.0, 2.0, 9.0]]
    units = [statistics.mean(row[first] + row[first + 1] for row in errors) / 2 for first in (0, 2, 4)]
    of_faces = statistics.variance(units) / 3
    of_seeds = statistics.variance([statistics.mean(row) for row in errors]) / 3
    freedom = (of_faces + of_seeds) ** 2 / (of_faces**2 / 2 + of_seeds**2 / 2)
    reach = float(stats.t.ppf(0.975, freedom)) * (of_faces + of_seeds) ** 0.5
    value = statistics.mean(units)
    result = compare(errors, ["a", "a", "b", "b", "c", "c"])
    assert result["deviation"] == {
        "faces": pytest.approx(of_faces**0.5),
        "seeds": pytest.approx(of_seeds**0.5),
    }
    assert result["freedom"] == pytest.approx(freedom)
    assert result["difference"] == {
        "value": pytest.approx(value),
        "low": pytest.approx(value - reach),
        "high": pytest.approx(value + reach),
    }


@pytest.mark.parametrize(("error", "p"), [(2.0, 0.0), (0.0, 1.0)])
def test_a_difference_without_noise(error: float, p: float) -> None:
    result = compare([[error] * 3] * 2)
    assert result["p"] == p
    assert result["difference"] == {"value": error, "low": error, "high": error}


def test_shapes_that_do_not_fit_are_an_error() -> None:
    with pytest.raises(ValueError, match="two seeds or more"):
        compare([[1, 2, 3]])
    with pytest.raises(ValueError, match="two seeds or more"):
        metrics.compare_seeds([0, 0], [[1, 2, 3]] * 2, [[1, 2, 3]] * 2)
    with pytest.raises(ValueError, match="two units or more"):
        compare([[1, 2], [2, 3]], ["a", "a"])
