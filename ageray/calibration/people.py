"""Several photos of one person: one age at a date, and its interval.

Each photo says an age and how sure it is. The errors of one person's photos are alike (some people
look older than they are), so that the mean of n photos is not sqrt(n) times as sure: with a
correlation r between two photos' errors, the variance of a mean of n equally good ones is (r + (1 -
r) / n) times that of one. Shape letters: N photos, P people.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ageray.errors import UserError

CORRELATION = 0.5
"""Between the errors of two photos of one person, where nothing else was measured."""
_NARROWEST = 1.0  # years: no photo counts as surer than this


@dataclass(frozen=True)
class Person:
    """`age`, `low`, `high` in years at the date, from `photos` photos; `rows` are their places in
    what was given."""

    subject: str
    age: float
    low: float
    high: float
    photos: int
    rows: NDArray[np.int64]


def combine(
    age: ArrayLike,
    low: ArrayLike,
    high: ArrayLike,
    years: ArrayLike | None = None,
    correlation: float = CORRELATION,
) -> tuple[float, float, float]:
    """Age, low and high of one person at a date from N photos: their ages and intervals, (N,) each.

    years: how long before the date each photo was taken, (N,), negative for photos taken after it;
    all at the date where it is None. A photo counts by 1 / (width of its interval)^2. Raises
    UserError for an empty list, lengths that differ, or a correlation outside 0 to 1.
    """
    age_N, low_N, high_N = (np.asarray(column, np.float64) for column in (age, low, high))
    years_N = np.zeros(len(age_N)) if years is None else np.asarray(years, np.float64)
    if len(age_N) == 0 or not len(age_N) == len(low_N) == len(high_N) == len(years_N):
        lengths = ", ".join(str(len(column)) for column in (age_N, low_N, high_N, years_N))
        raise UserError(
            f"combine: needs one photo at least, and as many ages as ends and years; got {lengths}"
        )
    if not 0 <= correlation <= 1:
        raise UserError(f"combine: correlation={correlation:g} is no correlation; give a number from 0 to 1")
    weight_N = 1 / np.maximum(high_N - low_N, _NARROWEST) ** 2
    weight_N /= weight_N.sum()
    centre = float(weight_N @ (age_N + years_N))
    share = correlation + (1 - correlation) * float((weight_N**2).sum())
    below, above = (float(weight_N @ reach_N) * share**0.5 for reach_N in (age_N - low_N, high_N - age_N))
    return max(centre, 0.0), max(centre - below, 0.0), max(centre + above, 0.0)


def combine_people(
    subject: Sequence[str | None],
    age: ArrayLike,
    low: ArrayLike,
    high: ArrayLike,
    years: ArrayLike | None = None,
    correlation: float = CORRELATION,
) -> list[Person]:
    """`combine` of every person, sorted by name; photos without a subject or without an age are
    left out."""
    age_N, low_N, high_N = (np.asarray(column, np.float64) for column in (age, low, high))
    years_N = np.zeros(len(age_N)) if years is None else np.asarray(years, np.float64)
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(subject):
        if name is not None and np.isfinite(age_N[row]):
            rows.setdefault(str(name), []).append(row)
    people = []
    for name in sorted(rows):
        own = np.array(rows[name])
        ends = combine(age_N[own], low_N[own], high_N[own], years_N[own], correlation)
        people.append(Person(name, *ends, len(own), own))
    return people


def error_correlation(subject: Sequence[str | None], error: ArrayLike, width: ArrayLike) -> float:
    """The correlation of two photos' errors of one person, 0 to 1: the one-way intraclass
    correlation, people weighed alike.

    Errors are in units of their interval's width, and at most half of it: a person with a wrong
    birth date would decide alone otherwise. 0.5 where fewer than 20 people have two photos.
    """
    scaled_N = np.asarray(error, np.float64) / np.maximum(np.asarray(width, np.float64), _NARROWEST)
    scaled_N = np.clip(scaled_N - np.median(scaled_N), -0.5, 0.5)
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(subject):
        if name is not None:
            rows.setdefault(str(name), []).append(row)
    products, squares, people = 0.0, 0.0, 0
    for own in rows.values():
        count, values = len(own), scaled_N[own]
        if count < 2:
            continue
        people += 1
        square = float((values**2).sum())
        products += (float(values.sum()) ** 2 - square) / (count * (count - 1))
        squares += square / count
    if people < 20 or squares == 0:
        return CORRELATION
    return float(np.clip(products / squares, 0, 1))


def one_age_each(
    true: ArrayLike,
    subject: Sequence[str | None],
    age: ArrayLike,
    low: ArrayLike,
    high: ArrayLike,
    correlation: float = CORRELATION,
) -> dict[str, Any]:
    """What several photos of a person are worth, on photos whose true age (and so the time between
    them) is known.

    Of each person with two photos or more, every photo's date is asked for once, with the ages of
    all photos moved to it. MAE and interval of one photo alone and of all together, each the mean
    over people of the mean over their photos. `people` is 0, and the rest null, where nobody has
    two photos.
    """
    true_N = np.asarray(true, np.float64)
    age_N, low_N, high_N = (np.asarray(column, np.float64) for column in (age, low, high))
    everybody = combine_people(subject, age_N, low_N, high_N, None, correlation)
    several = [person for person in everybody if person.photos >= 2]
    rows: list[list[float]] = []
    for person in several:
        own, figures = person.rows, []
        for row in own:
            centre, start, end = combine(
                age_N[own], low_N[own], high_N[own], true_N[row] - true_N[own], correlation
            )
            inside, alone = start <= true_N[row] <= end, low_N[row] <= true_N[row] <= high_N[row]
            errors = (abs(age_N[row] - true_N[row]), abs(centre - true_N[row]))
            figures.append([*errors, alone, inside, high_N[row] - low_N[row], end - start])
        rows.append(list(np.mean(figures, 0)))
    names = ("mae_one", "mae_all", "coverage_one", "coverage_all", "width_one", "width_all")
    means = [None] * len(names) if not rows else [float(value) for value in np.mean(rows, 0)]
    photos = sum(person.photos for person in several)
    about = {"people": len(several), "photos": photos, "correlation": correlation}
    return about | dict(zip(names, means, strict=True))
