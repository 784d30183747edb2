"""Which faces train, validate and test: a function of keys, subjects and the protocol, not of the order of the rows."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from ageray import storage
from ageray.errors import UserError
from ageray.experiment import Protocol

PARTS = ("train", "val", "test")

_TABLE = pa.schema([pa.field("key", pa.string(), nullable=False), pa.field("part", pa.string(), nullable=False)])


def split(keys: Sequence[str], subjects: Sequence[str | None], protocol: Protocol) -> dict[str, list[str]]:
    """The keys of each part (`train`, `val`, `test`), sorted.

    `random` ranks the units (a subject with all its faces, or a face whose subject is None) by a hash of
    `protocol.seed` and their name, and gives the first round(test x units) to the test and the next round(val x
    units) to the validation. `all` tests on every face.
    Raises UserError if keys repeat, or if a part with a share above 0 (or the training) would be empty.
    """
    if len(keys) != len(subjects):
        raise ValueError(f"{len(keys)} keys but {len(subjects)} subjects")
    if len(set(keys)) != len(keys):
        twice = next(key for key, after in zip(sorted(keys), sorted(keys)[1:], strict=False) if key == after)
        raise UserError(f"data.shards: key '{twice}' is there twice; keys must be unique, so prepare the shards again")
    if protocol.name == "all":
        parts: dict[str, list[str]] = {"train": [], "val": [], "test": sorted(keys)}
        needed = ["test"]
    else:
        parts = _random(keys, subjects, protocol)
        needed = ["train", *(name for name in ("val", "test") if getattr(protocol, name) > 0)]
    for name in needed:
        if not parts[name]:
            shares = f"val={protocol.val:g}, test={protocol.test:g}"
            raise UserError(f"protocol: no face is left for '{name}' ({len(keys)} faces, {shares}); change the shares or add faces")
    return parts


def save(uri: str, parts: dict[str, list[str]]) -> None:
    """Writes a split as a Parquet table (key, part), sorted by part and key."""
    rows = [(key, name) for name in PARTS for key in sorted(parts[name])]
    table = pa.table([[key for key, _ in rows], [name for _, name in rows]], schema=_TABLE)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    storage.write_bytes(uri, sink.getvalue().to_pybytes())


def load(uri: str) -> dict[str, list[str]]:
    """Reads what `save` wrote. Raises UserError if it is not that."""
    try:
        table = pq.read_table(pa.BufferReader(storage.read_bytes(uri))).cast(_TABLE)
    except (pa.ArrowInvalid, ValueError, OSError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{uri}: not a split table with the columns key and part ({error})") from None
    parts: dict[str, list[str]] = {name: [] for name in PARTS}
    for key, name in zip(table.column("key").to_pylist(), table.column("part").to_pylist(), strict=True):
        if name not in parts:
            raise UserError(f"{uri}: unknown part '{name}' of key '{key}'; parts are {', '.join(PARTS)}")
        parts[name].append(key)
    return parts


def _random(keys: Sequence[str], subjects: Sequence[str | None], protocol: Protocol) -> dict[str, list[str]]:
    units: dict[tuple[str, str], list[str]] = {}
    for key, subject in zip(keys, subjects, strict=True):
        units.setdefault(("face", key) if subject is None else ("subject", subject), []).append(key)
    ranked = sorted(units, key=lambda unit: (_rank(unit, protocol.seed), unit))
    test = round(protocol.test * len(ranked))
    val = test + round(protocol.val * len(ranked))
    chosen = {"test": ranked[:test], "val": ranked[test:val], "train": ranked[val:]}
    return {name: sorted(key for unit in chosen[name] for key in units[unit]) for name in PARTS}


def _rank(unit: tuple[str, str], seed: int) -> bytes:
    text = f"{seed}\0{unit[0]}\0{unit[1]}"
    return hashlib.blake2b(text.encode(), digest_size=16, person=b"ageray-split").digest()
