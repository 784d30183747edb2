"""Writes the face shards: fetches the chosen photos again, one task a shard."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ageray import schema, storage
from ageray.errors import UserError
from ageray.machine.progress import Show
from ageray.prepare import select
from ageray.prepare.mapping import Map

_ROW_GROUP = 128 * 2**20  # bytes; a shard a little larger than this is halved, so 64 MiB is the least

_SHARD_SCHEMA = pa.schema(
    {"file": pa.string(), "rows": pa.int64(), "bytes": pa.int64(), "error": pa.string()}
)


def write_shards(
    rows: pa.Table, folder: str, shard_mib: float, apply: Map, show: Show
) -> list[dict[str, Any]]:
    """Writes the rows as shards of about `shard_mib` MiB; returns file, rows and bytes of each.

    show: see `prepare`.

    Raises UserError if a shard could not be written.
    """
    sizes = rows.column("bytes").to_pylist()
    cuts = select.cut(sizes, max(1, round(sum(sizes) / (shard_mib * 2**20))))
    light = rows.drop_columns(["faces", "kind", "reason", "phash", "thumbnail"]).combine_chunks()
    blocks = []
    for shard, (start, end) in enumerate(pairwise(cuts)):
        name = storage.join(folder, f"faces-{shard:05d}-of-{len(cuts) - 1:05d}.parquet")
        names = pa.array([name] * (end - start))
        blocks.append(light.slice(start, end - start).append_column("shard", names))
    reports: list[dict[str, Any]] = []
    done = 0
    for table in apply(write_shard, blocks, None, _give_up):
        reports += table.to_pylist()
        done += sum(table.column("rows").to_pylist())
        show({"what": "faces written", "done": done, "total": rows.num_rows})
    files = sorted(reports, key=lambda file: str(file["file"]))
    for file in files:
        error = file.pop("error")
        if error is not None:
            raise UserError(error)
    return files


def write_shard(rows: pa.Table) -> pa.Table:
    """Fetches the photos of one shard and writes it in row groups of 64 to 128 MiB, or in one.

    `rows` has the columns of FACES without `image`, and `uri`, `bytes`, `sha256` and `shard`, the
    uri to write. Returns one row with `file`, `rows`, `bytes` and `error`: null, or why the shard
    could not be written (a photo is gone or has changed, the disk is full). It is returned because
    an exception in a task reaches the driver only as text.
    """
    uri = rows.column("shard")[0].as_py()
    sizes = rows.column("bytes").to_pylist()
    cuts = select.cut(sizes, -(-sum(sizes) // _ROW_GROUP))
    error = None
    try:
        with ThreadPoolExecutor(storage.READERS) as pool, _writer(uri) as writer:
            for start, end in pairwise(cuts):
                group = rows.slice(start, end - start)
                uris, hashes = group.column("uri").to_pylist(), group.column("sha256").to_pylist()
                photos = pa.array(list(pool.map(_fetch_again, uris, hashes)), pa.binary())
                table = group.append_column("image", photos)
                writer.write_table(schema.check(table, schema.FACES, uri), row_group_size=end - start)
    except UserError as mistake:
        error = str(mistake)
    except OSError as failure:
        error = f"{uri}: cannot be written ({failure}); check the space and the permissions there"
    row = {"file": uri.rsplit("/", 1)[-1], "rows": rows.num_rows, "bytes": sum(sizes), "error": error}
    return pa.Table.from_pylist([row], schema=_SHARD_SCHEMA)


def _give_up(rows: pa.Table) -> pa.Table:
    """As `write_shard`, for a shard on which a process died twice."""
    uri = rows.column("shard")[0].as_py()
    error = f"{uri}: the process that wrote it died twice; check that memory is left"
    return pa.Table.from_pylist([{"file": uri, "error": error}], schema=_SHARD_SCHEMA)


def _writer(uri: str) -> pq.ParquetWriter:
    filesystem, path = storage.filesystem(uri)
    compression = dict.fromkeys(schema.FACES.names, "zstd") | {"image": "none"}
    return pq.ParquetWriter(
        path,
        schema.FACES.with_metadata({schema.MARK: schema.SHARDS}),
        filesystem=filesystem,
        compression=compression,
        use_dictionary=["subject", "gender", "group", "dataset"],
        write_statistics=["key", "age"],
    )


def _fetch_again(uri: str, sha256: str) -> bytes:
    content = storage.read_bytes(uri)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(
            f"{uri}: changed while it was being prepared; run ageray prepare again when nothing writes there"
        )
    return content
