"""S3 Inventory as an input: a listing of a bucket that S3 itself writes every day or week, as CSV
or Parquet, with a `manifest.json`. A billion keys take a million requests to list, but some
thousand to read in an inventory.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/storage-inventory-location.html
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote_plus

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from ageray import storage
from ageray.errors import UserError
from ageray.faces.images import PHOTOS

MANIFEST = "manifest.json"
"""Name of the file that names the files of an inventory."""

_ROWS = 65_536
_FLAGS = {"islatest": True, "isdeletemarker": False}  # of buckets with versions: what a photo has
_PHOTO = rf"({'|'.join(map(re.escape, PHOTOS))})$"
_HIDDEN = r"(^|/)\."


def paths(uri: str) -> Iterator[pa.Array]:
    """Uris of the photos of an inventory, in its order. uri: of its `manifest.json`.

    Left out are other files, names that begin with a dot, versions that are not the latest, and
    deleted ones. Raises UserError if it is no inventory.
    """
    manifest = _manifest(uri)
    for file in manifest["files"]:
        location = _location(uri, manifest["destinationBucket"], file["key"])
        rows = _csv(location, manifest["fileSchema"])
        if manifest["fileFormat"] == "Parquet":
            rows = _parquet(location)
        for columns in rows:
            yield _uris(columns)


def _manifest(uri: str) -> dict[str, Any]:
    try:
        manifest = json.loads(storage.read_text(uri))
        keys = [file["key"] for file in manifest["files"]]
        texts = [manifest[name] for name in ("destinationBucket", "fileFormat", "fileSchema")]
    except (ValueError, KeyError, TypeError):
        texts, keys = [None], []
    if not all(isinstance(text, str) for text in [*texts, *keys]):
        raise UserError(f"{uri}: is no manifest of an S3 Inventory; give one, or a .csv or .parquet of paths")
    if manifest["fileFormat"] not in ("CSV", "Parquet"):
        form = manifest["fileFormat"]
        raise UserError(f"{uri}: its files are {form}; let S3 write the inventory as Parquet or CSV")
    return dict(manifest)


def _location(uri: str, bucket: str, key: str) -> str:
    """The uri of a file of the inventory. One that was copied elsewhere has its files in `data`
    beside the folder of the manifest.
    """
    if uri.startswith("s3://"):
        return f"s3://{bucket.removeprefix('arn:aws:s3:::')}/{key}"
    folder = posixpath.dirname(posixpath.dirname(uri))
    return storage.join(folder, "data", posixpath.basename(key))


def _csv(uri: str, schema: str) -> Iterator[dict[str, pa.Array]]:
    """Columns by their names. Keys are url-encoded in CSV."""
    names = [name.strip() for name in schema.split(",")]
    reading = pyarrow.csv.ReadOptions(column_names=names)
    types = pyarrow.csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
    )
    filesystem, path = storage.filesystem(uri)
    with (
        filesystem.open_input_stream(path, compression="detect") as stream,
        pyarrow.csv.open_csv(stream, reading, convert_options=types) as reader,
    ):
        for batch in reader:
            columns = dict(zip(map(_plain, names), batch.columns, strict=True))
            if "key" in columns:
                columns["key"] = pa.array(map(unquote_plus, columns["key"].to_pylist()), pa.string())
            yield columns


def _parquet(uri: str) -> Iterator[dict[str, pa.Array]]:
    filesystem, path = storage.filesystem(uri)
    with pq.ParquetFile(path, filesystem=filesystem) as file:
        names = [name for name in file.schema_arrow.names if _plain(name) in ("bucket", "key", *_FLAGS)]
        for batch in file.iter_batches(_ROWS, columns=names):
            yield dict(zip(map(_plain, batch.schema.names), batch.columns, strict=True))


def _plain(name: str) -> str:
    """`IsLatest` of CSV and `is_latest` of Parquet are one column."""
    return name.replace("_", "").lower()


def _uris(columns: dict[str, pa.Array]) -> pa.Array:
    if not columns.keys() >= {"bucket", "key"}:
        raise UserError(f"an inventory needs Bucket and Key; it has {', '.join(columns)}")
    keys = columns["key"].cast(pa.string())
    mask = pc.match_substring_regex(keys, _PHOTO, ignore_case=True)
    mask = pc.and_not(mask, pc.match_substring_regex(keys, _HIDDEN))
    for name, value in _FLAGS.items():
        if name in columns:
            flag = pc.equal(pc.utf8_lower(columns[name].cast(pa.string())), str(value).lower())
            mask = pc.and_(mask, flag.fill_null(True))
    buckets = columns["bucket"].cast(pa.string()).filter(mask)
    return pc.binary_join_element_wise(
        pc.binary_join_element_wise("s3://", buckets, ""), keys.filter(mask), "/"
    )
