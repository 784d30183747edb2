"""Fingerprints of every face of a shard folder, taken on Ray Data and kept beside the shards: what an audit compares."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pyarrow.fs

from ageray import storage
from ageray.audit import fingerprints
from ageray.data.face_shards import read_faces
from ageray.errors import UserError
from ageray.faces.images import ImageError

FILE = "fingerprints.arrow"
"""Beside the shards; taken anew where the shards are no longer those that it was taken of."""

FINGERPRINTS_SCHEMA = pa.schema(
    [("key", pa.string()), ("digest", pa.string()), ("phash", pa.uint64()), ("thumbnail", pa.binary())]
)
"""Nulls where the bytes are no picture."""

_BLOCK_ROWS = 256  # rows a task takes at once: one shard alone then keeps all cores busy
_TAIL = (
    64 * 2**10
)  # bytes at a Parquet file's end: the footer with its statistics, which another content changes
_OF = b"ageray.shards"


def load_or_compute_fingerprints(shards: str) -> pa.Table:
    """The columns FINGERPRINTS_SCHEMA of every row of `shards`, in the order of the shards.

    Taken once, some 300 to 500 faces a second and core, and kept in `fingerprints.arrow` in the folder where that can be written. Needs a
    connected cluster unless they are kept. About 330 bytes a face come to the driver. Raises UserError if there are no shards.
    """
    kept, of = storage.join(shards, FILE), _shards_digest(shards)
    if (found := _read(kept, of)) is not None:
        return found
    rows = read_faces(shards, ["key", "image"]).repartition(target_num_rows_per_block=_BLOCK_ROWS)
    taken = rows.map_batches(_take, batch_size=None, batch_format="pyarrow", zero_copy_batch=True)
    batches: Any = taken.iter_batches(batch_size=None, batch_format="pyarrow")
    table = pa.concat_tables(
        [batch.cast(FINGERPRINTS_SCHEMA) for batch in batches if batch.num_rows]
    ).combine_chunks()
    with suppress(UserError):  # shards that can only be read are looked at again the next time
        storage.write_bytes(kept, _to_bytes(table, of))
    return table


def _take(faces: pa.Table) -> pa.Table:
    rows: list[dict[str, Any]] = []
    for key, image in zip(faces.column("key").to_pylist(), faces.column("image").to_pylist(), strict=True):
        try:
            rows.append({"key": key, **fingerprints(image)._asdict()})
        except ImageError:
            rows.append({"key": key})
    return pa.Table.from_pylist(rows, schema=FINGERPRINTS_SCHEMA)


def _shards_digest(shards: str) -> bytes:
    """Names the shards as they are now: names, sizes and footers."""
    digest = hashlib.blake2b(digest_size=16)
    root = storage.absolute(shards)
    for file in storage.list_files(root, (".parquet",)):
        filesystem, path = storage.filesystem(file)
        with filesystem.open_input_file(path) as opened:
            size = opened.size()
            opened.seek(max(0, size - _TAIL))
            digest.update(f"{file[len(root) :]}\0{size}\0".encode() + opened.read())
    return digest.hexdigest().encode()


def _read(uri: str, of: bytes) -> pa.Table | None:
    if not storage.exists(uri):
        return None
    try:
        table = pa.ipc.open_file(pa.BufferReader(storage.read_bytes(uri))).read_all()
    except (pa.ArrowException, UserError):
        return None
    fits = table.schema.names == FINGERPRINTS_SCHEMA.names and (table.schema.metadata or {}).get(_OF) == of
    return table.replace_schema_metadata(None).cast(FINGERPRINTS_SCHEMA) if fits else None


def _to_bytes(table: pa.Table, of: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    marked = table.replace_schema_metadata({_OF: of})
    with pa.ipc.new_file(sink, marked.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(marked)
    return bytes(sink.getvalue().to_pybytes())
