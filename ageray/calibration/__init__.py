"""What is learnt after training from faces whose ages are known: a line, intervals, how hard a face
is, age checks."""

from ageray.calibration.age_checks import LIMITS, AgeChecks, shares_above
from ageray.calibration.difficulty import Difficulty
from ageray.calibration.intervals import Intervals
from ageray.calibration.line import LEVEL, TAILS, Answers, Calibration, fit
from ageray.calibration.mixture import CalibrationSet, fit_mixture
from ageray.calibration.people import (
    CORRELATION,
    Person,
    combine,
    combine_people,
    error_correlation,
    one_age_each,
)

__all__ = [
    "CORRELATION",
    "LEVEL",
    "LIMITS",
    "TAILS",
    "AgeChecks",
    "Answers",
    "Calibration",
    "CalibrationSet",
    "Difficulty",
    "Intervals",
    "Person",
    "combine",
    "combine_people",
    "error_correlation",
    "fit",
    "fit_mixture",
    "one_age_each",
    "shares_above",
]
