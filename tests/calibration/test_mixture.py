"""Intervals by mixture of sets, decade and side; difficulty and refused faces: by simulation and by
hand."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ageray.calibration import AgeChecks, Calibration, CalibrationSet, Difficulty, Intervals, fit, fit_mixture
from ageray.calibration.difficulty import Hinge, fit_difficulty, quantile
from ageray.calibration.intervals import even_decades, fit_intervals
from ageray.calibration.line import fit_line
from ageray.errors import UserError

Floats = NDArray[Any]
BINS = np.arange(-15.0, 121.0)
NAMES = (
    "resolution",
    "sharpness",
    "grain",
    "turn",
    "nod",
    "misfit",
    "contrast",
    "brightness",
    "colour",
)


def drawn(
    name: str,
    count: int,
    seed: int,
    width: float = 1.0,
    skew: float = 1.0,
    degraded: int = 0,
    strange: float = 0.0,
) -> CalibrationSet:
    """Faces whose errors are `width` times as wide as the posterior, positive ones `skew` times
    more.

    The last `degraded` faces have half the resolution and twice the errors. `strange` is added to
    distances; each unit of it increases the errors by half.
    """
    rng = np.random.default_rng(seed)
    total = count + degraded
    true = rng.uniform(1, 90, total)
    is_degraded = np.arange(total) >= count
    noise = rng.normal(0, 1, total) * (2 + true / 15) * width
    noise *= np.where(is_degraded, 2, 1) * (1 + 0.5 * strange)
    noise = np.where(noise > 0, noise * skew, noise)
    age = true + noise
    reach = 1.645 * (2 + true / 15)
    measures = np.zeros((total, len(NAMES)))
    measures[:, 0] = np.where(is_degraded, -1.0, 0.0)
    distance = 1 + rng.uniform(0, 0.2, total) + strange
    posterior = np.exp(-((BINS - age[:, None]) ** 2) / (2 * (reach[:, None] / 1.645) ** 2))
    posterior /= posterior.sum(-1, keepdims=True)
    decoded = np.stack([age, age - reach, age + reach], -1)
    return CalibrationSet(name, true, decoded, posterior, measures, distance, is_degraded)


def coverage(calibration: Calibration, faces: CalibrationSet) -> tuple[Floats, Floats]:
    """Whether each face's age is in its interval, and the interval's width."""
    shares = np.zeros((len(faces.true), 2))
    answers = calibration.answers(faces.decoded, shares, faces.measures, NAMES, faces.distance)
    return (faces.true >= answers.low) & (faces.true <= answers.high), answers.high - answers.low


def test_each_side_misses_half_of_what_is_allowed() -> None:
    """Positive errors are twice as wide: one margin for both sides would miss on one side only."""
    sets = [drawn("a", 3000, 0, skew=2.0)]
    calibration = fit_mixture(sets, BINS, NAMES, line=(1.0, 0.0))
    fresh = drawn("a", 6000, 9, skew=2.0)
    age, low, high = calibration.apply(*fresh.decoded.T)
    assert 0.035 < (fresh.true < low).mean() < 0.065
    assert 0.035 < (fresh.true > high).mean() < 0.065
    assert (age - low).mean() > 1.5 * (high - age).mean()  # ages are too high, so it extends downwards


def test_coverage_holds_in_every_decade_of_the_predicted_age() -> None:
    """Posteriors too narrow for old faces: one margin for all ages covers the old too seldom."""

    def skewed(seed: int, count: int) -> CalibrationSet:
        faces = drawn("a", count, seed)
        age = faces.decoded[:, 0]
        extra = np.where(age > 50, 2.5, 1.0)
        return replace(faces, true=np.maximum(age + (faces.true - age) * extra, 0))

    fresh = skewed(8, 20_000)
    calibration = fit_mixture([skewed(0, 6000)], BINS, NAMES, line=(1.0, 0.0))
    inside, _ = coverage(calibration, fresh)
    single = fit(skewed(0, 6000).true, *skewed(0, 6000).decoded.T)
    _, low, high = replace(single, scale=1.0, shift=0.0).apply(*fresh.decoded.T)
    inside_single = (fresh.true >= low) & (fresh.true <= high)
    for start, end in ((12, 30), (30, 44), (58, 80)):
        rows = (fresh.decoded[:, 0] >= start) & (fresh.decoded[:, 0] < end)
        assert abs(inside[rows].mean() - 0.9) < 0.05
    old = fresh.decoded[:, 0] > 58
    assert inside_single[old].mean() < 0.85


def test_sets_have_the_same_weight_whatever_their_size() -> None:
    """Nine tenths of the faces are easy, but in the mixture of sets only half."""
    easy, hard = drawn("easy", 9000, 0, width=0.5), drawn("hard", 1000, 1, width=1.5)
    calibration = fit_mixture([easy, hard], BINS, NAMES, line=(1.0, 0.0))
    pooled = replace(calibration, intervals=None, difficulty=None)
    assert pooled.intervals is None
    inside = [coverage(calibration, drawn("fresh", 4000, 5, width=width))[0].mean() for width in (0.5, 1.5)]
    assert np.mean(inside) > 0.89
    assert inside[1] > 0.8


def test_a_set_left_out_is_covered() -> None:
    sets = [drawn("a", 1500, 0), drawn("b", 1500, 1, width=1.3), drawn("c", 1500, 2, width=1.1)]
    calibration = fit_mixture(sets, BINS, NAMES, line=(1.0, 0.0))
    rows = calibration.sets
    assert {name: row["faces"] for name, row in rows.items()} == {"a": 1500, "b": 1500, "c": 1500}
    left_out = [row["left_out"]["coverage"] for row in rows.values()]
    assert np.mean(left_out) >= 0.895
    assert min(left_out) > 0.82
    assert coverage(calibration, drawn("d", 4000, 7, width=1.2))[0].mean() > 0.87


def test_degraded_pictures_fit_the_quality_and_nothing_else() -> None:
    sets = [drawn("a", 2000, 0, degraded=2000), drawn("b", 2000, 1, degraded=2000)]
    calibration = fit_mixture(sets, BINS, NAMES, line=(1.0, 0.0))
    assert calibration.difficulty is not None
    plain = fit_mixture([drawn("a", 2000, 0), drawn("b", 2000, 1)], BINS, NAMES, line=(1.0, 0.0))
    fresh = drawn("c", 3000, 5, degraded=3000)
    quality = calibration.difficulty.quality(fresh.measures, NAMES)  # type: ignore[arg-type]
    assert quality[:3000] == pytest.approx(1)
    assert quality[3000:] == pytest.approx(0.5, abs=0.08)  # their errors are twice as large
    inside, width = coverage(calibration, fresh)
    assert inside[:3000].mean() == pytest.approx(0.9, abs=0.025)
    assert inside[3000:].mean() == pytest.approx(0.9, abs=0.04)
    assert coverage(plain, fresh)[0][3000:].mean() < 0.7
    assert width[3000:].mean() > 1.5 * width[:3000].mean()
    assert calibration.faces == 4000  # degraded copies are not counted


def test_faces_far_from_training_get_wider_intervals() -> None:
    sets = [drawn("near", 3000, 0), drawn("far", 3000, 1, strange=1.0)]
    calibration = fit_mixture(sets, BINS, NAMES, line=(1.0, 0.0))
    assert calibration.difficulty is not None
    near, far = drawn("n", 3000, 5), drawn("f", 3000, 6, strange=1.0)
    assert coverage(calibration, far)[1].mean() > 1.3 * coverage(calibration, near)[1].mean()
    unusual = calibration.difficulty.unusual(far.distance)  # type: ignore[arg-type]
    assert unusual.mean() > calibration.difficulty.unusual(near.distance).mean()  # type: ignore[arg-type]


def test_an_uninformative_measure_gets_no_weight() -> None:
    rng = np.random.default_rng(0)
    measures = rng.normal(0, 1, (4000, len(NAMES)))
    errors = rng.exponential(1, 4000) * np.exp(0.4 * np.maximum(0, measures[:, 3]))
    fitted = fit_difficulty(
        errors, measures, NAMES, rng.uniform(1, 2, 4000), np.ones(4000), np.ones(4000, bool)
    )
    weights = {hinge.measure: hinge.weight for hinge in fitted.hinges}
    assert weights["turn"] > 0.15
    assert all(weight < 0.1 for name, weight in weights.items() if name != "turn")


def test_quality_by_hand() -> None:
    difficulty = Difficulty((Hinge("resolution", -1.0, -0.5, np.log(2)),), 2.0, 0.8, np.log(4), 3.0)
    measures = np.array([[0.0], [-0.5], [-1.5], [-2.5]])
    assert difficulty.quality(measures, ("resolution",)) == pytest.approx([1, 1, 0.5, 0.25])
    assert difficulty.unusual(np.array([1.0, 2.0, 3.0])) == pytest.approx([0.5, 1, 1.5])
    quality, unusual = np.array([1, 0.5, 1, 0.25]), np.array([0.5, 0.8, 1.3, 0.8])
    assert difficulty.expected(quality, unusual) == pytest.approx([1, 2, 2, 4])
    assert difficulty.widening(quality, unusual) == pytest.approx([1, 2, 2, 3])


def test_a_face_beyond_the_widest_interval_is_refused() -> None:
    difficulty = Difficulty((Hinge("resolution", -1.0, 0.0, np.log(2)),), 1.0, 1.0, 0.0, 3.0)
    calibration = Calibration(intervals=Intervals((), (1.0,), (1.0,)), difficulty=difficulty)
    decoded = np.array([[30.0, 20.0, 40.0]] * 3)
    answers = calibration.answers(
        decoded, np.full((3, 2), 0.9), np.array([[0.0], [-1.0], [-2.0]]), ("resolution",), np.ones(3)
    )
    assert answers.refused.tolist() == [False, False, True]
    assert answers.high - answers.low == pytest.approx([20, 40, 60])
    assert answers.over[:, 0] == pytest.approx([0.9, 0.75, 0.675], abs=1e-3)  # a hard face is less certain


def test_faces_harder_than_all_calibration_faces_are_refused() -> None:
    """Half the resolution doubles the calibration faces' errors; none has a quarter."""
    sets = [drawn("a", 2000, 0, degraded=2000), drawn("b", 2000, 1, degraded=2000)]
    calibration = fit_mixture(sets, BINS, NAMES, line=(1.0, 0.0))
    assert calibration.difficulty is not None
    assert 1.9 < calibration.difficulty.largest < 2.5
    fresh = drawn("c", 100, 5, degraded=100)
    assert fresh.measures is not None
    fresh.measures[-10:, 0] = -2.0
    answers = calibration.answers(fresh.decoded, np.zeros((200, 2)), fresh.measures, NAMES, fresh.distance)
    assert not answers.refused[:190].any()
    assert answers.refused[190:].all()


