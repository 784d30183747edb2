"""The manifest: a table with the uri and the labels of each photo; read from a file or built from
rows.
"""

from __future__ import annotations

import csv
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
from ageray.storage import delimited

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
"""Greatest age in years; the oldest person on record reached 122."""

_COORDINATES = tuple(f"{axis}{point}" for point in range(5) for axis in "xy")
_SURPLUS = " surplus"  # no name of a column begins with a space, because they are stripped
_COLUMNS = ("image", "uri", "key", "age", "age_std", "subject", "gender", "group", "landmarks", *_COORDINATES)


@dataclass(frozen=True)
class Problem:
    """A photo or row that was left out: where (a key, uri or row), of which kind, and why."""

    where: str
    kind: str
    reason: str


def build(rows: Iterable[dict[str, Any]], problems: list[Problem]) -> pa.Table:
    """Rows as a table sorted by key. A row has columns of MANIFEST; missing ones are null.

    A row with the key of an earlier row, or with text that is not UTF-8, goes to `problems`.
    """
    by_key: dict[str, dict[str, Any]] = {}
    for row in rows:
        where = row.pop("where", row["key"])
        try:
            "".join(map(str, row.values())).encode()
        except UnicodeEncodeError:
            problems.append(Problem(ascii(where), "malformed name", "not UTF-8"))
            continue
        if row["key"] in by_key:
            problems.append(Problem(where, "bad row", f"key '{row['key']}' came before; keys must be unique"))
            continue
        by_key[row["key"]] = row
    rows = [row for _, row in sorted(by_key.items())]
    return pa.Table.from_pylist(rows, schema=MANIFEST)


def read_file(uri: str, dataset: str, problems: list[Problem], notes: list[Problem]) -> tuple[pa.Table, int]:
    """A CSV or Parquet manifest as a MANIFEST table, and the number of its rows.

    Needs a column `image` (or `uri`): a url, an absolute path, or a path relative to the manifest's
    folder. Optional: `key`, `age` and `age_std` in years, `subject`, `gender`, `group`, and five
    points as `x0`, `y0` ... `x4`, `y4` or as one list `landmarks`.

    A row that cannot be used goes to `problems` by its number, counted from 1 after the header:
    text that is no number, an age or deviation outside 0..123, no path, the key of an earlier row,
    points that are not ten numbers, more values than columns. So does a row with an empty subject
    if other rows have one: a forgotten name could put one person into training and test. A null
    subject in Parquet means an unknown person: that row stays, with a note.

    Raises UserError if the file is no such table.
    """
    columns, rows = _parquet_rows(uri) if uri.lower().endswith(".parquet") else _csv_rows(uri)
    _check_columns(uri, columns)
    folder = posixpath.dirname(uri) or "."
    has_subjects = any(_text(row, "subject") for row in rows)

    def usable() -> Iterator[dict[str, Any]]:
        for count, row in enumerate(rows, start=1):
            where = f"row {count}"
            try:
                labels = _row(row, folder, dataset)
                if has_subjects and row["subject"] is not None and labels["subject"] is None:
                    raise ValueError(
                        "subject is empty, but other rows have one; name the person, or leave the column out"
                    )
            except ValueError as error:
                problems.append(Problem(where, "bad row", str(error)))
                continue
            if has_subjects and labels["subject"] is None:
                reason = "subject is null, but other rows have one; splits take it for a person"
                notes.append(Problem(where, "no subject", reason))
            yield {**labels, "where": where}

    return build(usable(), problems), len(rows)


def number(row: Mapping[str, Any], name: str, most: float) -> float | None:
    """The number in a column; None if it is missing, empty or NaN.

    Raises ValueError if it is not a number within 0..`most`.
    """
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
    data = storage.read_bytes(uri)
    text = data.decode(delimited.encoding(data), "replace")
    reader = csv.DictReader(
        io.StringIO(text, newline=""),
        restkey=_SURPLUS,
        restval="",
        strict=True,
        delimiter=delimited.delimiter(text.partition("\n")[0]),
    )
    try:
        columns = list(map(str.strip, reader.fieldnames or ()))
        reader.fieldnames = columns
        return columns, list(reader)
    except csv.Error as error:
        raise UserError(
            f"{uri}: line {reader.reader.line_num} is not CSV ({error}); save it again as "
            f"comma-separated text"
        ) from None


def _parquet_rows(uri: str) -> tuple[list[str], list[dict[str, Any]]]:
    filesystem, path = storage.filesystem(uri)
    try:
        schema = pq.read_schema(path, filesystem=filesystem)
        if "image" in schema.names and pa.types.is_binary(schema.field("image").type):
            raise UserError(
                f"{uri}: holds face shards already, not a manifest; give their folder as data.shards"
            )
        columns = [name for name in _COLUMNS if name in schema.names]
        return schema.names, pq.read_table(path, columns=columns, filesystem=filesystem).to_pylist()
    except FileNotFoundError:
        raise UserError(f"{uri}: not found; check the path or url") from None
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{uri}: cannot be read as Parquet ({error}); write it again") from None


def _check_columns(uri: str, columns: list[str]) -> None:
    if "image" not in columns and "uri" not in columns:
        likely = delimited.likely_column(columns)
        hint = f"; rename '{likely}'" if likely else ""
        raise UserError(
            f"{uri}: needs a column 'image' (or 'uri'); it has {', '.join(map(str, columns)) or 'none'}{hint}"
        )
    for name in _COLUMNS:
        if columns.count(name) > 1:
            raise UserError(f"{uri}: has {columns.count(name)} columns '{name}'; leave one")
    for name in columns:
        if name not in _COLUMNS and name.strip().lower() in _COLUMNS:
            raise UserError(f"{uri}: column '{name}' would not be read; rename it '{name.strip().lower()}'")
    missing = [name for name in _COORDINATES if name not in columns]
    if missing and len(missing) < len(_COORDINATES):
        raise UserError(
            f"{uri}: five points need the columns x0, y0 ... x4, y4; {', '.join(missing)} missing"
        )


def _row(row: dict[str, Any], folder: str, dataset: str) -> dict[str, Any]:
    if any(row.get(_SURPLUS) or ()):
        raise ValueError("more values than columns; quote values that contain a comma")
    path = _text(row, "image") or _text(row, "uri")
    if path is None:
        raise ValueError("no image path")
    return {
        "key": _text(row, "key") or f"{dataset}/{posixpath.normpath(path).lstrip('/')}",
        "uri": storage.join(folder, path),
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
        raw = list(filter(None, (_text(row, name) for name in _COORDINATES)))
    if not raw:
        return None
    try:
        values = list(map(float, raw))
    except (TypeError, ValueError):
        raise ValueError("landmarks are not all numbers") from None
    if len(values) != len(_COORDINATES) or not all(map(math.isfinite, values)):
        raise ValueError(f"landmarks need 10 finite numbers, x and y of five points; got {len(values)}")
    return values
