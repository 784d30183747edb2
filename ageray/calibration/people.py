"""One age with an interval from several photos of one person.

The errors of one person's photos are correlated, because some people look older than they are. The
mean of n photos is therefore not sqrt(n) times as accurate as one photo. If r is the correlation
between the errors of two photos, the variance of the mean of n equally good photos is (r + (1 - r)
/ n) times that of one. Shape letters: N photos, P people.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ageray.errors import UserError

Floats = NDArray[np.float64]

CORRELATION = 0.5
"""Default correlation between the errors of two photos of one person."""
_NARROWEST = 1.0  # years; lower bound on an interval's width in a photo's weight


@dataclass(frozen=True)
class Person:
    """`age`, `low`, `high` in years at the date, from `photos` photos with the indices `rows` among
    the input's photos."""

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
    """Age, low and high of one person at a date, from N photos.

    age, low, high: (N,) ages and intervals of the photos. years: (N,) how long before the date
    each photo was taken, negative for photos after it; None puts all photos at the date. A photo's
    weight is 1 / (width of its interval)^2. Raises UserError for an empty list, different lengths,
    or a correlation outside 0 to 1.
    """
    age_N, low_N, high_N, years_N = _columns(age, low, high, years)
    if len(age_N) == 0 or not len(age_N) == len(low_N) == len(high_N) == len(years_N):
        lengths = f"{len(age_N)}, {len(low_N)}, {len(high_N)}, {len(years_N)}"
        raise UserError(
            f"combine: needs one photo at least, and as many ages as ends and years; got {lengths}"
        )
    if not 0 <= correlation <= 1:
        raise UserError(f"combine: correlation={correlation:g} is no correlation; give a number from 0 to 1")
    weight_N = 1 / np.maximum(high_N - low_N, _NARROWEST) ** 2
    weight_N /= weight_N.sum()
    centre = float(weight_N @ (age_N + years_N))
    share = correlation + (1 - correlation) * float((weight_N**2).sum())
    below = float(weight_N @ (age_N - low_N)) * share**0.5
    above = float(weight_N @ (high_N - age_N)) * share**0.5
    return max(centre, 0.0), max(centre - below, 0.0), max(centre + above, 0.0)


def combine_people(
    subject: Sequence[str | None],
    age: ArrayLike,
    low: ArrayLike,
    high: ArrayLike,
    years: ArrayLike | None = None,
    correlation: float = CORRELATION,
) -> list[Person]:
    """`combine` for each person, sorted by subject. Skips photos without a subject or an age.

    subject: (N,) the person on each photo. The rest is as in `combine`.
    """
    age_N, low_N, high_N, years_N = _columns(age, low, high, years)
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
    """The correlation between the errors of two photos of one person, 0 to 1.

    It is the one-way intraclass correlation with the same weight for each person. error: (N,)
    years. width: (N,) of the intervals, in years. Errors are divided by the width and clipped to
    +-0.5, so that one person with a wrong birth date cannot dominate. If fewer than 20 people have
    two photos, the result is CORRELATION.
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
    """Compares the age from one photo of a person with the age from all photos of that person.

    true: (N,) true ages in years, which also give the time between a person's photos. For each
    person with two photos or more, the age is estimated at the date of each photo from all photos.
    Returns MAE, coverage and width of the interval, from one photo and from all; each is the mean
    over people of the mean over their photos. If nobody has two photos, `people` is 0 and the
    figures are None.
    """
    true_N = np.asarray(true, np.float64)
    age_N, low_N, high_N, _ = _columns(age, low, high, None)
    everybody = combine_people(subject, age_N, low_N, high_N, None, correlation)
    several = [person for person in everybody if person.photos >= 2]
    rows: list[list[float]] = []
    for person in several:
        own, figures = person.rows, []
        for row in own:
            centre, start, end = combine(
                age_N[own], low_N[own], high_N[own], true_N[row] - true_N[own], correlation
            )
            error_one, error_all = abs(age_N[row] - true_N[row]), abs(centre - true_N[row])
            inside_one = low_N[row] <= true_N[row] <= high_N[row]
            inside_all = start <= true_N[row] <= end
            widths = (high_N[row] - low_N[row], end - start)
            figures.append([error_one, error_all, inside_one, inside_all, *widths])
        rows.append(list(np.mean(figures, 0)))
    names = ("mae_one", "mae_all", "coverage_one", "coverage_all", "width_one", "width_all")
    means: dict[str, float | None] = dict.fromkeys(names)
    if rows:
        means.update(zip(names, np.mean(rows, 0).tolist(), strict=True))
    photos = sum(person.photos for person in several)
    return {"people": len(several), "photos": photos, "correlation": correlation, **means}


def _columns(
    age: ArrayLike, low: ArrayLike, high: ArrayLike, years: ArrayLike | None
) -> tuple[Floats, Floats, Floats, Floats]:
    """The columns as float64; zeros for `years` if it is None."""
    age_N, low_N, high_N = np.asarray(age, float), np.asarray(low, float), np.asarray(high, float)
    years_N = np.zeros(len(age_N))
    if years is not None:
        years_N = np.asarray(years, float)
    return age_N, low_N, high_N, years_N