def test_intervals_by_hand() -> None:
    intervals = Intervals((30.0,), (1.0, 2.0), (0.5, 1.5))
    age, low, high = np.array([10.0, 30.0, 60.0]), np.array([6.0, 26.0, 50.0]), np.array([14.0, 38.0, 60.5])
    start, end = intervals.apply(age, low, high, np.array([1.0, 1.0, 2.0]))
    # The middles of the two ranges are 25 and 35, so that 30 is half way.
    # The distance to a quantile is at least one year.
    assert start == pytest.approx([6, 30 - 1.5 * 4, 60 - 2 * 2 * 10])
    assert end == pytest.approx([12, 30 + 1.0 * 8, 60 + 2 * 1.5 * 1])


def test_few_faces_of_a_decade_join_a_neighbour() -> None:
    rng = np.random.default_rng(0)
    age = np.concatenate([rng.uniform(20, 40, 500), rng.uniform(60, 80, 20)])
    true = age + rng.normal(0, 3, len(age))
    fitted = fit_intervals(true, age, age - 5, age + 5, np.ones(len(age)), np.ones(len(age)), 0.9)
    assert fitted.edges == (30.0,)
    assert len(fitted.low) == len(fitted.high) == 2


def test_weighted_quantile() -> None:
    values, weights = np.array([3.0, 1.0, 2.0]), np.array([1.0, 2.0, 1.0])
    assert [quantile(values, weights, share) for share in (0.1, 0.5, 0.75, 1.0)] == [1, 1, 2, 3]


