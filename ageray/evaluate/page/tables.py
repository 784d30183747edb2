"""The tables of an evaluation's page.

Takes the report (see `ageray.metrics.full_report` and `ageray.audit.Audit`), gives `Table`s.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ageray.metrics.breakdown import UNKNOWN
from ageray.report.cells import Cell, Table, count, counted, percent, years

_MOST_ROWS = 40  # of a table of labels
_CS_LIMITS = (3, 5, 10)  # years
_FLOORS = (("training_median", "Always the training median"), ("own_median", "Always this set's own median"))
_LABELS = ("gender", "group")

Row = list[str | Cell]


def overall(report: dict[str, Any]) -> Table:
    """The figures of all faces."""
    figures = report["estimates"]["overall"]
    shares = {row["years"]: row["share"] for row in figures["cs"]}
    level = report["interval"]["level"]
    rows: list[Row] = [["MAE (years), mean over images", years(figures["mae"])]]
    if report.get("plain") is not None:
        plain = report["plain"]["mae"]
        rows.append(["MAE (years) before calibration, as papers report it", years(plain)])
    if figures["mae_over_subjects"] is not None:
        rows.append(["MAE (years), mean over subjects", years(figures["mae_over_subjects"])])
    for limit in _CS_LIMITS:
        if limit in shares:
            rows.append([f"CS({limit}): error of at most {limit} years", percent(shares[limit])])
    rows.append(["Bias (years); positive is too old", years(figures["bias"], signed=True)])
    for name, units in (("epsilon_error", "images"), ("epsilon_error_over_subjects", "subjects")):
        if figures.get(name) is not None:
            rows.append([f"epsilon-error (0 to 1), mean over {units}", years(figures[name], digits=3)])
    rows.append([f"True age within the {level:.0%} interval", percent(figures["coverage"])])
    rows.append([f"Mean width of the {level:.0%} interval (years)", years(figures["width"])])
    return Table(("", f"{report['images']:,} faces"), rows)


def floors(report: dict[str, Any]) -> Table:
    """The model's MAE beside answers that need no look at the face."""
    audit, constant = report["audit"], report["estimates"]["constant"]
    rows: list[Row] = [["The model", years(report["estimates"]["overall"]["mae"])]]
    has_subjects = audit["against"] is not None and audit["subjects"]["shared"] is not None
    if has_subjects and audit["oracle"]["mae"] is not None:
        oracle = years(audit["oracle"]["mae"])
        rows.append(["Knowing only who it is: the subject's mean training age", oracle])
    for name, what in _FLOORS:
        if constant[name] is not None:
            rows.append([f"{what}, {round(constant[name]['age'], 1):g} years", years(constant[name]["mae"])])
    return Table(("", "MAE (years)"), rows)


def by_age(report: dict[str, Any]) -> Table:
    """The figures of each decade of true age."""
    return _breakdown("True age", "ages", report["estimates"]["by_age"])


def by_label(report: dict[str, Any]) -> Iterator[Table]:
    """The figures of each gender and of each group, if any face has one."""
    for name in _LABELS:
        rows = report["estimates"].get(f"by_{name}") or []
        if _any_known(row[name] for row in rows):
            yield _breakdown(name.capitalize(), name, rows)


def _breakdown(title: str, name: str, parts: Sequence[dict[str, Any]]) -> Table:
    rows: list[Row] = []
    for part in parts[:_MOST_ROWS]:
        rows.append(
            [
                str(part[name]),
                count(part["images"]),
                years(part["mae"]),
                years(part["bias"], signed=True),
                percent(part["cs5"]),
                percent(part["coverage"]),
                years(part["width"], digits=1),
            ]
        )
    head = (title, "Faces", "MAE", "Bias", "CS(5)", "Coverage", "Width")
    return Table(head, rows, _shortened(len(parts)))


# --- audit ----------------------------------------------------------------------------------------


