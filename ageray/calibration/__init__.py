"""Everything that is fitted after training, on faces with known ages: the line that corrects ages,
intervals, the difficulty of a face, and age checks."""

from ageray.calibration.age_checks import LIMITS, AgeChecks, shares_above
from ageray.calibration.difficulty import Difficulty
from ageray.calibration.intervals import Intervals
from ageray.calibration.line import LEVEL, TAILS, Answers, Calibration, fit
from ageray.calibration.mixture import CalibrationSet, fit_mixture
from ageray.calibration.own_faces import FEW, FEW_PEOPLE, FEWEST, OwnFaces, left_out_answers, refit
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
    "FEW",
    "FEWEST",
    "FEW_PEOPLE",
    "LEVEL",
    "LIMITS",
    "TAILS",
    "AgeChecks",
    "Answers",
    "Calibration",
    "CalibrationSet",
    "Difficulty",
    "Intervals",
    "OwnFaces",
    "Person",
    "combine",
    "combine_people",
    "error_correlation",
    "fit",
    "fit_mixture",
    "left_out_answers",
    "one_age_each",
    "refit",
    "shares_above",
]