def test_no_set_is_a_mistake() -> None:
    with pytest.raises(UserError, match="no set is named"):
        fit_mixture([], BINS, NAMES)


def test_card_round_trip_gives_the_same_answers() -> None:
    faces = drawn("a", 800, 0, degraded=300)
    calibration = fit_mixture([faces, drawn("b", 800, 1)], BINS, NAMES)
    card = json.loads(json.dumps(calibration.to_card()))
    loaded = Calibration.from_card(card)
    fields = ("age", "low", "high", "quality", "unusual", "widening", "over")
    shares = np.random.default_rng(0).uniform(0, 1, (len(faces.true), 2))
    before, after = (
        each.answers(faces.decoded, shares, faces.measures, NAMES, faces.distance)
        for each in (calibration, loaded)
    )
    for name in fields:
        np.testing.assert_allclose(getattr(after, name), getattr(before, name), rtol=2e-3, atol=2e-3)
    assert loaded.to_card() == card


def test_an_old_card_gives_what_it_gave() -> None:
    """zoo:default's calibration of 0.1.0: the line, and the margin outwards."""
    card = {"method": "...", "level": 0.9, "scale": 0.98, "shift": -0.25, "margin": -1.0, "faces": 1046}
    calibration = Calibration.from_card(card)
    decoded = np.array([[30.0, 20.0, 41.0], [5.0, 4.5, 5.5]], np.float32)
    answers = calibration.answers(decoded, np.array([[0.9, 0.7], [0.0, 0.0]]))
    assert answers.age == pytest.approx([29.15, 4.65])
    assert answers.low == pytest.approx([20.35, 4.65])
    assert answers.high == pytest.approx([38.93, 4.65])
    assert answers.quality is answers.unusual is None
    assert answers.over[0] == pytest.approx([0.9, 0.7])
    assert not answers.refused.any()
    assert "intervals" not in calibration.to_card()


