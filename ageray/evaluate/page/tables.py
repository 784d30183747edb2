"""The tables of an evaluation, made of its report (see `ageray.metrics.full_report` and `ageray.audit.Audit`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ageray.metrics.breakdown import UNKNOWN
from ageray.report.cells import NONE, Cell, Table, count, counted, percent, years

_MOST_PARTS = 40  # rows of a table of groups


def overall(report: dict[str, Any]) -> Table:
    """The figures of all faces."""
    found = report["estimates"]["overall"]
    curve = {row["years"]: row["share"] for row in found["cs"]}
    rows: list[tuple[str, Cell]] = [("MAE (years), mean over images", years(found["mae"]))]
    if found["mae_over_subjects"] is not None:
        rows.append(("MAE (years), mean over subjects", years(found["mae_over_subjects"])))
    rows += [
        (f"CS({limit}): error of at most {limit} years", percent(curve[limit]))
        for limit in (3, 5, 10)
        if limit in curve
    ]
    rows.append(("Bias (years); positive is too old", years(found["bias"], signed=True)))
    for name, over in (("epsilon_error", "images"), ("epsilon_error_over_subjects", "subjects")):
        if found.get(name) is not None:
            rows.append((f"epsilon-error (0 to 1), mean over {over}", years(found[name], digits=3)))
    level = report["interval"]["level"]
    rows.append((f"True age within the {level:.0%} interval", percent(found["coverage"])))
    rows.append((f"Mean width of the {level:.0%} interval (years)", years(found["width"])))
    return Table(("", f"{report['images']:,} faces"), rows)


def floors(report: dict[str, Any]) -> Table:
    """The model's MAE beside what needs no face to be looked at."""
    audit, constant = report["audit"], report["estimates"]["constant"]
    rows: list[tuple[str, Cell]] = [("The model", years(report["estimates"]["overall"]["mae"]))]
    if (
        audit["against"] is not None
        and audit["subjects"]["shared"] is not None
        and audit["oracle"]["mae"] is not None
    ):
        rows.append(
            ("Knowing only who it is: the subject's mean training age", years(audit["oracle"]["mae"]))
        )
    for name, what in (
        ("training_median", "Always the training median"),
        ("own_median", "Always this set's own median"),
    ):
        if constant[name] is not None:
            rows.append((f"{what}, {constant[name]['age']:g} years", years(constant[name]["mae"])))
    return Table(("", "MAE (years)"), rows)


def by_age(report: dict[str, Any]) -> Table:
    """Decades of true age."""
    return _parts("True age", "ages", report["estimates"]["by_age"])


def by_label(report: dict[str, Any]) -> Iterator[Table]:
    """Genders and groups, where they are known of any face."""
    for name in ("gender", "group"):
        rows = report["estimates"].get(f"by_{name}") or []
        if _known(row[name] for row in rows):
            yield _parts(name.capitalize(), name, rows)


def _parts(title: str, name: str, rows: Sequence[dict[str, Any]]) -> Table:
    head = (title, "Faces", "MAE", "Bias", "CS(5)", "Interval holds", "Its width")
    shown: list[list[str | Cell]] = [
        [
            str(row[name]),
            count(row["images"]),
            years(row["mae"]),
            years(row["bias"], signed=True),
            percent(row["cs5"]),
            percent(row["coverage"]),
            years(row["width"], digits=1),
        ]
        for row in rows[:_MOST_PARTS]
    ]
    return Table(head, shown, _shortened(len(rows)))


def leaks(audit: dict[str, Any]) -> Table:
    """Who and what is on both sides of the split."""
    subjects, labels = audit["subjects"], audit["conflicts"]
    rows = [
        ("Images", f"{audit['images']['train']:,} in training, {audit['images']['test']:,} tested"),
        ("Subjects", f"{subjects['train']:,} in training, {subjects['test']:,} tested"),
        ("Tested images whose subject is in training", counted(subjects, "shared")),
    ]
    for name, what in (("byte_identical", "Byte-identical"), ("near_identical", "Near-identical")):
        found = audit[name]
        rows.append((f"{what} to a training image", counted(found, "across")))
        if found["across"] is not None:
            rows.append(
                (
                    f"{what} copies within one part",
                    f"{found['train']:,} in training, {found['test']:,} tested",
                )
            )
    rows.append(("Any of these: leaked test images", counted(audit["leaked"], "images")))
    if labels["identical"] is not None:
        rows.append(("Byte-identical images with different ages", f"{labels['identical']['images']:,}"))
    if (near := labels["near"]) is not None:
        by = f", by {near['mean_difference']:.1f} years on average" if near["differ"] else ""
        rows.append(
            ("Near-identical pairs with different ages", f"{near['differ']:,} of {near['pairs']:,}{by}")
        )
    return Table(("", ""), rows)


