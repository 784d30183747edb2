"""Measures of age estimation, with bootstrap intervals and tests between models.

Takes arrays of ages in years, gives floats and dicts of them. Needs neither torch nor Ray.
"""

from ageray.metrics.accuracy import (
    bias,
    cumulative_score,
    cumulative_scores,
    epsilon_error,
    epsilon_errors,
    mean_absolute_error,
    mean_over_subjects,
)
from ageray.metrics.age_checks import age_check_table, young_adult_mae
from ageray.metrics.bootstrap import Bootstrap, with_intervals
from ageray.metrics.breakdown import by_band, by_decade, by_label
from ageray.metrics.challenge import challenge_table
from ageray.metrics.interval import calibration_curve, calibration_error, coverage, covered, mean_width
from ageray.metrics.mean import Mean
from ageray.metrics.paired_tests import compare, mean_errors
from ageray.metrics.risk_coverage import area_under_risk, risk_coverage
from ageray.metrics.seed_tests import compare_seeds
from ageray.metrics.summary import Tested, full_report, plain_report, summary

__all__ = [
    "Bootstrap",
    "Mean",
    "Tested",
    "age_check_table",
    "area_under_risk",
    "bias",
    "by_band",
    "by_decade",
    "by_label",
    "calibration_curve",
    "calibration_error",
    "challenge_table",
    "compare",
    "compare_seeds",
    "coverage",
    "covered",
    "cumulative_score",
    "cumulative_scores",
    "epsilon_error",
    "epsilon_errors",
    "full_report",
    "mean_absolute_error",
    "mean_errors",
    "mean_over_subjects",
    "mean_width",
    "plain_report",
    "risk_coverage",
    "summary",
    "with_intervals",
    "young_adult_mae",
]
