"""Line and interval, fitted on validation faces: known lines, an independent solver, coverage by
simulation."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.optimize import linprog  # type: ignore[import-untyped]

from ageray.calibration import LEVEL, Calibration, fit

Ages = NDArray[np.float32]


def simulated(count: int, seed: int, width: float = 1.0) -> tuple[Ages, Ages, Ages, Ages]:
    """True age, decoded age with a bias towards the middle, and the posterior's 5 % and 95 %
    quantiles: (N,) each. The posterior is `width` times as wide as the errors, which grow with
    age."""
    rng = np.random.default_rng(seed)
    true = rng.uniform(0, 90, count)
    deviation = 2 + true / 15
    decoded = 8 + 0.8 * true + rng.normal(0, deviation)
    reach = 1.645 * deviation * width
    columns = (true, decoded, decoded - reach, decoded + reach)
    return tuple(column.astype(np.float32) for column in columns)  # type: ignore[return-value]


def on_a_line(count: int, scale: float, shift: float, noise: float = 0.0, seed: int = 0) -> tuple[Ages, Ages]:
    rng = np.random.default_rng(seed)
    decoded = rng.uniform(10, 70, count)
    true = scale * decoded + shift
    if noise:
        true += rng.laplace(0, noise, count)
    return true.astype(np.float32), decoded.astype(np.float32)


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1.2, -3.0), (0.8, 9.0), (1.9, -15.0), (0.55, 4.0)])
def test_a_known_line_is_recovered(scale: float, shift: float) -> None:
    true, decoded = on_a_line(200, scale, shift)
    fitted = fit(true, decoded, decoded, decoded)
    assert fitted.scale == pytest.approx(scale, abs=1e-4)
    assert fitted.shift == pytest.approx(shift, abs=1e-2)
    assert fitted.faces == 200
    assert fitted.margin == pytest.approx(0, abs=0.01)


def test_a_known_line_is_recovered_from_noise_and_outliers() -> None:
    true, decoded = on_a_line(2000, 1.2, -3.0, noise=3.0)
    true[::15] += 60  # one in fifteen labels is far too old: least squares would move by 4 years
    fitted = fit(true, decoded, decoded, decoded)
    assert fitted.scale == pytest.approx(1.2, abs=0.03)
    assert fitted.scale * 40 + fitted.shift == pytest.approx(45, abs=0.6)


def test_the_line_is_that_of_least_absolute_deviations() -> None:
    """Against a linear programme: minimise sum of u + v with y = a x + b + u - v, u and v not
    negative."""
    true, decoded = on_a_line(60, 1.1, 2.0, noise=5.0, seed=4)
    x, y, count = decoded.astype(float), true.astype(float), len(true)
    equations = np.hstack([x[:, None], np.ones((count, 1)), np.eye(count), -np.eye(count)])
    bounds = [(None, None)] * 2 + [(0, None)] * (2 * count)
    best = linprog(np.r_[0, 0, np.ones(2 * count)], A_eq=equations, b_eq=y, bounds=bounds)
    fitted = fit(true, decoded, decoded, decoded)
    ours = float(np.abs(y - fitted.scale * x - fitted.shift).sum())
    assert best.fun - 1e-3 <= ours <= best.fun * 1.002


@pytest.mark.parametrize("count", [0, 1, 29])
def test_too_few_faces_give_the_identity(count: int) -> None:
    true, decoded, low, high = simulated(count, 0)
    assert fit(true, decoded, low, high) == Calibration(1.0, 0.0, 0.0, 0)


def test_thirty_faces_are_enough() -> None:
    true, decoded, low, high = simulated(30, 0)
    assert fit(true, decoded, low, high).faces == 30
    assert fit(true, decoded, low, high).scale != 1


@pytest.mark.parametrize("kind", ["constant", "unrelated", "backwards"])
def test_a_model_without_skill_gets_the_identity_and_an_interval(kind: str) -> None:
    rng = np.random.default_rng(0)
    true = rng.uniform(0, 90, 400).astype(np.float32)
    answers = {"constant": np.full(400, 35.0), "unrelated": rng.uniform(0, 90, 400), "backwards": 90 - true}
    decoded = answers[kind].astype(np.float32)
    fitted = fit(true, decoded, decoded, decoded)
    assert (fitted.scale, fitted.shift) == (1.0, 0.0)
    _, low, high = fitted.apply(decoded, decoded, decoded)
    assert float(((true >= low) & (true <= high)).mean()) >= LEVEL


@pytest.mark.parametrize(
    ("width", "more"), [(0.3, 0.015), (1.0, 0.015), (3.0, 0.04)], ids=["too narrow", "right", "too wide"]
)
def test_the_interval_covers_nine_fresh_faces_in_ten(width: float, more: float) -> None:
    """Posteriors that are too wide cover a few faces more, because an inverted interval ends at the
    age."""
    coverage, margins = [], []
    for seed in range(8):
        fitted = fit(*simulated(500, seed, width))
        true, decoded, low, high = simulated(5000, 1000 + seed, width)
        _, start, end = fitted.apply(decoded, low, high)
        coverage.append(float(((true >= start) & (true <= end)).mean()))
        margins.append(fitted.margin)
    assert LEVEL - 0.015 < np.mean(coverage) < LEVEL + more
    assert min(coverage) > LEVEL - 0.05
    if width != 1:
        assert np.sign(margins).tolist() == [1 if width < 1 else -1] * 8


def test_the_line_removes_the_bias_towards_the_middle() -> None:
    fitted = fit(*simulated(1000, 0))
    true, decoded, low, high = simulated(5000, 1)
    age, _, _ = fitted.apply(decoded, low, high)
    for part in (true < 20, true > 70):
        assert abs(float((age - true)[part].mean())) < 0.6 * abs(float((decoded - true)[part].mean()))
    assert float(np.abs(age - true).mean()) < float(np.abs(decoded - true).mean())


def test_apply_by_hand() -> None:
    decoded, low, high = (np.array(values, np.float32) for values in ([50, 2, 30], [45, -4, 29], [56, 5, 31]))
    age, start, end = Calibration(scale=1.1, shift=-4, margin=2).apply(decoded, low, high)
    assert age == pytest.approx([51, 0, 29])
    assert start == pytest.approx([43.5, 0, 25.9])
    assert end == pytest.approx([59.6, 3.5, 32.1])
    # An inverted interval ends at the age.
    _, start, end = Calibration(margin=-3).apply(decoded, low, high)
    assert (start[2], end[2]) == (30, 30)


_years = st.floats(-60, 200, width=32)


@given(
    columns=st.integers(1, 20).flatmap(
        lambda count: st.tuples(*[arrays(np.float32, count, elements=_years)] * 3)
    ),
    scale=st.floats(0.5, 2),
    shift=st.floats(-40, 40),
    margin=st.floats(-30, 30),
)
@settings(max_examples=100, deadline=None)
def test_never_negative_and_the_age_lies_within_its_interval(
    columns: tuple[Ages, Ages, Ages], scale: float, shift: float, margin: float
) -> None:
    decoded, low, high = columns
    age, start, end = Calibration(scale, shift, margin, 50).apply(
        decoded, np.minimum(low, high), np.maximum(low, high)
    )
    assert (start >= 0).all()
    assert (start <= age).all()
    assert (age <= end).all()


def test_an_empty_batch() -> None:
    empty = np.zeros(0, np.float32)
    assert [len(part) for part in Calibration(1.1, 2, 3, 50).apply(empty, empty, empty)] == [0, 0, 0]


def test_identity_leaves_ages_as_they_are() -> None:
    true, decoded, low, high = (np.maximum(part, 0) for part in simulated(50, 2))
    for before, after in zip((decoded, low, high), Calibration().apply(decoded, low, high), strict=True):
        assert np.array_equal(before, after)
    assert len(true) == 50


def test_card_round_trip() -> None:
    fitted = fit(*simulated(100, 3))
    card: dict[str, Any] = json.loads(json.dumps(fitted.to_card()))
    assert Calibration.from_card(card) == fitted
    assert card["level"] == LEVEL
    assert Calibration.from_card(None) == Calibration.from_card({}) == Calibration()


def test_the_margin_is_the_conformal_quantile_of_40_faces() -> None:
    """Intervals are 1, 2, ... 40 years too wide. The margin is the 37th smallest of -40, ..., -1.

    ceil((40 + 1) * 0.9) = 37. Without the + 1 it would be the 36th, and the interval too narrow.
    """
    true = np.linspace(50, 89, 40, dtype=np.float32)
    reach = np.arange(1, 41, dtype=np.float32)
    assert fit(true, true, true - reach, true + reach).margin == pytest.approx(-4, abs=1e-3)


def test_a_card_says_whether_a_line_corrects_the_ages() -> None:
    assert Calibration().to_card()["method"].startswith("ages as decoded; ")
    assert Calibration(0.98, 0.7).to_card()["method"].startswith("line by least absolute deviations; ")