def conflicts(audit: dict[str, Any]) -> Table | None:
    """Examples of one picture with two ages."""
    kinds = (("identical", "byte-identical"), ("near", "near-identical"))
    rows = [
        (one, f"{age:g}", other, f"{second:g}", kind)
        for name, kind in kinds
        if audit["conflicts"][name] is not None
        for one, age, other, second in audit["conflicts"][name]["examples"]
    ]
    return Table(("Image", "Age", "The same picture", "Its age", "Kind"), rows) if rows else None


def twins(audit: dict[str, Any]) -> Table | None:
    """Examples of test images that are nearly a training image."""
    rows = audit["near_identical"]["examples"]
    return (
        Table(("Test image", "Its near-identical training image"), [tuple(row) for row in rows])
        if rows
        else None
    )


def make_up(audit: dict[str, Any]) -> Iterator[Table]:
    """Groups and genders of both parts, where they are known of any image."""
    for name in ("genders", "groups"):
        parts = audit[name]
        labels = sorted({*parts["train"], *parts["test"]}, key=lambda label: (label == UNKNOWN, label))
        if _known(labels):
            yield Table(
                (name.removesuffix("s").capitalize(), "Training", "Test"),
                [
                    (label, *(_share(parts[part], label) for part in ("train", "test")))
                    for label in labels[:_MOST_PARTS]
                ],
                _shortened(len(labels)),
            )


def challenge(report: dict[str, Any]) -> Table:
    """Who is let in under age, and who of age is asked for a document, by rule."""
    head = ("Rule", "Under age", "Let in all the same", "Of age", "Asked for a document")
    rows = [
        (
            _rule(row),
            count(row["under_age"]),
            percent(row["false_accept"]),
            count(row["of_age"]),
            percent(row["false_reject"]),
        )
        for row in report["estimates"]["challenge"]
    ]
    return Table(head, rows)


def challenge_by_age(report: dict[str, Any]) -> Table:
    """The same by band of true age: one of the two rates has a meaning in each."""
    rules = report["estimates"]["challenge"]
    bands = list(dict.fromkeys(part["ages"] for row in rules for part in row["by_age"]))
    return Table(
        ("Rule", *bands),
        [(_rule(row), *(_wrong(row["by_age"], "ages", band) for band in bands)) for row in rules],
    )


def challenge_by_label(report: dict[str, Any]) -> Iterator[Table]:
    """Both rates by gender and by group, where they are known of any face."""
    rules = report["estimates"]["challenge"]
    for name in ("gender", "group"):
        labels = [part[name] for part in rules[0].get(f"by_{name}") or ()][:_MOST_PARTS]
        if not _known(labels):
            continue
        for rate, what in (
            ("false_accept", "under age and let in"),
            ("false_reject", "of age and asked for a document"),
        ):
            rows: list[list[str | Cell]] = []
            for rule in rules:
                parts = {part[name]: part for part in rule[f"by_{name}"]}
                rows.append([_rule(rule), *(percent(parts[label][rate]) for label in labels)])
            yield Table(("Rule", *labels), rows, f"By {name}: {what}")


def _rule(row: dict[str, Any]) -> str:
    return f"from {row['limit']:g}, threshold {row['threshold']:g}"


def _wrong(parts: Sequence[dict[str, Any]], name: str, label: str) -> Cell:
    """Of a band of ages the one rate that has a meaning there; under age it is toned."""
    for part in parts:
        if part[name] == label:
            return (
                percent(part["false_accept"], tone="under")
                if part["under_age"]
                else percent(part["false_reject"])
            )
    return Cell(NONE)


def _known(labels: Any) -> bool:
    return any(label != UNKNOWN for label in labels)


def _share(part: dict[str, int], label: str) -> str:
    return f"{part.get(label, 0):,} ({part.get(label, 0) / max(sum(part.values()), 1):.1%})"


def _shortened(rows: int) -> str:
    return f"The first {_MOST_PARTS} of {rows}." if rows > _MOST_PARTS else ""
