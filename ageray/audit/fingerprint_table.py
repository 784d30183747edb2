"""Fingerprints of every face of a shard folder, computed with Ray Data and stored beside them.

Takes a folder of shards, gives a table with one row per face, which the audit compares.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pyarrow.fs

from ageray import cluster, storage
from ageray.audit import fingerprints
from ageray.data.face_shards import read_faces
from ageray.errors import UserError
from ageray.faces.images import ImageError

FILE = "fingerprints.arrow"
"""Name of the file beside the shards. It is computed again if the shards have changed."""

FINGERPRINTS_SCHEMA = pa.schema(
    [("key", pa.string()), ("digest", pa.string()), ("phash", pa.uint64()), ("thumbnail", pa.binary())]
)
"""Columns of the table. All but `key` are null where the bytes are not an image."""

_BLOCK_ROWS = 256  # rows per task, so that a single shard can use all cores
_TAIL = 64 * 2**10  # bytes at a Parquet file's end: the footer, whose statistics change with the content
_SHARDS_KEY = b"ageray.shards"


def load_or_compute_fingerprints(shards: str) -> pa.Table:
    """The columns FINGERPRINTS_SCHEMA of every row of `shards`, in the order of the shards.

    Computed once, at 300 to 500 faces per second and core, then stored as `fingerprints.arrow` in
    the folder if it can be written. Needs a connected cluster unless the file is there. About
    330 bytes per face come to the driver. Raises UserError if there are no shards.
    """
    uri, digest = storage.join(shards, FILE), _shards_digest(shards)
    if (stored := _read(uri, digest)) is not None:
        return stored
    rows = read_faces(shards, ["key", "image"]).repartition(target_num_rows_per_block=_BLOCK_ROWS)
    mapped = rows.map_batches(
        _fingerprint_rows,
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        max_retries=cluster.LOSSES,
    )
    batches: Any = mapped.iter_batches(batch_size=None, batch_format="pyarrow")
    tables = [batch.cast(FINGERPRINTS_SCHEMA) for batch in batches if batch.num_rows]
    table = pa.concat_tables(tables).combine_chunks()
    with suppress(UserError):  # for read-only shards it is computed again the next time
        storage.write_bytes(uri, _to_bytes(table, digest))
    return table


def _fingerprint_rows(faces: pa.Table) -> pa.Table:
    """A task: the fingerprints of a block of faces."""
    rows: list[dict[str, Any]] = []
    for key, image in zip(faces.column("key").to_pylist(), faces.column("image").to_pylist(), strict=True):
        try:
            rows.append({"key": key, **fingerprints(image)._asdict()})
        except ImageError:
            rows.append({"key": key})
    return pa.Table.from_pylist(rows, schema=FINGERPRINTS_SCHEMA)


def _shards_digest(shards: str) -> bytes:
    """A digest of the shards' names, sizes and footers."""
    digest = hashlib.blake2b(digest_size=16)
    root = storage.absolute(shards)
    for file in storage.list_files(root, (".parquet",)):
        filesystem, path = storage.filesystem(file)
        with filesystem.open_input_file(path) as opened:
            size = opened.size()
            opened.seek(max(0, size - _TAIL))
            digest.update(f"{file[len(root) :]}\0{size}\0".encode() + opened.read())
    return digest.hexdigest().encode()


def _read(uri: str, digest: bytes) -> pa.Table | None:
    """The stored table; None if there is none, it is broken, or it belongs to other shards."""
    if not storage.exists(uri):
        return None
    try:
        table = pa.ipc.open_file(pa.BufferReader(storage.read_bytes(uri))).read_all()
    except (pa.ArrowException, UserError):
        return None
    metadata = table.schema.metadata or {}
    if table.schema.names != FINGERPRINTS_SCHEMA.names or metadata.get(_SHARDS_KEY) != digest:
        return None
    return table.replace_schema_metadata(None).cast(FINGERPRINTS_SCHEMA)


def _to_bytes(table: pa.Table, digest: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    marked = table.replace_schema_metadata({_SHARDS_KEY: digest})
    with pa.ipc.new_file(sink, marked.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(marked)
    return bytes(sink.getvalue().to_pybytes())
