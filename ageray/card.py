"""A model's card from its predictions: figures by set with bootstrap intervals, age checks, hard
faces, and where it is wrong.

Everything that `card.json` says of accuracy is computed here, so that the cards of all models that
ship are made alike. Shape letters: N faces, L limits.
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
"""What a file of facts must say besides figures: see `build_card`."""

_WRONG = 3.0  # years of bias in a decade from which the card says so in words
_FEWEST = 20  # faces of a decade or group that a sentence is about
_RULES: tuple[tuple[float, float], ...] = ((18, 18), (18, 25), (25, 25))
_THRESHOLDS = (0.5, 0.9, 0.95, 0.99)


@dataclass(frozen=True, eq=False)
class Predicted:
    """A model's answers on one set: `true`, `age`, `low`, `high` (N,) years; `over` (N, L); labels
    (N,), None where unknown; `refused` (N,), faces that the model would give no age. `seen`:
    whether faces of this set were trained on, in other parts of it."""

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
    """The card of a bundle: what `card` already holds (hashes, training, calibration), `facts` and
    the figures of `sets`.

    facts: FACTS at least: `name` and `what` of the model, `terms` of its weights, `networks` and
    `sets` it comes from (each a list of mappings with `name` and `terms`), `protocol`;
    `not_good_for`, a list, if there is more to say than the figures do; anything else is taken
    over. `licences` lists networks and sets with their terms, in words that pages show. hard: rows
    of `benchmarks/hard_faces.py`. training_median: age of the floor that always says one age.
    Raises UserError if a fact is missing, or a set or network has no terms.
    """
    _check(facts)
    figures = {each.name: set_figures(each, training_median, correlation, resamples) for each in sets}
    wrong = [sentence for each in sets for sentence in where_wrong(each.name, figures[each.name])]
    full = {**facts, "licences": [], "figures": figures}
    for row in (*facts["networks"], *facts["sets"]):
        full["licences"].append(f"{row['name']}: {row['terms']}")
    if hard:
        full["hard_faces"] = list(hard)
    full["not_good_for"] = [*facts.get("not_good_for", []), *wrong]
    return full | {name: value for name, value in card.items() if name not in full}


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
    """Figures of one set; with intervals as [low, high] where there are faces enough for one."""
    over = np.asarray(predicted.over, np.float64)
    tested = metrics.Tested(
        predicted.true,
        predicted.age,
        predicted.low,
        predicted.high,
        subject=predicted.subject,
        gender=predicted.gender,
        group=predicted.group,
        over={limit: over[:, number] for number, limit in enumerate(LIMITS)},
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
        "by_decade": [_part("ages", row) for row in estimates["by_age"]],
    }
    if predicted.refused is not None:
        figures["refused"] = _round(float(np.asarray(predicted.refused, bool).mean()))
    for name in ("gender", "group"):
        rows = estimates.get(f"by_{name}")
        if rows is not None:
            figures[f"by_{name}"] = [_part(name, row) for row in rows]
            figures[f"worst_{name}_over_best"] = _ratio(rows, name)
    figures["age_checks"] = _age_checks(estimates)
    if predicted.subject is not None:
        people = one_age_each(
            predicted.true, predicted.subject, predicted.age, predicted.low, predicted.high, correlation
        )
        if people["people"]:
            figures["people"] = {name: _round(value) for name, value in people.items()}
    return figures


def _age_checks(estimates: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a rule, in NIST's words: by the estimate ('18', 'challenge 25') and by the
    probability."""
    rows = []
    for rule in estimates["challenge"]:
        limit, threshold = int(rule["limit"]), int(rule["threshold"])
        name = f"estimate of {threshold} or more" if limit == threshold else f"challenge {threshold}"
        renamed = _renamed(rule)
        rows.append({"over": limit, "passes": name, **_check_row(renamed)})
    for check in estimates["age_checks"]:
        for row in check["thresholds"]:
            if row["threshold"] in _THRESHOLDS:
                name = f"probability of {row['threshold']:g} or more"
                rows.append({"over": check["limit"], "passes": name, **_check_row(row)})
    return rows


def _renamed(rule: dict[str, Any]) -> dict[str, Any]:
    """A row of `challenge_table` in the words of `age_check_table`."""
    rates: dict[str, Any] = {"false_adult": rule["false_accept"], "false_minor": rule["false_reject"]}
    for name in ("gender", "group"):
        if f"by_{name}" in rule:
            rates[f"by_{name}"] = [
                {name: part[name], "false_adult": part["false_accept"], "false_minor": part["false_reject"]}
                for part in rule[f"by_{name}"]
            ]
    return rates


def _check_row(row: dict[str, Any]) -> dict[str, Any]:
    rates = {**_pair("false_adult", row["false_adult"]), **_pair("false_minor", row["false_minor"])}
    for name in ("gender", "group"):
        parts = row.get(f"by_{name}")
        if parts is None:
            continue
        for rate in ("false_adult", "false_minor"):
            rates[f"{rate}_by_{name}"] = {part[name]: _round(part[rate]["value"]) for part in parts}
    return rates


def where_wrong(name: str, figures: dict[str, Any]) -> list[str]:
    """Sentences on the decades of a set whose ages are off on one side, and on the worst group."""
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
        parts = [row for row in figures["by_group"] if _counts(row, "group")]
        worst = max(parts, key=lambda row: float(row["mae"]))
        sentences.append(
            f"{name}: {worst['group']} faces have {ratio:.2f} times the error of the best group."
        )
    return sentences


def _part(name: str, row: dict[str, Any]) -> dict[str, Any]:
    about = {
        name: row[name],
        "images": row["images"],
        **_pair("mae", row["mae"]),
        **_pair("bias", row["bias"]),
    }
    return about | {"coverage": _round(row["coverage"]["value"])}


def _ratio(rows: Sequence[dict[str, Any]], name: str) -> float | None:
    """The largest MAE of a part over the smallest; None with fewer than two parts big enough."""
    errors = [row["mae"]["value"] for row in rows if _counts(row, name)]
    if len(errors) < 2 or min(errors) == 0:
        return None
    return round(float(max(errors) / min(errors)), 3)


def _counts(row: dict[str, Any], name: str) -> bool:
    """Whether a part is known and big enough for a sentence."""
    return bool(row["images"] >= _FEWEST and row[name] != "unknown")


def _pair(name: str, estimate: dict[str, Any]) -> dict[str, Any]:
    """A figure and, where it has one, its interval."""
    figure: dict[str, Any] = {name: _round(estimate["value"])}
    if estimate["low"] is not None:
        figure[f"{name}_95"] = [_round(estimate["low"]), _round(estimate["high"])]
    return figure


def _round(value: Any) -> Any:
    return round(value, 3) if isinstance(value, float) else value
