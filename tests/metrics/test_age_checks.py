"""False adults, false minors and NIST's mean absolute error: by hand."""

from __future__ import annotations

import pytest

from ageray import metrics

TRUE = [10, 17, 17, 18, 30, 40]
OVER_18 = [0.1, 0.6, 0.95, 0.4, 0.9, 0.99]


def test_rates_by_hand() -> None:
    (row,) = metrics.age_check_table(TRUE, {18: OVER_18}, thresholds=(0.5, 0.9))
    half, sure = row["thresholds"]
    assert (row["limit"], half["under_age"], half["of_age"]) == (18, 3, 3)
    assert half["false_adult"] == pytest.approx(2 / 3)
    assert half["false_minor"] == pytest.approx(1 / 3)
    assert sure["false_adult"] == pytest.approx(1 / 3)
    assert sure["false_minor"] == pytest.approx(1 / 3)  # 0.9 passes a threshold of 0.9
    assert row["mean_probability"] == pytest.approx(sum(OVER_18) / 6)
    assert row["share_of_age"] == pytest.approx(0.5)


def test_rates_by_gender() -> None:
    gender = ["female", "male", "female", "male", None, "female"]
    (row,) = metrics.age_check_table(TRUE, {18: OVER_18}, {"gender": gender}, thresholds=(0.5,))
    parts = {part["gender"]: part for part in row["thresholds"][0]["by_gender"]}
    assert parts["female"]["false_adult"] == pytest.approx(0.5)
    assert parts["male"]["false_minor"] == 1
    assert parts["unknown"]["false_adult"] is None


def test_nist_averages_cells_of_sex_and_age() -> None:
    """Three women of 20 count as much as one man of 25; a man of 31 counts nothing."""
    true, predicted = [20, 20, 20, 25, 31], [22, 22, 22, 31, 90]
    gender = ["female", "female", "female", "male", "male"]
    assert metrics.young_adult_mae(true, predicted, gender) == pytest.approx((2 + 6) / 2)
    assert metrics.young_adult_mae(true, predicted) == pytest.approx((2 + 6) / 2)
    assert metrics.young_adult_mae([40], [41]) is None


def test_the_full_report_has_both_with_intervals() -> None:
    true, over = [float(age) for age in range(60)], [min(age / 36, 1.0) for age in range(60)]
    tested = metrics.Tested(true, true, true, true, gender=["male", "female"] * 30, over={18: over})
    estimates = metrics.full_report(tested, resamples=50)["estimates"]
    check = estimates["age_checks"][0]["thresholds"][0]
    assert set(check["false_adult"]) == {"value", "low", "high"}
    assert [part["gender"] for part in check["by_gender"]] == ["female", "male"]
    assert estimates["young_adults"]["mae"]["value"] == 0
