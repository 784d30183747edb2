"""Makes a model's card from its predictions on test sets.

The card has figures by set with bootstrap intervals, age checks, hard faces, and sentences on where
the model is wrong. All accuracy figures of `card.json` come from here, so that all shipped models
have the same ones. Shape letters: N faces, L limits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ageray import metrics
from ageray.calibration import CORRELATION, LIMITS, one_age_each
from ageray.errors import UserError

FACTS = ("name", "what", "terms", "networks", "sets", "protocol")
"""Required keys of a file of facts, see `build_card`."""

_WRONG = 3.0  # years; a decade with at least this bias gets a sentence
_FEWEST = 20  # a decade or group needs this many faces for a sentence
_FEWEST_AT_AN_AGE = 5
_RULES: tuple[tuple[float, float], ...] = ((18, 18), (18, 25), (25, 25))
_THRESHOLDS = (0.5, 0.9, 0.95, 0.99)


@dataclass(frozen=True, eq=False)
class Predicted:
    """A model's predictions on one set.

    `true`, `age`, `low`, `high`: (N,) years. `over`: (N, L). `gender`, `group`, `subject`: (N,),
    None if unknown. `refused`: (N,), faces to which the model gives no age. `seen`: whether the
    model was trained on other faces of this set.
    """

    name: str
    true: ArrayLike
    age: ArrayLike
    low: ArrayLike
    high: ArrayLike
    over: ArrayLike
    gender: Sequence[str | None] | None = None
    group: Sequence[str | None] | None = None
    subject: Sequence[str | None] | None = None
    refused: ArrayLike | None = None
    seen: bool = True


def build_card(
    card: dict[str, Any],
    facts: dict[str, Any],
    sets: Sequence[Predicted],
    hard: Sequence[dict[str, Any]] = (),
    training_median: float | None = None,
    correlation: float = CORRELATION,
    resamples: int = 1000,
) -> dict[str, Any]:
    """The card of a bundle: the entries of `card` (hashes, training, calibration), `facts` and the
    figures of `sets`.

    facts: at least the keys FACTS. `name` and `what` describe the model; `terms` are those of its
    weights; `networks` and `sets` are its sources, lists of mappings with `name` and `terms`;
    `protocol` says how it was trained and tested. `not_good_for` is an optional list of sentences.
    Other keys are copied. The card's `licences` lists all sources with their terms.
    hard: rows of `benchmarks/hard_faces.py`. training_median: the age that a constant baseline
    predicts. correlation: between the errors of two photos of one person. resamples: bootstrap
    samples. Raises UserError if a fact is missing, or a set or network has no terms.
    """
    _check(facts)
    full = {**facts, "licences": [], "figures": {}}
    sentences = list(facts.get("not_good_for", []))
    for predicted in sets:
        figures = set_figures(predicted, training_median, correlation, resamples)
        full["figures"][predicted.name] = figures
        sentences += where_wrong(predicted.name, figures)
    for row in (*facts["networks"], *facts["sets"]):
        full["licences"].append(f"{row['name']}: {row['terms']}")
    if hard:
        full["hard_faces"] = list(hard)
    full["not_good_for"] = sentences
    for name, value in card.items():
        full.setdefault(name, value)
    return full


def _check(facts: dict[str, Any]) -> None:
    missing = [name for name in FACTS if not facts.get(name)]
    if missing:
        raise UserError(f"facts: {', '.join(missing)} missing; a card must say it")
    for kind in ("networks", "sets"):
        for row in facts[kind]:
            if not row.get("name") or not row.get("terms"):
                raise UserError(f"facts: {kind}: every entry needs name and terms; got {row}")


def set_figures(
    predicted: Predicted, training_median: float | None, correlation: float, resamples: int
) -> dict[str, Any]:
    """The figures of one set. A figure with enough faces has a 95 % interval [low, high] beside
    it."""
    over_NL = np.asarray(predicted.over, np.float64)
    tested = metrics.Tested(
        predicted.true,
        predicted.age,
        predicted.low,
        predicted.high,
        subject=predicted.subject,
        gender=predicted.gender,
        group=predicted.group,
        over=dict(zip(LIMITS, over_NL.T, strict=True)),
    )
    report = metrics.full_report(tested, training_median, rules=_RULES, resamples=resamples)
    estimates = report["estimates"]
    overall = estimates["overall"]
    figures: dict[str, Any] = {
        "faces": report["images"],
        "seen_in_training": predicted.seen,
        **_pair("mae", overall["mae"]),
        "cs3": _round(report["cs3"]),
        "cs5": _round(report["cs5"]),
        **_pair("bias", overall["bias"]),
        "constant_median_mae": _round(report["constant"]["own_median"]["mae"]),
        **_pair("interval_coverage", overall["coverage"]),
        "interval_mean_width": round(report["interval"]["mean_width"], 2),
        **_pair("mae_18_30", estimates["young_adults"]["mae"]),
        "by_decade": _parts("ages", estimates["by_age"]),
    }
    if predicted.refused is not None:
        figures["refused"] = _round(float(np.asarray(predicted.refused, bool).mean()))
    for name in ("gender", "group"):
        rows = estimates.get(f"by_{name}")
        if rows is not None:
            figures[f"by_{name}"] = _parts(name, rows)
            figures[f"worst_{name}_over_best"] = _ratio(rows, name)
            labels = predicted.gender if name == "gender" else predicted.group
            assert labels is not None
            even = mae_at_same_ages(predicted.true, predicted.age, labels)
            for part in figures[f"by_{name}"]:
                part["mae_same_ages"] = _round(even.get(part[name]))
            if even:
                ratio = max(even.values()) / max(min(even.values()), 1e-9)
                figures[f"worst_{name}_over_best_same_ages"] = _round(ratio)
    figures["age_checks"] = _age_checks(estimates)
    if predicted.subject is not None:
        people = one_age_each(
            predicted.true, predicted.subject, predicted.age, predicted.low, predicted.high, correlation
        )
        if people["people"]:
            figures["people"] = {}
            for name, value in people.items():
                figures["people"][name] = _round(value)
    return figures


def mae_at_same_ages(true: ArrayLike, age: ArrayLike, labels: Sequence[str | None]) -> dict[str, float]:
    """The MAE in years of each large group, as if all groups had the ages of the whole set (direct
    standardisation): errors grow with age, so groups with other ages cannot be compared otherwise.

    A decade counts if every large group has _FEWEST_AT_AN_AGE faces in it. Empty without two groups
    or such a decade.
    """
    true_N = np.asarray(true, np.float64)
    error_N, decade_N = np.abs(np.asarray(age, np.float64) - true_N), true_N // 10
    label_N = np.array([label or "unknown" for label in labels])
    names = []
    for name in np.unique(label_N):
        if name != "unknown" and (label_N == name).sum() >= _FEWEST:
            names.append(name)
    total, sums = 0.0, dict.fromkeys(names, 0.0)
    for decade in np.unique(decade_N):
        parts = {name: error_N[(label_N == name) & (decade_N == decade)] for name in names}
        if min(map(len, parts.values()), default=0) < _FEWEST_AT_AN_AGE:
            continue
        share = float((decade_N == decade).mean())
        total += share
        for name, errors in parts.items():
            sums[name] += share * float(errors.mean())
    if len(names) < 2 or total == 0:
        return {}
    return {str(name): value / total for name, value in sums.items()}


def _age_checks(estimates: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each rule, in NIST's terms: by the estimated age ('18', 'challenge 25') and by the
    probability."""
    rows = []
    for rule in estimates["challenge"]:
        limit, threshold = int(rule["limit"]), int(rule["threshold"])
        name = f"challenge {threshold}"
        if limit == threshold:
            name = f"estimate of {threshold} or more"
        rows.append({"over": limit, "passes": name, **_check_row(_renamed(rule))})
    for check in estimates["age_checks"]:
        for row in check["thresholds"]:
            if row["threshold"] in _THRESHOLDS:
                name = f"probability of {row['threshold']:g} or more"
                rows.append({"over": check["limit"], "passes": name, **_check_row(row)})
    return rows


