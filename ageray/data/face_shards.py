"""Face shards as a Ray dataset."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data

from ageray import schema, storage
from ageray.errors import UserError


def read_faces(uri: str, columns: list[str] | None = None) -> ray.data.Dataset:
    """The face shards of a folder as a dataset of `columns` (all by default): files by name, rows in their order.

    Raises UserError if there are none, if the folder is half written, or if a column is missing or of another type.
    """
    uri = storage.absolute(uri)
    if storage.exists(storage.join(uri, storage.UNFINISHED)):
        raise UserError(f"{uri}: is being written or was left half written; wait, or run jobs.prepare again")
    files = storage.list_files(uri, (".parquet",))
    if not files:
        raise UserError(f"{uri}: holds no face shards (.parquet); write them with jobs.prepare")
    wanted = pa.schema([schema.FACES.field(name) for name in columns or schema.FACES.names])
    filesystem, _ = storage.filesystem(uri)
    paths = [storage.filesystem(file)[1] for file in files]
    try:
        for file, path in zip(files, paths, strict=True):
            schema.check(pq.read_schema(path, filesystem=filesystem).empty_table(), wanted, file)
    except (ValueError, OSError) as error:
        raise UserError(f"{error}; write face shards with jobs.prepare") from None
    # Ray's newer reader starts an actor for the footers and a listing for every pass over the data: a short training started 59 worker
    # processes where the older reader starts 14 (docs/benchmarks.md)
    ray.data.DataContext.get_current().use_datasource_v2 = False
    dataset = ray.data.read_parquet(paths, filesystem=filesystem, columns=wanted.names, partitioning=None)
    dataset.context.execution_options.preserve_order = True
    return dataset
