"""The labels of face shards: one row for every face with a known age, without its image. No Ray."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from ageray import schema, storage
from ageray.config import zoo
from ageray.errors import UserError
from ageray.experiment import Experiment

_NAMES = ("key", "subject", "age", "age_std", "gender", "group", "dataset")
LABELS_SCHEMA = pa.schema(map(schema.FACES.field, _NAMES))


def labelled_faces(shards: str, key: str = "data.shards=") -> pa.Table:
    """The labels (LABELS_SCHEMA) of every face with a known age: what a protocol splits.

    key: where the user named the folder, for messages. Raises UserError if there are no shards, or
    a file is none.
    """
    if not storage.is_folder(shards):
        raise UserError(f"{key}{shards}: there is no such folder; write it with ageray prepare")
    files = storage.list_files(shards, (".parquet",))
    if not files:
        raise UserError(f"{key}{shards}: holds no face shards (.parquet); write them with ageray prepare")
    tables = []
    for file in files:
        filesystem, path = storage.filesystem(file)
        try:
            names = set(pq.read_schema(path, filesystem=filesystem).names)
            columns = [name for name in LABELS_SCHEMA.names if name in names]
            table = pq.read_table(path, filesystem=filesystem, columns=columns, partitioning=None)
            table.validate(full=True)  # texts that are not UTF-8
            tables.append(schema.check(table, LABELS_SCHEMA, file))
        except (ValueError, OSError) as error:
            reason = " ".join(str(error).removeprefix(f"{file}: ").split())[:200]
            raise UserError(
                f"{key}{shards}: {file} is no face shard ({reason}); write shards with ageray prepare"
            ) from None
    table = pa.concat_tables(tables)
    return table.filter(pc.is_finite(table.column("age")))  # neither null nor NaN, as in the stream


def faces_digest(experiment: Experiment, labelled: pa.Table, levels: Sequence[float]) -> str:
    """A digest of the faces, their labels and the weights that training starts from: 16 hex digits.

    The sizes of the shards stand for the images in them. levels: of the quantiles that are kept.
    """
    content = hashlib.blake2b(digest_size=8)
    content.update(json.dumps([list(levels), torch.__version__]).encode())
    columns = [labelled.column(name).to_pylist() for name in ("key", "age", "subject", "gender", "group")]
    content.update(repr(sorted(zip(*columns, strict=True), key=lambda row: row[0])).encode())
    assert experiment.data.shards is not None
    for file in storage.list_files(experiment.data.shards, (".parquet",)):
        filesystem, path = storage.filesystem(file)
        content.update(f"{file.rsplit('/', 1)[-1]} {filesystem.get_file_info(path).size}".encode())
    if experiment.model.weights not in ("none", "imagenet"):
        file = zoo.weights_file(experiment.model.weights)
        content.update(hashlib.sha256(storage.read_bytes(file)).digest())
    return content.hexdigest()