def _renamed(rule: dict[str, Any]) -> dict[str, Any]:
    """A row of `challenge_table` with the keys of `age_check_table`."""
    rates: dict[str, Any] = {"false_adult": rule["false_accept"], "false_minor": rule["false_reject"]}
    for name in ("gender", "group"):
        if f"by_{name}" not in rule:
            continue
        rates[f"by_{name}"] = []
        for part in rule[f"by_{name}"]:
            row = {name: part[name], "false_adult": part["false_accept"], "false_minor": part["false_reject"]}
            rates[f"by_{name}"].append(row)
    return rates


def _check_row(row: dict[str, Any]) -> dict[str, Any]:
    """The error rates of a row of `age_check_table`, overall and by gender and group."""
    rates = {**_pair("false_adult", row["false_adult"]), **_pair("false_minor", row["false_minor"])}
    for name in ("gender", "group"):
        parts = row.get(f"by_{name}")
        if parts is None:
            continue
        for rate in ("false_adult", "false_minor"):
            values: dict[str, Any] = {}
            for part in parts:
                values[part[name]] = _round(part[rate]["value"])
            rates[f"{rate}_by_{name}"] = values
    return rates


def where_wrong(name: str, figures: dict[str, Any]) -> list[str]:
    """Sentences on biased decades of a set, on its interval's coverage, and on its worst group."""
    sentences = []
    for row in figures["by_decade"]:
        if row["images"] >= _FEWEST and abs(row["bias"]) >= _WRONG:
            side = "high" if row["bias"] > 0 else "low"
            sentences.append(
                f"{name}, ages {row['ages']}: {abs(row['bias']):.1f} years too {side} in the mean."
            )
    coverage = figures["interval_coverage"]
    if not 0.85 <= coverage <= 0.95:
        sentences.append(f"{name}: the 90 % interval covers {coverage:.1%}.")
    ratio = figures.get("worst_group_over_best")
    if ratio is not None and ratio > 1.25:
        worst = max(_large_parts(figures["by_group"], "group"), key=lambda row: float(row["mae"]))
        sentence = f"{name}: {worst['group']} faces have {ratio:.2f} times the error of the best group"
        even = figures.get("worst_group_over_best_same_ages")
        if even is not None:
            sentence += f"; at the same ages the worst group has {even:.2f} times"
        sentences.append(f"{sentence}.")
    return sentences