def test_checks_of_an_old_card_are_the_posterior_itself() -> None:
    assert AgeChecks.from_card(None) == AgeChecks()


def old_in_few_photos(seed: int, young: int, old: int) -> CalibrationSet:
    """People of 25 and of 45 whose ages are predicted alike, between 33 and 37."""
    faces = drawn("a", young + old, seed)
    rng = np.random.default_rng(seed)
    faces.true[:young], faces.true[young:] = 25.0, 45.0
    age = rng.uniform(33, 37, young + old)
    return replace(faces, decoded=np.stack([age, age - 1, age + 1], -1))


def test_every_decade_of_the_true_age_is_covered_alike() -> None:
    """One face in fifty is 45; by their number alone the intervals could miss all of them."""
    calibration = fit_mixture([old_in_few_photos(0, 2940, 60)], BINS, NAMES, line=(1.0, 0.0))
    inside, _ = coverage(calibration, old_in_few_photos(3, 500, 500))
    assert inside[500:].mean() > 0.85
    assert inside[:500].mean() > 0.85


def test_a_fifth_of_the_line_is_for_rare_ages() -> None:
    """40 of 2,040 faces are old and predicted 10 years too young; the line moves towards them, and
    the others by less than two years."""
    faces = drawn("a", 2040, 0)
    rng = np.random.default_rng(1)
    faces.true[:2000], faces.true[2000:] = rng.uniform(20, 40, 2000), rng.uniform(70, 80, 40)
    age = faces.true + rng.normal(0, 3, 2040) - np.where(faces.true > 60, 10, 0)
    faces = replace(faces, decoded=np.stack([age, age - 5, age + 5], -1))
    calibration = fit_mixture([faces], BINS, NAMES)
    scale, shift = fit_line(age, faces.true)
    assert calibration.lined(age[2000:]).mean() > (scale * age[2000:] + shift).mean() + 1
    assert np.abs(calibration.lined(age[:2000]) - scale * age[:2000] - shift).mean() < 2


def test_even_decades_by_hand() -> None:
    """30 faces of the 0s, 10 of the 20s and 2 of the 70s and older; fewer than 10 weigh less."""
    weights = even_decades(np.concatenate([np.full(30, 5.0), np.full(10, 20.0), np.array([75.0, 104.0])]))
    assert weights.sum() == pytest.approx(1)
    assert weights[:30].sum() == pytest.approx(weights[30:40].sum())
    assert weights[40] == weights[41] == pytest.approx(weights[30])


def test_no_interval_is_shorter_than_the_posterior_says() -> None:
    """Errors of half the posterior's width: the factors stay at 1."""
    calibration = fit_mixture([drawn("a", 3000, 0, width=0.5)], BINS, NAMES, line=(1.0, 0.0))
    assert calibration.intervals is not None
    assert set(calibration.intervals.low) == set(calibration.intervals.high) == {1.0}
