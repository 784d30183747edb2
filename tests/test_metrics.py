"""Measures of age estimation, against tables worked by hand and plain loops."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ageray import metrics

TRUE = [2, 9, 10, 25, 25, 31, 99, 101]
SAID = [4.0, 6.5, 10.0, 30.0, 19.9, 28.0, 90.0, 95.5]
# errors 2, 2.5, 0, 5, 5.1, 3, 9, 5.5; differences +2, -2.5, 0, +5, -5.1, -3, -9, -5.5


def test_hand_worked_table() -> None:
    assert metrics.mean_absolute_error(TRUE, SAID) == pytest.approx(32.1 / 8)
    assert metrics.bias(TRUE, SAID) == pytest.approx(-18.1 / 8)
    assert metrics.cumulative_score(TRUE, SAID, 0) == 1 / 8
    assert metrics.cumulative_score(TRUE, SAID, 3) == 4 / 8
    assert metrics.cumulative_score(TRUE, SAID, 5) == 5 / 8
    assert metrics.cumulative_score(TRUE, SAID, 9) == 1


def test_cumulative_score_counts_the_limit_itself() -> None:
    assert metrics.cumulative_score([30, 30, 30], [35, 25, 35.001], 5) == pytest.approx(2 / 3)


def test_coverage_counts_both_ends() -> None:
    assert metrics.coverage([10, 20, 30, 40], [10, 15, 31, 30], [12, 20, 40, 39.9]) == 0.5


def test_by_decade() -> None:
    rows = metrics.by_decade(TRUE, SAID)
    expected: list[dict[str, Any]] = [
        {"ages": "0-9", "images": 2, "mae": 2.25, "bias": -0.25},
        {"ages": "10-19", "images": 1, "mae": 0.0, "bias": 0.0},
        {"ages": "20-29", "images": 2, "mae": 5.05, "bias": -0.05},
        {"ages": "30-39", "images": 1, "mae": 3.0, "bias": -3.0},
        {"ages": "90-99", "images": 1, "mae": 9.0, "bias": -9.0},
        {"ages": "100-109", "images": 1, "mae": 5.5, "bias": -5.5},
    ]
    assert [row["ages"] for row in rows] == [row["ages"] for row in expected]
    for row, wanted in zip(rows, expected, strict=True):
        assert row == wanted | {"mae": pytest.approx(wanted["mae"]), "bias": pytest.approx(wanted["bias"])}


def test_a_decade_ends_just_below_ten() -> None:
    assert [row["ages"] for row in metrics.by_decade([9.99, 10.0], [0, 0])] == ["0-9", "10-19"]


def test_summary_holds_all_of_it_and_the_floors() -> None:
    low, high = [value - 4 for value in SAID], [value + 6 for value in SAID]
    found = metrics.summary(TRUE, SAID, low, high, training_median=30)
    assert (found["images"], found["mae"], found["bias"]) == (8, pytest.approx(32.1 / 8), pytest.approx(-18.1 / 8))
    assert (found["cs3"], found["cs5"]) == (4 / 8, 5 / 8)
    # always 30: 28 + 21 + 20 + 5 + 5 + 1 + 69 + 71; always the median 25: 23 + 16 + 15 + 0 + 0 + 6 + 74 + 76
    assert found["constant"] == {"training_median": {"age": 30, "mae": 220 / 8}, "own_median": {"age": 25.0, "mae": 210 / 8}}
    # outside are those with difference +5, below -6: none of -5.1, -5.5; -9
    assert found["interval"] == {"level": 0.9, "coverage": 6 / 8, "mean_width": pytest.approx(10)}
    assert found["by_decade"] == metrics.by_decade(TRUE, SAID)
    assert json.loads(json.dumps(found)) == found


def test_summary_of_a_model_whose_training_ages_are_unknown() -> None:
    assert metrics.summary(TRUE, SAID, SAID, SAID, None)["constant"]["training_median"] is None


@given(st.lists(st.tuples(st.integers(0, 116), st.floats(0, 120)), min_size=1, max_size=40), st.floats(0, 30))
@settings(max_examples=60, deadline=None)
def test_all_measures_equal_plain_loops(pairs: list[tuple[int, float]], years: float) -> None:
    true, said = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    count, errors, hits, differences = len(pairs), 0.0, 0, 0.0
    for age, guess in pairs:
        errors += abs(guess - age)
        differences += guess - age
        hits += abs(guess - age) <= years
    assert metrics.mean_absolute_error(true, said) == pytest.approx(errors / count, abs=1e-9)
    assert metrics.bias(true, said) == pytest.approx(differences / count, abs=1e-9)
    assert metrics.cumulative_score(true, said, years) == pytest.approx(hits / count)
    rows = metrics.by_decade(true, said)
    assert sum(row["images"] for row in rows) == count
    assert math.fsum(row["images"] * row["mae"] for row in rows) == pytest.approx(errors, abs=1e-6)


def test_float32_columns_and_lists_give_the_same() -> None:
    assert metrics.mean_absolute_error(np.array(TRUE, np.float32), np.array(SAID, np.float32)) == pytest.approx(32.1 / 8, rel=1e-6)


@pytest.mark.parametrize(("true", "said"), [([], []), ([1, 2], [1]), ([[1, 2]], [[1, 2]]), (3, 3)])
def test_nothing_to_measure_is_an_error(true: Any, said: Any) -> None:
    for measure in (metrics.mean_absolute_error, metrics.bias, metrics.by_decade):
        with pytest.raises(ValueError, match="need as many predictions as ages, at least one"):
            measure(true, said)
    with pytest.raises(ValueError, match="at least one"):
        metrics.cumulative_score(true, said, 5)
