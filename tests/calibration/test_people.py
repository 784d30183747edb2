"""Several photos of one person: by hand, and by simulation of people who look older or younger than
they are."""

from __future__ import annotations

import numpy as np
import pytest

from ageray.calibration import combine, combine_people, error_correlation, one_age_each
from ageray.errors import UserError


def test_a_sure_photo_counts_more() -> None:
    age, low, high = combine([30, 40], [25, 30], [35, 50], correlation=0.0)
    assert age == pytest.approx(0.8 * 30 + 0.2 * 40)
    share = (0.8**2 + 0.2**2) ** 0.5
    assert (age - low, high - age) == pytest.approx((6 * share, 6 * share))


def test_photos_of_other_days_are_moved_to_the_date() -> None:
    """A photo of ten years before says twenty: thirty at the date."""
    assert combine([20, 30], [15, 25], [25, 35], years=[10, 0])[0] == pytest.approx(30)


def test_errors_that_are_alike_keep_the_interval_wide() -> None:
    photos = ([30] * 4, [20] * 4, [40] * 4)
    assert np.subtract(*combine(*photos, correlation=1.0)[:0:-1]) == pytest.approx(20)
    assert np.subtract(*combine(*photos, correlation=0.0)[:0:-1]) == pytest.approx(10)


def test_one_photo_is_that_photo() -> None:
    assert combine([30], [20], [45]) == pytest.approx((30, 20, 45))


@pytest.mark.parametrize(
    ("photos", "correlation", "words"),
    [(([], [], []), 0.5, "one photo at least"), (([1], [0], [2]), 1.5, "correlation=1.5")],
)
def test_mistakes(photos: tuple[list[float], ...], correlation: float, words: str) -> None:
    with pytest.raises(UserError, match=words):
        combine(*photos, correlation=correlation)


def test_people_are_told_apart() -> None:
    people = combine_people(["b", "a", None, "b", "a"], [10, 20, 50, 14, np.nan], [5] * 5, [25] * 5)
    assert [(person.subject, person.photos) for person in people] == [("a", 1), ("b", 2)]
    assert people[1].age == pytest.approx(12)
    assert people[1].rows.tolist() == [0, 3]


def drawn(own: float, photo: float) -> tuple[list[str], np.ndarray, np.ndarray]:
    """300 people of 5 photos over 10 years: a person's own error, and each photo's."""
    rng = np.random.default_rng(0)
    subject = [f"person {number}" for number in range(300) for _ in range(5)]
    true = rng.uniform(20, 60, 300).repeat(5) + np.tile([0, 2, 4, 6, 10], 300)
    error = rng.normal(0, own, 300).repeat(5) + rng.normal(0, photo, 1500)
    return subject, true, true + error


def test_the_correlation_is_found() -> None:
    subject, true, age = drawn(3, 4)
    assert error_correlation(subject, age - true, np.full(1500, 16.4)) == pytest.approx(9 / 25, abs=0.06)
    assert error_correlation(["one"] * 1500, age - true, np.full(1500, 16.4)) == 0.5  # too few people


def test_all_photos_beat_one_and_are_covered() -> None:
    subject, true, age = drawn(3, 4)
    report = one_age_each(true, subject, age, age - 8.2, age + 8.2, 9 / 25)
    assert (report["people"], report["photos"]) == (300, 1500)
    assert report["mae_one"] == pytest.approx(5 * 0.798, abs=0.2)
    assert report["mae_all"] == pytest.approx((9 + 16 / 5) ** 0.5 * 0.798, abs=0.25)
    assert report["coverage_one"] == pytest.approx(0.9, abs=0.02)
    assert report["coverage_all"] == pytest.approx(0.9, abs=0.03)
    assert report["width_all"] < 0.75 * report["width_one"]


def test_nobody_with_two_photos() -> None:
    report = one_age_each([30, 40], ["a", None], [31, 42], [20, 30], [40, 50])
    assert report["people"] == 0
    assert report["mae_all"] is None


def test_a_wrong_birth_date_does_not_decide_the_correlation() -> None:
    subject, true, age = drawn(3, 4)
    age[:25] += 60  # five people are somebody else
    assert error_correlation(subject, age - true, np.full(1500, 16.4)) < 0.5
