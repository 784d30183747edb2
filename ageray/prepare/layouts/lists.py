"""Lists as text: comma-, semicolon- or tab-separated tables, and plain lines."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

from ageray import storage
from ageray.errors import UserError
from ageray.prepare import manifest

Aliases = Mapping[str, Sequence[str]]
"""The names, in small letters, that a column goes by in the lists in circulation."""

Record = dict[str, str]
"""A row: text by column, stripped; empty where the row is too short, under "" what is beyond the last column."""


def records(uri: str, aliases: Aliases, order: Sequence[str] = ()) -> tuple[set[str], list[Record]]:
    """The columns that a table has, by the names of `aliases`, and its rows; other columns are left out.

    Separated by commas, semicolons or tabs, whichever the first line has most of. Names of columns stand in the first
    line, unless it has a number in the second place: then the columns are those of `order`. Raises UserError if the
    text is no such table.
    """
    text = storage.read_text(uri)
    first = text.lstrip().split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        rows = [[value.strip() for value in row] for row in reader if any(value.strip() for value in row)]
    except csv.Error as error:
        raise UserError(
            f"{uri}: line {reader.line_num} cannot be read ({error}); save it again as separated text"
        ) from None
    if not rows:
        return set(), []
    if order and len(rows[0]) > 1 and is_number(rows[0][1]):
        header = list(order)
    else:
        names = {alias: name for name, known in aliases.items() for alias in known}
        header, rows = [names.get(name.lower(), "") for name in rows[0]], rows[1:]
    return set(header) - {""}, [_record(header, row) for row in rows]


def age(record: Record) -> float:
    """The age in years. Raises ValueError if there is none between 0 and 123, or if the row has too many values to tell."""
    if "" in record:
        raise ValueError("more values than columns; quote values that contain the separator")
    value = manifest.number(record, "age", manifest.OLDEST)
    if value is None:
        raise ValueError("no age")
    return value


def gender(text: str) -> str | None:
    """`male`, `female`, or None for anything but m, male, f, female (any case)."""
    return {"m": "male", "male": "male", "f": "female", "female": "female"}.get(text.lower())


def lines(uri: str) -> list[str]:
    """The lines of a text, stripped, without empty ones at its end."""
    return [line.strip() for line in storage.read_text(uri).rstrip().splitlines()]


def is_number(text: str) -> bool:
    """Whether `float` takes it."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _record(header: list[str], row: list[str]) -> Record:
    record: Record = {}
    for name, value in zip(header, row + [""] * len(header), strict=False):
        if name and not record.get(name):
            record[name] = value
    surplus = "".join(row[len(header) :])
    return {**record, "": surplus} if surplus else record