def leaks(audit: dict[str, Any]) -> Table:
    """Who and what is on both sides of the split."""
    subjects, labels = audit["subjects"], audit["conflicts"]
    rows: list[Row] = [
        ["Images", _train_and_test(audit["images"])],
        ["Subjects", _train_and_test(subjects)],
        ["Test images whose subject is in training", counted(subjects, "shared")],
    ]
    for name, kind in (("byte_identical", "Byte-identical"), ("near_identical", "Near-identical")):
        copies = audit[name]
        rows.append([f"{kind} to a training image", counted(copies, "across")])
        if copies["across"] is not None:
            rows.append([f"{kind} copies within one part", _train_and_test(copies)])
    rows.append(["Any of these: leaked test images", counted(audit["leaked"], "images")])
    if labels["identical"] is not None:
        images = f"{labels['identical']['images']:,}"
        rows.append(["Byte-identical images with different ages", images])
    if (near := labels["near"]) is not None:
        pairs = f"{near['differ']:,} of {near['pairs']:,}"
        if near["differ"]:
            pairs = f"{pairs}, by {near['mean_difference']:.1f} years on average"
        rows.append(["Near-identical pairs with different ages", pairs])
    return Table(("", ""), rows)


def conflicts(audit: dict[str, Any]) -> Table | None:
    """Examples of one picture with two ages."""
    rows: list[Row] = []
    for name, kind in (("identical", "byte-identical"), ("near", "near-identical")):
        section = audit["conflicts"][name]
        if section is not None:
            for first, first_age, second, second_age in section["examples"]:
                rows.append([first, f"{first_age:g}", second, f"{second_age:g}", kind])
    return Table(("Image", "Age", "The same picture", "Its age", "Kind"), rows) if rows else None


def near_duplicates(audit: dict[str, Any]) -> Table | None:
    """Examples of test images that are nearly a training image."""
    examples = audit["near_identical"]["examples"]
    if not examples:
        return None
    return Table(("Test image", "Its near-identical training image"), list(map(list, examples)))


def make_up(audit: dict[str, Any]) -> Iterator[Table]:
    """The genders and groups of both parts, if any image has one."""
    for name in ("genders", "groups"):
        train, test = audit[name]["train"], audit[name]["test"]
        labels = sorted({*train, *test}, key=lambda label: (label == UNKNOWN, label))
        if _any_known(labels):
            rows = [[label, _share(train, label), _share(test, label)] for label in labels[:_MOST_ROWS]]
            head = (name.removesuffix("s").capitalize(), "Training", "Test")
            yield Table(head, rows, _shortened(len(labels)))


# --- age checks -----------------------------------------------------------------------------------


def challenge(report: dict[str, Any]) -> Table:
    """By rule: who is let in under age, and who of age is asked for a document."""
    rows: list[Row] = []
    for rule in report["estimates"]["challenge"]:
        rows.append(
            [
                _rule(rule),
                count(rule["under_age"]),
                percent(rule["false_accept"]),
                count(rule["of_age"]),
                percent(rule["false_reject"]),
            ]
        )
    head = ("Rule", "Faces under age", "Of these let in", "Faces of age", "Of these asked for a document")
    return Table(head, rows)


def challenge_by_age(report: dict[str, Any]) -> Table:
    """The same by band of true age; in each band one of the two rates has a meaning."""
    rules = report["estimates"]["challenge"]
    bands = [part["ages"] for part in rules[0]["by_age"]]  # the same for every rule
    rows: list[Row] = []
    for rule in rules:
        rates = {part["ages"]: _error_rate(part) for part in rule["by_age"]}
        rows.append([_rule(rule), *(rates[band] for band in bands)])
    return Table(("Rule", *bands), rows)


def challenge_by_label(report: dict[str, Any]) -> Iterator[Table]:
    """Both rates by gender and by group, if any face has one."""
    rules = report["estimates"]["challenge"]
    for name in _LABELS:
        labels = [part[name] for part in rules[0].get(f"by_{name}") or ()][:_MOST_ROWS]
        if _any_known(labels):
            yield _rates_by_label(rules, name, labels, "false_accept", "under age and let in")
            yield _rates_by_label(rules, name, labels, "false_reject", "of age and asked for a document")


def age_checks(report: dict[str, Any]) -> Iterator[Table]:
    """Of each limit, by the probability that is asked for: minors who pass, adults who do not; then
    by gender and by group."""
    head = ("Passes from", "Faces under age", "False adults", "Faces of age", "False minors")
    for check in report["estimates"].get("age_checks") or ():
        rows: list[Row] = []
        for row in check["thresholds"]:
            minors, adults = count(row["under_age"]), count(row["of_age"])
            rates = percent(row["false_adult"]), percent(row["false_minor"])
            rows.append([_threshold(row), minors, rates[0], adults, rates[1]])
        title = f"Over {check['limit']}; Brier score {check['brier']['value']:.3f}"
        yield Table(head, rows, title)
        for name in _LABELS:
            yield from _checks_by_label(check, name)


