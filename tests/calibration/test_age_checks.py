"""Probability of being of age: the posterior's share above a limit, calibrated."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from ageray.calibration import LIMITS, AgeChecks, shares_above
from ageray.calibration.age_checks import fit_age_checks

BINS = np.arange(-15.0, 121.0)


def test_share_above_by_hand() -> None:
    """A person of 18 has the label 18, whose bin reaches down to 17.5."""
    posterior = np.zeros((3, len(BINS)))
    posterior[0, BINS == 18] = 1
    posterior[1, BINS == 17] = 1
    posterior[2, (BINS == 17) | (BINS == 25)] = 0.5
    shares = shares_above(posterior, BINS, 1.0, 0.0)
    assert LIMITS == (18, 25)
    assert shares[:, 0] == pytest.approx([1, 0, 0.5])
    assert shares[:, 1] == pytest.approx([0, 0, 0.5])


def test_the_line_moves_the_posterior() -> None:
    posterior = np.zeros((1, len(BINS)))
    posterior[0, BINS == 17] = 1
    assert shares_above(posterior, BINS, 1.0, 0.25)[0, 0] == pytest.approx(0.25)
    assert shares_above(posterior, BINS, 2.0, 0.0)[0, 0] == pytest.approx(1)  # 34 years


def test_probabilities_are_calibrated() -> None:
    """Shares that are too sure and too high: the truth is sigmoid(0.5 logit - 1)."""
    rng = np.random.default_rng(0)
    logit = rng.normal(0, 4, 20_000)
    share = np.stack([expit(logit)] * 2, -1)
    of_age = rng.uniform(0, 1, 20_000) < expit(0.5 * logit - 1)
    true = np.where(of_age, 40.0, 10.0)
    fitted = fit_age_checks(true, share, np.ones(20_000), np.ones(20_000))
    assert fitted.slopes[0] == pytest.approx(0.5, abs=0.04)
    assert fitted.intercepts[0] == pytest.approx(-1, abs=0.1)
    said = fitted.apply(share, np.ones(20_000))[:, 0]
    for low, high in ((0.0, 0.2), (0.4, 0.6), (0.8, 1.0)):
        rows = (said >= low) & (said < high)
        assert of_age[rows].mean() == pytest.approx(said[rows].mean(), abs=0.03)


def test_a_hard_face_is_less_certain() -> None:
    said = AgeChecks().apply(np.array([[0.99, 0.01]] * 2), np.array([1.0, 3.0]))
    assert said[0] == pytest.approx([0.99, 0.01])
    assert 0.5 < said[1, 0] < 0.9
    assert 0.1 < said[1, 1] < 0.5


def test_whoever_is_25_is_18() -> None:
    said = AgeChecks((1.0, 1.0), (-3.0, 3.0)).apply(np.array([[0.6, 0.5]]), np.ones(1))
    assert said[0, 1] == said[0, 0] < 0.1


def test_a_set_without_minors_leaves_the_share_as_it_is() -> None:
    fitted = fit_age_checks(np.full(50, 40.0), np.full((50, 2), 0.7), np.ones(50), np.ones(50))
    assert fitted == AgeChecks()


def test_card_round_trip() -> None:
    checks = AgeChecks((0.9, 1.2), (-0.5, 0.25))
    assert AgeChecks.from_card(checks.to_card()) == checks