def _parts(name: str, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The figures of each decade, gender or group. `name` is the key of the part's name."""
    parts = []
    for row in rows:
        part = {name: row[name], "images": row["images"]}
        part |= _pair("mae", row["mae"]) | _pair("bias", row["bias"])
        part["coverage"] = _round(row["coverage"]["value"])
        parts.append(part)
    return parts


def _ratio(rows: Sequence[dict[str, Any]], name: str) -> float | None:
    """The largest MAE of a large part over the smallest; None with fewer than two large parts."""
    errors = [row["mae"]["value"] for row in _large_parts(rows, name)]
    if len(errors) < 2 or min(errors) == 0:
        return None
    return round(float(max(errors) / min(errors)), 3)


def _large_parts(rows: Sequence[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """The parts that are known and have enough faces for a sentence."""
    return [row for row in rows if row["images"] >= _FEWEST and row[name] != "unknown"]


def _pair(name: str, estimate: dict[str, Any]) -> dict[str, Any]:
    """A figure and, if it has one, its 95 % interval."""
    figure: dict[str, Any] = {name: _round(estimate["value"])}
    if estimate["low"] is not None:
        figure[f"{name}_95"] = [_round(estimate["low"]), _round(estimate["high"])]
    return figure


def _round(value: Any) -> Any:
    return round(value, 3) if isinstance(value, float) else value
