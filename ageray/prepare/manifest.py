"""The manifest: where each photo is and what is known of it, without its bytes; and reading one from a file."""

from __future__ import annotations

import csv
import difflib
import io
import math
import posixpath
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ageray import storage
from ageray.errors import UserError
from ageray.schema import POINTS

MANIFEST = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("age", pa.float32()),
        pa.field("age_std", pa.float32()),
        pa.field("subject", pa.string()),
        pa.field("gender", pa.string()),
        pa.field("group", pa.string()),
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("landmarks", POINTS),
    ]
)

OLDEST = 123
"""Years; the oldest person on record was 122."""

_COORDINATES = tuple(f"{axis}{point}" for point in range(5) for axis in "xy")
_SURPLUS = " surplus"  # stripped names of columns do not begin with a space
_KNOWN = ("image", "uri", "key", "age", "age_std", "subject", "gender", "group", "landmarks", *_COORDINATES)


@dataclass(frozen=True)
class Problem:
    """Something that was left out: where (a key, uri or row), of which kind, and why."""

    where: str
    kind: str
    reason: str


def build(rows: Iterable[dict[str, Any]], problems: list[Problem]) -> pa.Table:
    """Rows (dicts with the columns of MANIFEST; missing ones are null) as a table sorted by key.

    A key that came before and text that is not UTF-8 go to `problems` instead.
    """
    kept: dict[str, dict[str, Any]] = {}
    for row in rows:
        where = row.pop("where", row["key"])
        try:
            "".join(value for value in row.values() if isinstance(value, str)).encode()
        except UnicodeEncodeError:
            problems.append(Problem(ascii(where), "malformed name", "not UTF-8"))
            continue
        if row["key"] in kept:
            problems.append(Problem(where, "bad row", f"key '{row['key']}' came before; keys must be unique"))
            continue
        kept[row["key"]] = row
    return pa.Table.from_pylist([kept[key] for key in sorted(kept)], schema=MANIFEST)


def read_file(uri: str, dataset: str, problems: list[Problem], notes: list[Problem]) -> tuple[pa.Table, int]:
    """A CSV or Parquet manifest as a MANIFEST table, and how many rows it had.

    Needs a column `image` (or `uri`): a url, an absolute path or a path relative to the manifest's folder. Optional:
    `key`, `age` and `age_std` in years, `subject`, `gender`, `group`, and five points as `x0`, `y0` ... `x4`, `y4` or
    as one list `landmarks`. Rows that cannot be used go to `problems` by number, from 1, the header apart: text that is
    no number, an age or deviation beyond 0..123, no place, a key that came before, points that are not ten numbers, more
    values than columns. So does an empty subject where other rows have one: a forgotten name would put one person into
    training and test alike. A null subject in Parquet says that it is not known; that row stays, with a note.
    Raises UserError if the file is no such table.
    """
    columns, rows = _parquet_rows(uri) if uri.lower().endswith(".parquet") else _csv_rows(uri)
    _check_columns(uri, columns)
    folder = posixpath.dirname(uri) or "."
    named = any(_text(row, "subject") for row in rows)

    def usable() -> Iterator[dict[str, Any]]:
        for count, row in enumerate(rows, start=1):
            where = f"row {count}"
            try:
                found = _row(row, folder, dataset)
                if named and row["subject"] is not None and found["subject"] is None:
                    raise ValueError(
                        "subject is empty, but other rows have one; name the person, or leave the column out"
                    )
            except ValueError as error:
                problems.append(Problem(where, "bad row", str(error)))
                continue
            if named and found["subject"] is None:
                notes.append(
                    Problem(
                        where,
                        "no subject",
                        "subject is null, but other rows have one; splits take it for a person",
                    )
                )
            yield {**found, "where": where}

    return build(usable(), problems), len(rows)


def number(row: Mapping[str, Any], name: str, most: float) -> float | None:
    """The number within 0..`most` in a column, None if it is missing, empty or NaN. Raises ValueError for anything else."""
    text = _text(row, name)
    if text is None or text.lower() == "nan":
        return None
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{name} '{text}' is not a number") from None
    if not 0 <= value <= most:
        raise ValueError(f"{name} {text} is not within 0..{most}")
    return value


