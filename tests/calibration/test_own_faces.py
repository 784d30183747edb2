"""A finished calibration fitted to other faces: by simulation and by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ageray.calibration import Calibration, Intervals, OwnFaces, left_out_answers, refit
from ageray.calibration.own_faces import shrunk_line
from ageray.errors import UserError

SHIPPED = Calibration(0.9, 2.0, 0.0, 1000, Intervals((20.0, 40.0), (1.0, 1.1, 1.2), (1.0, 1.2, 1.3)))


def drawn(count: int, seed: int, each: int = 1, bias: float = 4.0, width: float = 2.0) -> OwnFaces:
    """Faces whose calibrated ages are `bias` years too old, and whose errors are `width` times as
    wide as SHIPPED says; `each` photos of a person, which share half of their error."""
    rng = np.random.default_rng(seed)
    people = -(-count // each)
    person = np.repeat(np.arange(people), each)[:count]
    true = rng.uniform(5, 60, count)
    error = rng.normal(0, 1, people)[person] * 0.7 + rng.normal(0, 1, count) * 0.7
    reach = 2 + true / 20
    decoded = (true + bias + width * reach * error / 1.645 - SHIPPED.shift) / SHIPPED.scale
    table = np.stack([decoded, decoded - reach / SHIPPED.scale, decoded + reach / SHIPPED.scale], -1)
    return OwnFaces(true, table, np.ones(count), [f"person {number}" for number in person])


def covered(faces: OwnFaces, calibration: Calibration) -> float:
    _, low, high = faces.answers(calibration)
    return float(((faces.true >= low) & (faces.true <= high)).mean())


@pytest.mark.parametrize("shipped", [SHIPPED, replace(SHIPPED, intervals=None, margin=1.0)])
@pytest.mark.parametrize("count", [60, 300])
def test_ages_and_intervals_fit_faces_that_were_not_fitted(count: int, shipped: Calibration) -> None:
    fresh, shares, biases = drawn(4000, 99), [], []
    assert covered(fresh, shipped) < 0.6
    for seed in range(8):
        fitted = refit(shipped, drawn(count, seed))
        assert fitted.faces == count
        shares.append(covered(fresh, fitted))
        biases.append(float((fresh.answers(fitted)[0] - fresh.true).mean()))
    assert 0.87 < np.mean(shares) < 0.94
    assert abs(np.mean(biases)) < 0.5


def test_each_side_has_its_own_factor_from_100_faces_on() -> None:
    few, many = refit(SHIPPED, drawn(99, 0)).intervals, refit(SHIPPED, drawn(100, 0)).intervals
    assert few is not None
    assert many is not None
    assert SHIPPED.intervals is not None
    assert few.low[0] / SHIPPED.intervals.low[0] == pytest.approx(few.high[0] / SHIPPED.intervals.high[0])
    assert many.low[0] / SHIPPED.intervals.low[0] != pytest.approx(many.high[0] / SHIPPED.intervals.high[0])


def test_ages_stay_where_a_line_does_not_help() -> None:
    fitted = refit(SHIPPED, drawn(40, 3, bias=0.0))
    assert (fitted.scale, fitted.shift) == (SHIPPED.scale, SHIPPED.shift)


def test_a_persons_photos_are_left_out_together() -> None:
    """One person, whose photos are all 30 years off, does not pull its own answers."""
    faces = drawn(60, 5, bias=0.0)
    strange = np.arange(60) < 20
    faces = OwnFaces(
        np.where(strange, faces.true + 30, faces.true),
        faces.decoded,
        faces.widening,
        ["strange" if each else name for each, name in zip(strange, faces.subject, strict=True)],
    )
    ages = left_out_answers(SHIPPED, faces)[0][strange]
    rest = refit(SHIPPED, faces.only(~strange))
    alone = faces.only(strange).answers(rest)[0]
    # others of the person's part are left out with it, so the fit is not exactly that of the rest
    assert np.abs(ages - alone).max() < 2.5


def test_faces_without_a_subject_are_people_of_their_own() -> None:
    faces = replace(drawn(30, 0), subject=["a", None, "a", None] + ["b"] * 26)
    assert len(np.unique(faces.people())) == 4
    assert faces.people()[0] == faces.people()[2]


def test_too_few_faces_are_refused() -> None:
    with pytest.raises(UserError, match="20 labelled faces at least; there are 19"):
        refit(SHIPPED, drawn(19, 0))


def test_the_slope_is_drawn_towards_1() -> None:
    x = np.linspace(10, 60, 40)
    slope, intercept = shrunk_line(x, 0.7 * x + 5)
    assert 0.8 < slope < 0.95
    assert slope * 35 + intercept == pytest.approx(0.7 * 35 + 5, abs=1)
    many = np.tile(x, 50)
    assert shrunk_line(many, 0.7 * many + 5)[0] == pytest.approx(0.7, abs=0.01)


def test_faces_of_one_predicted_age_get_a_shift() -> None:
    assert shrunk_line(np.full(30, 25.0), np.full(30, 20.0)) == (1.0, -5.0)
