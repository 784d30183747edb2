"""Measures of age estimation, against tables worked by hand and plain loops."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from ageray import metrics

TRUE = [2, 9, 10, 25, 25, 31, 99, 101]
PREDICTED = [4.0, 6.5, 10.0, 30.0, 19.9, 28.0, 90.0, 95.5]
# errors 2, 2.5, 0, 5, 5.1, 3, 9, 5.5; differences +2, -2.5, 0, +5, -5.1, -3, -9, -5.5


def test_hand_worked_table() -> None:
    assert metrics.mean_absolute_error(TRUE, PREDICTED) == pytest.approx(32.1 / 8)
    assert metrics.bias(TRUE, PREDICTED) == pytest.approx(-18.1 / 8)
    assert metrics.cumulative_score(TRUE, PREDICTED, 0) == 1 / 8
    assert metrics.cumulative_score(TRUE, PREDICTED, 3) == 4 / 8
    assert metrics.cumulative_score(TRUE, PREDICTED, 5) == 5 / 8
    assert metrics.cumulative_score(TRUE, PREDICTED, 9) == 1


def test_cumulative_score_counts_the_limit_itself() -> None:
    assert metrics.cumulative_score([30, 30, 30], [35, 25, 35.001], 5) == pytest.approx(2 / 3)


def test_coverage_counts_both_ends() -> None:
    assert metrics.coverage([10, 20, 30, 40], [10, 15, 31, 30], [12, 20, 40, 39.9]) == 0.5


def test_by_decade() -> None:
    rows = metrics.by_decade(TRUE, PREDICTED)
    expected: list[dict[str, Any]] = [
        {"ages": "0-9", "images": 2, "mae": 2.25, "bias": -0.25},
        {"ages": "10-19", "images": 1, "mae": 0.0, "bias": 0.0},
        {"ages": "20-29", "images": 2, "mae": 5.05, "bias": -0.05},
        {"ages": "30-39", "images": 1, "mae": 3.0, "bias": -3.0},
        {"ages": "90-99", "images": 1, "mae": 9.0, "bias": -9.0},
        {"ages": "100-109", "images": 1, "mae": 5.5, "bias": -5.5},
    ]
    assert [row["ages"] for row in rows] == [row["ages"] for row in expected]
    for row, figures in zip(rows, expected, strict=True):
        assert row == figures | {"mae": pytest.approx(figures["mae"]), "bias": pytest.approx(figures["bias"])}


def test_a_decade_ends_just_below_ten() -> None:
    assert [row["ages"] for row in metrics.by_decade([9.99, 10.0], [0, 0])] == ["0-9", "10-19"]


def test_summary_holds_all_of_it_and_the_floors() -> None:
    low, high = [value - 4 for value in PREDICTED], [value + 6 for value in PREDICTED]
    result = metrics.summary(TRUE, PREDICTED, low, high, training_median=30)
    assert (result["images"], result["mae"], result["bias"]) == (
        8,
        pytest.approx(32.1 / 8),
        pytest.approx(-18.1 / 8),
    )
    assert (result["cs3"], result["cs5"]) == (4 / 8, 5 / 8)
    # always 30: 28 + 21 + 20 + 5 + 5 + 1 + 69 + 71; always the median 25: 23 + 16 + 15 + 0 + 0 + 6
    # + 74 + 76
    assert result["constant"] == {
        "training_median": {"age": 30, "mae": 220 / 8},
        "own_median": {"age": 25.0, "mae": 210 / 8},
    }
    # outside are those with difference +5, below -6: none of -5.1, -5.5; -9
    assert result["interval"] == {"level": 0.9, "coverage": 6 / 8, "mean_width": pytest.approx(10)}
    assert result["by_decade"] == metrics.by_decade(TRUE, PREDICTED)
    assert json.loads(json.dumps(result)) == result


def test_summary_of_a_model_whose_training_ages_are_unknown() -> None:
    assert metrics.summary(TRUE, PREDICTED, PREDICTED, PREDICTED, None)["constant"]["training_median"] is None


@given(st.lists(st.tuples(st.integers(0, 116), st.floats(0, 120)), min_size=1, max_size=40), st.floats(0, 30))
@settings(max_examples=60, deadline=None)
def test_all_measures_equal_plain_loops(pairs: list[tuple[int, float]], years: float) -> None:
    true, predicted = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    count, errors, hits, differences = len(pairs), 0.0, 0, 0.0
    for age, guess in pairs:
        errors += abs(guess - age)
        differences += guess - age
        hits += abs(guess - age) <= years
    assert metrics.mean_absolute_error(true, predicted) == pytest.approx(errors / count, abs=1e-9)
    assert metrics.bias(true, predicted) == pytest.approx(differences / count, abs=1e-9)
    assert metrics.cumulative_score(true, predicted, years) == pytest.approx(hits / count)
    rows = metrics.by_decade(true, predicted)
    assert sum(row["images"] for row in rows) == count
    assert math.fsum(row["images"] * row["mae"] for row in rows) == pytest.approx(errors, abs=1e-6)


def test_float32_columns_and_lists_give_the_same() -> None:
    assert metrics.mean_absolute_error(
        np.array(TRUE, np.float32), np.array(PREDICTED, np.float32)
    ) == pytest.approx(32.1 / 8, rel=1e-6)


@pytest.mark.parametrize(("true", "predicted"), [([], []), ([1, 2], [1]), ([[1, 2]], [[1, 2]]), (3, 3)])
def test_nothing_to_measure_is_an_error(true: Any, predicted: Any) -> None:
    for measure in (metrics.mean_absolute_error, metrics.bias, metrics.by_decade):
        with pytest.raises(ValueError, match="need as many predictions as ages, at least one"):
            measure(true, predicted)
    with pytest.raises(ValueError, match="at least one"):
        metrics.cumulative_score(true, predicted, 5)


# --- beyond the summary ---------------------------------------------------------------------------


def test_the_curve_is_the_score_at_each_limit() -> None:
    assert metrics.cumulative_scores(TRUE, PREDICTED) == [
        metrics.cumulative_score(TRUE, PREDICTED, years) for years in range(16)
    ]
    assert metrics.cumulative_scores(TRUE, PREDICTED, [0, 2.5, 9]) == [1 / 8, 3 / 8, 1]


def test_epsilon_error_worked_by_hand() -> None:
    """Off by one sigma: 1 - e^-1/2; no prediction: 1; annotators who all agreed: all or nothing."""
    errors = metrics.epsilon_errors(
        [20, 20, 20, 20, 20, 20], [4, 4, 2, 5, 0, 0], [24, 20, 14, math.nan, 20, 20.1]
    )
    assert errors.tolist() == pytest.approx([1 - math.exp(-0.5), 0, 1 - math.exp(-4.5), 1, 0, 1])
    assert metrics.epsilon_error([20, 20], [4, 4], [24, 16]) == pytest.approx(0.39347, abs=1e-5)
    assert metrics.epsilon_error([20], [0], [math.nan]) == 1


@pytest.mark.parametrize("deviation", [-1, math.nan])
def test_a_deviation_that_is_none_is_an_error(deviation: float) -> None:
    with pytest.raises(ValueError, match="standard deviations must be 0 or more"):
        metrics.epsilon_error([20, 20], [1, deviation], [20, 20])


def test_mean_over_subjects_counts_each_person_once() -> None:
    # a: 1, 3 -> 2; b: 10; two strangers: 4 and 8
    assert metrics.mean_over_subjects([1, 10, 3, 4, 8], ["a", "b", "a", None, None]) == pytest.approx(
        (2 + 10 + 4 + 8) / 4
    )


def test_bands_take_their_lower_edge_and_name_completed_years() -> None:
    rows = metrics.by_band([12.99, 13, 17.5, 18, 40], [12, 13, 20, 18, 50], [0, 13, 18, math.inf])
    assert [(row["ages"], row["images"]) for row in rows] == [("0-12", 1), ("13-17", 2), ("18+", 2)]
    assert [row["mae"] for row in rows] == pytest.approx([0.99, 1.25, 5])
    assert [row["bias"] for row in rows] == pytest.approx([-0.99, 1.25, 5])
    assert metrics.by_band([1.0], [1.0], [0.5, 2.25])[0]["ages"] == "0.5-2.25"


@pytest.mark.parametrize("edges", [[0], [0, 0, 90], [10, 5], [30, 90], [0, 25]])
def test_bands_that_do_not_hold_the_ages_are_an_error(edges: list[float]) -> None:
    with pytest.raises(ValueError, match="bands"):
        metrics.by_band([20, 25], [20, 25], edges)


def test_by_label_names_the_unlabelled_last() -> None:
    rows = metrics.by_label([20, 30, 40, 50], [21, 28, 43, 50], ["z", None, "a", "z"])
    assert rows == [
        {"label": "a", "images": 1, "mae": 3.0, "bias": 3.0},
        {"label": "z", "images": 2, "mae": 0.5, "bias": 0.5},
        {"label": "unknown", "images": 1, "mae": 2.0, "bias": -2.0},
    ]
    with pytest.raises(ValueError, match="3 labels for 4 faces"):
        metrics.by_label([1, 2, 3, 4], [1, 2, 3, 4], ["a", "b", "c"])


def test_calibration_curve_worked_by_hand() -> None:
    quantiles = [[10, 20], [10, 20], [30, 40], [30, 40]]
    curve = metrics.calibration_curve([10, 21, 29, 35], quantiles, [0.25, 0.75])
    assert curve == [{"level": 0.25, "observed": 0.5}, {"level": 0.75, "observed": 0.75}]
    assert metrics.calibration_error([10, 21, 29, 35], quantiles, [0.25, 0.75]) == pytest.approx(0.125)
    with pytest.raises(ValueError, match="one quantile a face and level"):
        metrics.calibration_curve([10], quantiles, [0.25, 0.75])
    with pytest.raises(ValueError, match="between 0 and 1"):
        metrics.calibration_curve([10], [[1, 2]], [0, 0.5])


def test_the_right_quantiles_are_calibrated() -> None:
    rng = np.random.default_rng(0)
    middle, levels = rng.uniform(20, 60, 20_000), (0.05, 0.25, 0.5, 0.9)
    true = middle + rng.normal(0, 6, len(middle))

    quantiles = middle[:, None] + 6 * norm.ppf(levels)
    assert metrics.calibration_error(true, quantiles, levels) < 0.006
    assert metrics.calibration_error(true, middle[:, None] + 3 * norm.ppf(levels), levels) > 0.05


# --- refusing the widest --------------------------------------------------------------------------


def test_risk_coverage_worked_by_hand() -> None:
    # narrowest first: errors 1, 5, 3, 7; means 1, 3, 3, 4; best order: 1, 2, 3, 4
    result = metrics.risk_coverage([20, 30, 40, 50], [23, 31, 47, 55], [15, 30, 40, 50], [20, 31, 49, 53])
    assert result["aurc"] == pytest.approx((1 + 3 + 3 + 4) / 4)
    assert result["aurc_best"] == pytest.approx((1 + 2 + 3 + 4) / 4)
    assert result["aurc_without_order"] == pytest.approx(4)
    curve = {row["answered"]: row["mae"] for row in result["curve"]}
    assert [curve[share] for share in (0.1, 0.2, 0.3, 0.5, 0.6, 0.8, 1.0)] == pytest.approx(
        [1, 1, 3, 3, 3, 4, 4]
    )


def test_equally_wide_intervals_are_refused_in_no_order() -> None:
    """The mean over all orders of the ties, enumerated."""
    import itertools

    errors, widths = [1.0, 8.0, 2.0, 5.0, 3.0], [1, 2, 2, 2, 3]
    areas = []
    for middle in itertools.permutations([8.0, 2.0, 5.0]):
        running = np.cumsum([1.0, *middle, 3.0]) / np.arange(1, 6)
        areas.append(running.mean())
    assert metrics.area_under_risk(errors, widths) == pytest.approx(np.mean(areas))
    assert metrics.area_under_risk(errors, [7] * 5) == pytest.approx(np.mean(errors))


# --- age checks -----------------------------------------------------------------------------------

CHECKED_TRUE = [12, 15, 17, 17, 19, 20, 30, 40]
CHECKED_PREDICTED = [11, 26, 18, 25, 17, 26, 24, 50]
GENDER = ["male", "male", "female", None, "female", "male", "female", "male"]


def test_challenge_25_for_a_limit_of_18_worked_by_hand() -> None:
    (row,) = metrics.challenge_table(CHECKED_TRUE, CHECKED_PREDICTED, {"gender": GENDER}, [(18, 25)])
    # under 18: 12, 15, 17, 17; let in: 15 (26), 17 (25). Of age: 19, 20, 30, 40; asked: 19 (17), 30
    # (24)
    assert (row["limit"], row["threshold"], row["under_age"], row["of_age"]) == (18, 25, 4, 4)
    assert (row["false_accept"], row["false_reject"]) == (0.5, 0.5)
    bands = {band["ages"]: (band["false_accept"], band["false_reject"]) for band in row["by_age"]}
    assert bands == {"0-17": (0.5, None), "18-24": (None, 0.5), "25+": (None, 0.5)}
    assert [(part["gender"], part["false_accept"], part["false_reject"]) for part in row["by_gender"]] == [
        ("female", 0.0, 1.0),
        ("male", 0.5, 0.0),
        ("unknown", 1.0, None),
    ]
    assert row["by_gender"][1]["by_age"][1] == {
        "ages": "18-24",
        "under_age": 0,
        "of_age": 1,
        "false_accept": None,
        "false_reject": 0.0,
    }


def test_the_challenge_table_equals_plain_counting_and_scikit_learn() -> None:
    from sklearn.metrics import confusion_matrix

    rng = np.random.default_rng(1)
    true = rng.integers(0, 60, 500)
    predicted = np.maximum(true + rng.normal(0, 6, 500), 0)
    table = metrics.challenge_table(true, predicted)
    assert [(row["limit"], row["threshold"]) for row in table][:5] == [
        (13, 13),
        (16, 16),
        (18, 18),
        (21, 21),
        (25, 25),
    ]
    for row in table:
        (refused, accepted), (rejected, passed) = confusion_matrix(
            true >= row["limit"], predicted >= row["threshold"]
        )
        assert row["false_accept"] == pytest.approx(accepted / (accepted + refused))
        assert row["false_reject"] == pytest.approx(rejected / (rejected + passed))
        assert [band["ages"] for band in row["by_age"]] == ["0-12", "13-15", "16-17", "18-20", "21-24", "25+"]
        hits = [band["under_age"] * (band["false_accept"] or 0) for band in row["by_age"]]
        assert sum(hits) == pytest.approx(accepted)


def test_a_threshold_below_the_limit_is_an_error() -> None:
    with pytest.raises(ValueError, match="limit 18, threshold 16"):
        metrics.challenge_table([20], [20], rules=[(18, 16)])


def test_the_figures_of_scikit_learn() -> None:
    from sklearn import metrics as sklearn_metrics

    rng = np.random.default_rng(2)
    true = rng.uniform(0, 90, 300)
    predicted = true + rng.laplace(0, 5, 300)
    weights = 1 / np.array([1, 2, 2])[np.arange(300) % 3]
    assert metrics.mean_absolute_error(true, predicted) == pytest.approx(
        sklearn_metrics.mean_absolute_error(true, predicted)
    )
    subjects = [f"{row}" if row % 3 == 0 else f"pair-{row // 3}" for row in range(300)]
    result = metrics.mean_over_subjects(np.abs(predicted - true), subjects)
    assert result == pytest.approx(
        sklearn_metrics.mean_absolute_error(true, predicted, sample_weight=weights)
    )


# --- the whole report -----------------------------------------------------------------------------


def answers(faces: int = 400, seed: int = 5) -> metrics.Tested:
    rng = np.random.default_rng(seed)
    true = rng.integers(0, 90, faces).astype(float)
    predicted = true + rng.laplace(0, 5, faces)
    half = rng.gamma(4, 3, faces)
    predicted[7] = math.nan
    subject = [None if row % 9 == 0 else f"{row % 80}" for row in range(faces)]
    gender, group = (
        ([None, "male", "female"][row % 3] for row in range(faces)),
        ("ab"[row % 2] for row in range(faces)),
    )
    std = np.where(np.arange(faces) % 4 == 0, math.nan, 3.0)
    ends = np.stack([predicted - half, predicted, predicted + half], 1)
    return metrics.Tested(
        true,
        predicted,
        predicted - half,
        predicted + half,
        subject,
        list(gender),
        list(group),
        std,
        ends,
        (0.05, 0.5, 0.95),
    )


def test_the_full_report_holds_every_figure_with_an_interval() -> None:
    tested = answers()
    result = metrics.full_report(tested, 33.0, resamples=200)
    fine = tested.only(np.isfinite(np.asarray(tested.predicted)))
    assert result | metrics.summary(fine.true, fine.predicted, fine.low, fine.high, 33.0) == result
    assert (result["images"], result["missing"], result["bootstrap"]["unit"]) == (399, 1, "subject")
    estimates = result["estimates"]
    overall = estimates["overall"]
    assert overall["mae"]["value"] == pytest.approx(result["mae"])
    assert overall["mae"]["low"] < result["mae"] < overall["mae"]["high"]
    assert overall["coverage"]["value"] == pytest.approx(result["interval"]["coverage"])
    assert overall["width"]["value"] == pytest.approx(result["interval"]["mean_width"])
    errors = np.abs(np.asarray(fine.predicted) - np.asarray(fine.true))
    assert overall["mae_over_subjects"]["value"] == pytest.approx(
        metrics.mean_over_subjects(errors, fine.subject or [])
    )
    assert [row["share"]["value"] for row in overall["cs"]] == pytest.approx(
        metrics.cumulative_scores(fine.true, fine.predicted)
    )
    annotated = tested.only(np.isfinite(np.asarray(tested.age_std)))
    assert overall["epsilon_error"]["value"] == pytest.approx(
        metrics.epsilon_error(annotated.true, np.asarray(annotated.age_std), annotated.predicted)
    )
    assert [(row["ages"], row["images"]) for row in estimates["by_age"]] == [
        (row["ages"], row["images"]) for row in result["by_decade"]
    ]
    assert [row["mae"]["value"] for row in estimates["by_age"]] == pytest.approx(
        [row["mae"] for row in result["by_decade"]]
    )
    assert [row["gender"] for row in estimates["by_gender"]] == ["female", "male", "unknown"]
    assert [row["group"] for row in estimates["by_group"]] == ["a", "b"]
    assert estimates["constant"]["training_median"]["mae"]["value"] == pytest.approx(
        result["constant"]["training_median"]["mae"]
    )
    assert json.loads(json.dumps(result)) == result


def test_the_full_report_agrees_with_the_single_tables() -> None:
    tested = answers()
    fine = tested.only(np.isfinite(np.asarray(tested.predicted)))
    estimates = metrics.full_report(tested, resamples=50)["estimates"]
    table = metrics.challenge_table(
        fine.true, fine.predicted, {"gender": fine.gender or [], "group": fine.group or []}
    )
    for row, plain in zip(estimates["challenge"], table, strict=True):
        assert row["false_accept"]["value"] == plain["false_accept"]
        assert [part["false_reject"]["value"] for part in row["by_group"]] == [
            part["false_reject"] for part in plain["by_group"]
        ]
    curve = metrics.calibration_curve(fine.true, np.asarray(fine.quantiles), fine.levels)
    assert [row["observed"]["value"] for row in estimates["calibration"]] == [
        row["observed"] for row in curve
    ]
    risk = metrics.risk_coverage(fine.true, fine.predicted, fine.low, fine.high)
    assert estimates["risk_coverage"]["aurc"]["value"] == risk["aurc"]
    assert estimates["risk_coverage"]["curve"][4]["mae"]["value"] == risk["curve"][4]["mae"]
    aurc, best = (estimates["risk_coverage"][name] for name in ("aurc", "aurc_best"))
    assert aurc["low"] < aurc["value"] < aurc["high"]
    assert best["high"] < aurc["low"]


def test_what_the_faces_do_not_tell_is_null() -> None:
    result = metrics.full_report(metrics.Tested(TRUE, PREDICTED, PREDICTED, PREDICTED), resamples=20)
    overall = result["estimates"]["overall"]
    assert (overall["mae_over_subjects"], overall["epsilon_error"], result["estimates"]["calibration"]) == (
        None,
        None,
        None,
    )
    assert "by_gender" not in result["estimates"]
    assert result["bootstrap"]["unit"] == "image"
    assert overall["mae"] == {"value": pytest.approx(32.1 / 8), "low": None, "high": None}


def test_columns_that_do_not_fit_are_an_error() -> None:
    with pytest.raises(ValueError, match="as many predictions"):
        metrics.Tested([1, 2], [1, 2], [1], [2, 3])
    with pytest.raises(ValueError, match="1 entries of gender for 2 faces"):
        metrics.Tested([1, 2], [1, 2], [1, 1], [2, 3], gender=["male"])
    with pytest.raises(ValueError, match="no face has a prediction"):
        metrics.full_report(metrics.Tested([1.0], [math.nan], [0], [2]))
