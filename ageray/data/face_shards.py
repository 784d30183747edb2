"""Face shards as a Ray dataset: a folder of Parquet files (`schema.FACES`) in, ordered rows out."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data

from ageray import schema, storage
from ageray.errors import UserError


def read_faces(uri: str, columns: list[str] | None = None) -> ray.data.Dataset:
    """The face shards of a folder as a dataset of `columns` (default: all).

    Files come in the order of their names, rows in theirs. Raises UserError if there are no shards,
    the folder is half written, or a column is missing or of another type.
    """
    uri = storage.absolute(uri)
    if storage.half_written(uri):
        remedy = "wait, or run ageray prepare again"
        raise UserError(f"{uri}: is being written or was left half written; {remedy}")
    if not storage.is_folder(uri):
        raise UserError(f"{uri}: there is no such folder; write it with ageray prepare")
    files = storage.list_files(uri, (".parquet",))
    if not files:
        raise UserError(f"{uri}: holds no face shards (.parquet); write them with ageray prepare")
    expected = pa.schema(map(schema.FACES.field, columns or schema.FACES.names))
    filesystem, _ = storage.filesystem(uri)
    paths = []
    try:
        for file in files:
            path = storage.filesystem(file)[1]
            paths.append(path)
            schema.check(pq.read_schema(path, filesystem=filesystem).empty_table(), expected, file)
    except (ValueError, OSError) as error:
        raise UserError(f"{error}; write face shards with ageray prepare") from None
    # Ray's newer reader starts an actor for the footers and a listing for every pass over the data.
    # A short training started 59 worker processes with it, 14 with the older one
    # (docs/benchmarks.md).
    ray.data.DataContext.get_current().use_datasource_v2 = False
    dataset = ray.data.read_parquet(paths, filesystem=filesystem, columns=expected.names, partitioning=None)
    dataset.context.execution_options.preserve_order = True
    return dataset
