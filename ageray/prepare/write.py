"""TODO."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data

from ageray import schema, storage
from ageray.errors import UserError
from ageray.prepare import select

_ROW_GROUP = 128 * 2**20  # bytes; a shard a little larger than this is halved, so 64 MiB is the least

_WRITTEN = pa.schema({"file": pa.string(), "rows": pa.int64(), "bytes": pa.int64(), "error": pa.string()})


def _write(rows: pa.Table, folder: str, shard_mib: float) -> list[dict[str, Any]]:
    """Second pass: the rows as shards of about `shard_mib` each; returns file, rows and bytes of every one."""
    sizes = rows.column("bytes").to_pylist()
    cuts = select.cut(sizes, max(1, round(sum(sizes) / (shard_mib * 2**20))))
    light = rows.drop_columns(["faces", "kind", "reason", "phash", "thumbnail"]).combine_chunks()
    blocks = []
    for shard, (start, end) in enumerate(pairwise(cuts)):
        name = storage.join(folder, f"faces-{shard:05d}-of-{len(cuts) - 1:05d}.parquet")
        blocks.append(
            light.slice(start, end - start).append_column("shard", pa.array([name] * (end - start)))
        )
    written = ray.data.from_arrow(blocks).map_batches(write_shard, batch_size=None, batch_format="pyarrow")
    files = sorted(written.take_all(), key=lambda file: str(file["file"]))
    for file in files:
        error = file.pop("error")
        if error is not None:
            raise UserError(error)
    return files


def write_shard(rows: pa.Table) -> pa.Table:
    """Fetches the photos of one shard and writes it in row groups of 64 to 128 MiB (one, if it is smaller).

    `rows` has the columns of FACES without `image`, and `uri`, `bytes`, `sha256` and `shard` (the uri to write).
    Returns one row with `file`, `rows`, `bytes` and `error`: null, or why the shard could not be written (a photo is
    gone or has changed since the first look, the disk is full); raised in a task, it would reach the driver as a mere
    text.
    """
    uri = rows.column("shard")[0].as_py()
    sizes = rows.column("bytes").to_pylist()
    cuts = select.cut(sizes, -(-sum(sizes) // _ROW_GROUP))
    error = None
    try:
        with ThreadPoolExecutor(storage.READERS) as pool, _writer(uri) as writer:
            for start, end in pairwise(cuts):
                group = rows.slice(start, end - start)
                photos = pool.map(
                    _fetch_again, group.column("uri").to_pylist(), group.column("sha256").to_pylist()
                )
                table = group.append_column("image", pa.array(list(photos), pa.binary()))
                writer.write_table(schema.check(table, schema.FACES, uri), row_group_size=end - start)
    except UserError as mistake:
        error = str(mistake)
    except OSError as trouble:
        error = f"{uri}: cannot be written ({trouble}); check the space and the permissions there"
    row = {"file": uri.rsplit("/", 1)[-1], "rows": rows.num_rows, "bytes": sum(sizes), "error": error}
    return pa.Table.from_pylist([row], schema=_WRITTEN)


def _writer(uri: str) -> pq.ParquetWriter:
    filesystem, path = storage.filesystem(uri)
    return pq.ParquetWriter(
        path,
        schema.FACES,
        filesystem=filesystem,
        compression={name: "none" if name == "image" else "zstd" for name in schema.FACES.names},
        use_dictionary=["subject", "gender", "group", "dataset"],
        write_statistics=["key", "age"],
    )


def _fetch_again(uri: str, sha256: str) -> bytes:
    content = storage.read_bytes(uri)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(
            f"{uri}: changed while it was being prepared; run jobs.prepare again when nothing writes there"
        )
    return content
