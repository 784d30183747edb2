"""Reads lists that are text: tables separated by commas, semicolons or tabs, and plain lines."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence

from ageray import storage
from ageray.errors import UserError
from ageray.prepare import manifest

Aliases = Mapping[str, Sequence[str]]
"""A column's name to the names, in small letters, that lists give it."""

Record = dict[str, str]
"""A row: column to stripped text. Missing values are empty. Surplus values are under the key ""."""


def records(uri: str, aliases: Aliases, order: Sequence[str] = ()) -> tuple[set[str], list[Record]]:
    """The columns of a table, under the names of `aliases`, and its rows. Other columns are left
    out.

    The separator is the comma, semicolon or tab that is most frequent in the first line. The first
    line has the names of the columns, unless its second value is a number: then the columns are
    those of `order`. Raises UserError if the text is no such table.
    """
    text = storage.read_text(uri)
    first = text.lstrip().split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        rows = [list(map(str.strip, line)) for line in reader]
    except csv.Error as error:
        raise UserError(
            f"{uri}: line {reader.line_num} cannot be read ({error}); save it again as separated text"
        ) from None
    rows = list(filter(any, rows))
    if not rows:
        return set(), []
    if order and len(rows[0]) > 1 and is_number(rows[0][1]):
        header = list(order)
    else:
        names: dict[str, str] = {}
        for name, others in aliases.items():
            names |= dict.fromkeys(others, name)
        header, rows = [names.get(name.lower(), "") for name in rows[0]], rows[1:]
    return set(header) - {""}, [_record(header, row) for row in rows]


def age(record: Record) -> float:
    """The age in years. Raises ValueError if it is missing or not within 0..123, or if the row has
    more values than columns."""
    if "" in record:
        raise ValueError("more values than columns; quote values that contain the separator")
    value = manifest.number(record, "age", manifest.OLDEST)
    if value is None:
        raise ValueError("no age")
    return value


def without_empty(record: Record) -> Record:
    """The values of a row that are not empty."""
    return {name: value for name, value in record.items() if value}


def lines(uri: str) -> list[str]:
    """The stripped lines of a text, without the empty ones at its end."""
    text = storage.read_text(uri).rstrip()
    return list(map(str.strip, re.split("\r?\n|\r", text))) if text else []  # names may have other ends


def is_number(text: str) -> bool:
    """Whether `float` accepts the text."""
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