def _csv_rows(uri: str) -> tuple[list[str], list[dict[str, Any]]]:
    reader = csv.DictReader(
        io.StringIO(storage.read_text(uri), newline=""), restkey=_SURPLUS, restval="", strict=True
    )
    try:
        columns = [str(name).strip() for name in reader.fieldnames or ()]
        reader.fieldnames = columns
        return columns, list(reader)
    except csv.Error as error:
        raise UserError(
            f"{uri}: line {reader.reader.line_num} is not CSV ({error}); save it again as comma-separated text"
        ) from None


def _parquet_rows(uri: str) -> tuple[list[str], list[dict[str, Any]]]:
    filesystem, path = storage.filesystem(uri)
    try:
        schema = pq.read_schema(path, filesystem=filesystem)
        if "image" in schema.names and pa.types.is_binary(schema.field("image").type):
            raise UserError(
                f"{uri}: holds face shards already, not a manifest; give their folder as data.shards"
            )
        wanted = [name for name in _KNOWN if name in schema.names]
        return schema.names, pq.read_table(path, columns=wanted, filesystem=filesystem).to_pylist()
    except FileNotFoundError:
        raise UserError(f"{uri}: not found; check the path or url") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{uri}: cannot be read as Parquet ({error}); write it again") from None


def _check_columns(uri: str, columns: list[str]) -> None:
    if "image" not in columns and "uri" not in columns:
        near = difflib.get_close_matches("image", columns, n=1, cutoff=0.4)
        hint = f"; rename '{near[0]}'" if near else ""
        raise UserError(
            f"{uri}: needs a column 'image' (or 'uri'); it has {', '.join(map(str, columns)) or 'none'}{hint}"
        )
    twice = next((name for name in _KNOWN if columns.count(name) > 1), None)
    if twice:
        raise UserError(f"{uri}: has {columns.count(twice)} columns '{twice}'; leave one")
    for name in columns:
        if name not in _KNOWN and name.strip().lower() in _KNOWN:
            raise UserError(f"{uri}: column '{name}' would not be read; rename it '{name.strip().lower()}'")
    given = [name for name in _COORDINATES if name in columns]
    if given and len(given) < len(_COORDINATES):
        missing = ", ".join(name for name in _COORDINATES if name not in columns)
        raise UserError(f"{uri}: five points need the columns x0, y0 ... x4, y4; {missing} missing")


def _row(row: dict[str, Any], folder: str, dataset: str) -> dict[str, Any]:
    if any(row.get(_SURPLUS) or ()):
        raise ValueError("more values than columns; quote values that contain a comma")
    place = _text(row, "image") or _text(row, "uri")
    if place is None:
        raise ValueError("no image path")
    return {
        "key": _text(row, "key") or f"{dataset}/{posixpath.normpath(place).lstrip('/')}",
        "uri": storage.join(folder, place),
        "age": number(row, "age", OLDEST),
        "age_std": number(row, "age_std", OLDEST),
        "subject": _text(row, "subject"),
        "gender": _text(row, "gender"),
        "group": _text(row, "group"),
        "dataset": dataset,
        "landmarks": _points(row),
    }


def _text(row: Mapping[str, Any], name: str) -> str | None:
    value = row.get(name)
    missing = value is None or (isinstance(value, float) and math.isnan(value))
    text = "" if missing else str(value).strip()
    return text or None


def _points(row: dict[str, Any]) -> list[float] | None:
    raw = row.get("landmarks")
    if isinstance(raw, str):
        raw = raw.strip("[]() ").replace(",", " ").replace(";", " ").split()
    if raw is None or len(raw) == 0:
        raw = [text for name in _COORDINATES if (text := _text(row, name)) is not None]
    if not raw:
        return None
    try:
        values = [float(value) for value in raw]
    except (TypeError, ValueError):
        raise ValueError("landmarks are not all numbers") from None
    if len(values) != len(_COORDINATES) or not all(map(math.isfinite, values)):
        raise ValueError(f"landmarks need 10 finite numbers, x and y of five points; got {len(values)}")
    return values