def _checks_by_label(check: dict[str, Any], name: str) -> Iterator[Table]:
    labels = [part[name] for part in check["thresholds"][0].get(f"by_{name}") or ()][:_MOST_ROWS]
    if not _any_known(labels):
        return
    for rate, what in (("false_adult", "false adults"), ("false_minor", "false minors")):
        rows: list[Row] = []
        for row in check["thresholds"]:
            parts = {part[name]: part for part in row[f"by_{name}"]}
            rows.append([_threshold(row), *(percent(parts[label][rate]) for label in labels)])
        yield Table(("Passes from", *labels), rows, f"Over {check['limit']} by {name}: {what}")


def _threshold(row: dict[str, Any]) -> str:
    return f"probability {row['threshold']:g}"


def people(report: dict[str, Any]) -> Table | None:
    """One photo of a person against all of them; None where nobody has two."""
    about = report.get("people")
    if not about:
        return None
    rows: list[Row] = [
        ["MAE (years)", f"{about['mae_one']:.2f}", f"{about['mae_all']:.2f}"],
        ["Interval holds", f"{about['coverage_one']:.1%}", f"{about['coverage_all']:.1%}"],
        ["Width (years)", f"{about['width_one']:.1f}", f"{about['width_all']:.1f}"],
    ]
    title = f"{about['people']:,} people with {about['photos']:,} photos; means over people"
    return Table(("", "One photo", "All photos"), rows, title)


def _rates_by_label(
    rules: Sequence[dict[str, Any]], name: str, labels: Sequence[str], rate: str, what: str
) -> Table:
    rows: list[Row] = []
    for rule in rules:
        parts = {part[name]: part for part in rule[f"by_{name}"]}
        rows.append([_rule(rule), *(percent(parts[label][rate]) for label in labels)])
    return Table(("Rule", *labels), rows, f"By {name}: {what}")


def _rule(rule: dict[str, Any]) -> str:
    return f"from {rule['limit']:g}, threshold {rule['threshold']:g}"


def _error_rate(part: dict[str, Any]) -> Cell:
    """The rate that has a meaning in a band of ages: under age let in (coloured), or of age
    asked."""
    if part["under_age"]:
        return percent(part["false_accept"], tone="under")
    return percent(part["false_reject"])


# --- gallery and risk-coverage --------------------------------------------------------------------


def gallery(report: dict[str, Any]) -> Table | None:
    """Whose faces the ages of a gallery come from; None for other models."""
    rows: list[Row] = []
    if (figures := report.get("gallery")) is not None:
        rows += [
            ["Faces in the gallery", f"{figures['faces']:,}"],
            ["Neighbours that ages come from", f"{figures['neighbours']:,.0f}"],
            ["Of these of the face's own subject", percent(figures["same_subject_share"])],
            ["Neighbours of the own subject left out", f"{figures['same_subject_excluded']:,.0f}"],
            ["Faces without a neighbour: their age is a guess", f"{figures['without_neighbours']:,}"],
        ]
    if (gender := report.get("gender")) is not None:
        what = f"Gender right by the nearest faces ({gender['by']}), of {gender['faces']:,} faces"
        rows.append([what, percent(gender["accuracy"])])
    return Table(("", ""), rows) if rows else None


def risk_coverage(report: dict[str, Any]) -> Table:
    """The area under the risk-coverage curve, beside those of the best and of no order."""
    figures = report["estimates"]["risk_coverage"]
    rows: list[Row] = [
        ["By the width of the interval", years(figures["aurc"])],
        ["By the error itself, the best order", years(figures["aurc_best"])],
        ["In no order", years(figures["aurc_without_order"])],
    ]
    return Table(("Order of the faces", "Area under the curve (years)"), rows)


def _any_known(labels: Iterable[str]) -> bool:
    return any(label != UNKNOWN for label in labels)


def _train_and_test(counts: dict[str, Any]) -> str:
    return f"{counts['train']:,} in training, {counts['test']:,} in the test"


def _share(counts: dict[str, int], label: str) -> str:
    number = counts.get(label, 0)
    return f"{number:,} ({number / max(sum(counts.values()), 1):.1%})"


def _shortened(rows: int) -> str:
    return f"The first {_MOST_ROWS} of {rows}." if rows > _MOST_ROWS else ""
