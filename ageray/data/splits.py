"""A split: which faces train, validate and test; and its table, saved with every run."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from ageray import storage
from ageray.errors import UserError

PARTS = ("train", "val", "test")

_TABLE = pa.schema(
    [pa.field("key", pa.string(), nullable=False), pa.field("part", pa.string(), nullable=False)]
)


@dataclass(frozen=True)
class Split:
    """The keys of each part, sorted; no key is in two parts.

    notes: single lines on what the split leaks and where it departs from its protocol. They are
    shown to the user and saved with the run.
    """

    parts: dict[str, list[str]]
    notes: list[str] = field(default_factory=list)


def used_faces(labelled: pa.Table, splits: Iterable[Split]) -> pa.Table:
    """The labelled faces that are in some part of these splits, in their order."""
    keys = set[str]()
    for split in splits:
        for part in split.parts.values():
            keys.update(part)
    return labelled.filter(pc.is_in(labelled.column("key"), pa.array(sorted(keys), pa.string())))


def save(uri: str, parts: dict[str, list[str]]) -> None:
    """Writes a split as a Parquet table (key, part), sorted by part and key."""
    keys, names = list[str](), list[str]()
    for name in PARTS:
        keys += sorted(parts[name])
        names += [name] * len(parts[name])
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table([keys, names], schema=_TABLE), sink)
    storage.write_bytes(uri, sink.getvalue().to_pybytes())


def load(uri: str) -> dict[str, list[str]]:
    """The keys of each part from what `save` wrote, or any Parquet or CSV table with `key` and
    `part`.

    Raises UserError if it is no such table, or names a key twice.
    """
    data = storage.read_bytes(uri)
    try:
        table = _read_csv(data) if uri.lower().endswith(".csv") else pq.read_table(pa.BufferReader(data))
        table = table.select(_TABLE.names).cast(_TABLE)
        table.validate(full=True)  # texts that are not UTF-8
    except (pa.ArrowException, KeyError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{uri}: not a split table with the columns key and part ({reason})") from None
    parts: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    seen = set[str]()
    for key, name in zip(table.column("key").to_pylist(), table.column("part").to_pylist(), strict=True):
        if name not in parts:
            raise UserError(f"{uri}: unknown part '{name}' of key '{key}'; parts are {', '.join(PARTS)}")
        if key in seen:
            raise UserError(f"{uri}: key '{key}' is there twice; give each face one part")
        seen.add(key)
        parts[name].append(key)
    return parts


def _read_csv(data: bytes) -> pa.Table:
    """Keys are read as text, even if all of them look like numbers."""
    texts = pyarrow.csv.ConvertOptions(column_types=_TABLE, include_columns=_TABLE.names)
    return pyarrow.csv.read_csv(io.BytesIO(data), convert_options=texts)


def train_digest(keys: list[str]) -> str:
    """A digest of a set of training faces, by which an evaluation tells whether its split is the
    model's.
    """
    return hashlib.blake2b("\n".join(sorted(keys)).encode(), digest_size=8).hexdigest()
