"""Errors of predicted ages: MAE, CS(T), bias, epsilon-error, means over subjects.

Takes arrays of ages in years, one entry per face; predictions are not rounded. Gives floats.
Shape letters: N faces, T limits in years.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Ages = NDArray[np.float64]
Labels = Sequence[str | None]
"""Subjects, genders or groups, one per face; None where the label is not known."""

CS_LIMITS = tuple(range(16))
"""The T of a CS(T) curve, in years."""


def pair(true: ArrayLike, predicted: ArrayLike) -> tuple[Ages, Ages]:
    """Both as float64 (N,). Raises ValueError unless both are one-dimensional and equally long."""
    true_N, predicted_N = np.asarray(true, np.float64), np.asarray(predicted, np.float64)
    if true_N.shape != predicted_N.shape or true_N.ndim != 1 or len(true_N) == 0:
        raise ValueError(
            f"need as many predictions as ages, at least one; got {predicted_N.shape} for {true_N.shape}"
        )
    return true_N, predicted_N


def mean_absolute_error(true: ArrayLike, predicted: ArrayLike) -> float:
    """MAE = mean |p - y| in years."""
    true_N, predicted_N = pair(true, predicted)
    return float(np.abs(predicted_N - true_N).mean())


def cumulative_score(true: ArrayLike, predicted: ArrayLike, years: float) -> float:
    """CS(T): share of faces with |p - y| <= T, inclusive."""
    true_N, predicted_N = pair(true, predicted)
    return float((np.abs(predicted_N - true_N) <= years).mean())


def cumulative_scores(
    true: ArrayLike, predicted: ArrayLike, limits: Sequence[float] = CS_LIMITS
) -> list[float]:
    """CS(T) at each of `limits`: T numbers from 0 to 1."""
    true_N, predicted_N = pair(true, predicted)
    errors_N = np.sort(np.abs(predicted_N - true_N))
    curve: list[float] = (np.searchsorted(errors_N, limits, side="right") / len(errors_N)).tolist()
    return curve


def bias(true: ArrayLike, predicted: ArrayLike) -> float:
    """Mean of p - y in years; positive means predicted too old."""
    true_N, predicted_N = pair(true, predicted)
    return float((predicted_N - true_N).mean())


def epsilon_errors(mean: ArrayLike, deviation: ArrayLike, predicted: ArrayLike) -> Ages:
    """The epsilon-error of each face (N,): 1 - exp(-(p - mu)^2 / (2 sigma^2)).

    mu and sigma are the mean and the standard deviation of the face's annotators (ChaLearn LAP,
    Escalera et al. 2015). A missing prediction (NaN) counts 1. Where sigma is 0 (all annotators
    agreed) the limit holds: 0 if p equals mu, else 1.
    Raises ValueError if a deviation is negative or NaN.
    """
    mean_N, predicted_N = pair(mean, predicted)
    _, deviation_N = pair(mean, deviation)
    if not (deviation_N >= 0).all():
        raise ValueError("the annotators' standard deviations must be 0 or more, for every face")
    square_N = (predicted_N - mean_N) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        error_N = -np.expm1(-square_N / (2 * deviation_N**2))
    error_N = np.where(deviation_N == 0, np.where(square_N == 0, 0.0, 1.0), error_N)
    return np.where(np.isnan(predicted_N), 1.0, error_N)


def epsilon_error(mean: ArrayLike, deviation: ArrayLike, predicted: ArrayLike) -> float:
    """Mean of `epsilon_errors` over the images."""
    return float(epsilon_errors(mean, deviation, predicted).mean())


def units(subjects: Labels, faces: int) -> NDArray[np.int64]:
    """The number of each face's subject (N,), counted from 0 in order of appearance.

    A face whose subject is None is a unit of its own. Raises ValueError unless there is one
    subject entry per face.
    """
    if len(subjects) != faces:
        raise ValueError(f"{len(subjects)} subjects for {faces} faces")
    numbers: dict[tuple[str, str | int], int] = {}
    unit_N = np.empty(faces, np.int64)
    for row, subject in enumerate(subjects):
        name = ("face", row) if subject is None else ("subject", subject)
        unit_N[row] = numbers.setdefault(name, len(numbers))
    return unit_N


def subject_weights(subjects: Labels, faces: int) -> Ages:
    """1 / (number of faces of the same subject), (N,).

    A mean with these weights is the mean over subjects of each subject's mean.
    """
    unit_N = units(subjects, faces)
    return 1.0 / np.bincount(unit_N)[unit_N]


def mean_over_subjects(errors: ArrayLike, subjects: Labels) -> float:
    """Mean over the subjects of each one's mean of `errors` (N,), as in leave-one-person-out."""
    errors_N, _ = pair(errors, errors)
    return float(np.average(errors_N, weights=subject_weights(subjects, len(errors_N))))
