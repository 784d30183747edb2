"""What a user points `jobs.score` at: where its photos are, without their bytes."""

from __future__ import annotations

import csv
import difflib
import io
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from PIL import Image

from ageray import schema, storage
from ageray.data import synthetic
from ageray.data.sources import PHOTOS
from ageray.errors import UserError

COLUMNS = ("image", "uri")
"""Names of a manifest's column of places; the first that is there counts."""

_HEADER_BYTES = 2**16
_ROWS = 8192
_DEMO_PHOTOS = 8


@dataclass(frozen=True)
class Collection:
    """Photos to score. `files` are the photos themselves, the manifest, or the shards; all uris are absolute."""

    kind: Literal["photos", "manifest", "face shards"]
    uri: str
    files: list[str]

    @classmethod
    def of(cls, inputs: str) -> Collection:
        """Finds out what `inputs` is: a folder of photos (in any sub-folders), one photo, a manifest (.csv, .parquet)
        or face shards (a folder of .parquet files, or one of them).

        Raises UserError if there is nothing, or nothing of these.
        """
        uri = storage.absolute(inputs).rstrip("/") or "/"
        if not storage.exists(uri):
            raise UserError(f"{inputs}: not found; check the path or url")
        if not storage.is_folder(uri):
            return cls._of_file(uri, inputs)
        if storage.exists(storage.join(uri, storage.UNFINISHED)):
            raise UserError(f"{inputs}: is being written or was left half written; wait, or write it again")
        photos = storage.list_files(uri, PHOTOS)
        if photos:
            return cls("photos", uri, photos)
        shards = storage.list_files(uri, (".parquet",))
        if shards and _holds_faces(shards[0]):
            return cls("face shards", uri, shards)
        raise UserError(f"{inputs}: holds neither photos ({', '.join(PHOTOS)}) nor face shards (.parquet); check the path")

    @classmethod
    def _of_file(cls, uri: str, inputs: str) -> Collection:
        name = uri.lower()
        if name.endswith(PHOTOS):
            return cls("photos", uri, [uri])
        if name.endswith(".parquet") and _holds_faces(uri):
            return cls("face shards", uri, [uri])
        if name.endswith((".csv", ".parquet")):
            return cls("manifest", uri, [uri])
        hint = "unpack it and give the folder" if name.endswith((".tar", ".tgz", ".tar.gz", ".zip")) else "give one of these"
        raise UserError(f"{inputs}: neither a folder, a photo, a manifest (.csv, .parquet) nor face shards; {hint}")

    @property
    def store(self) -> str:
        """How uris begin on a remote store (`s3://`); empty for local files."""
        return self.uri.split("://")[0] + "://" if storage.is_remote(self.uri) else ""

    def places(self) -> Iterator[pa.Table]:
        """Uris of photos in tables of 8192 rows, column `image`. A manifest's relative paths start at its folder.

        Raises UserError if a manifest cannot be read or lacks the column.
        """
        assert self.kind != "face shards"
        if self.kind == "photos":
            for start in range(0, len(self.files), _ROWS):
                yield pa.table({"image": pa.array(map(_text, self.files[start : start + _ROWS]), pa.string())})
            return
        folder = posixpath.dirname(self.uri) or "/"
        try:
            for column in _csv_column(self.uri) if self.uri.lower().endswith(".csv") else _parquet_column(self.uri):
                # An empty place stays a row: reading it fails and says so in the scores.
                places = [storage.join(folder, place) if place else "" for place in column.to_pylist()]
                yield pa.table({"image": pa.array(places, pa.string())})
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{self.uri}: cannot be read ({reason}); write it again as comma-separated UTF-8 or Parquet") from None


def draw_demo(folder: str) -> str:
    """Fills a local folder with drawn photos and, where scikit-image is installed, its astronaut; returns it."""
    if storage.is_remote(folder):
        raise UserError(f"{folder}: photos are drawn into local folders only; give a local one")
    synthetic.write_photos(folder, _DEMO_PHOTOS)
    try:
        from skimage.data import astronaut
    except ImportError:
        return folder
    photo = io.BytesIO()
    Image.fromarray(astronaut()).save(photo, "JPEG", quality=95)  # type: ignore[no-untyped-call]
    storage.write_bytes(storage.join(folder, "astronaut.jpg"), photo.getvalue())
    return folder


def _text(uri: str) -> str:
    """A file name that is not UTF-8 cannot stand in a table; what can be said of it will be reported as not found."""
    return uri.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _holds_faces(shard: str) -> bool:
    filesystem, path = storage.filesystem(shard)
    try:
        names = pq.read_schema(path, filesystem=filesystem)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{shard}: cannot be read as Parquet ({' '.join(str(error).split())[:200]}); write it again") from None
    return all(name in names.names for name in ("key", "image")) and names.field("image").type == schema.FACES.field("image").type


def _column(uri: str, names: list[str]) -> str:
    for name in COLUMNS:
        if name in names:
            return name
    near = difflib.get_close_matches(COLUMNS[0], names, n=1, cutoff=0.4)
    hint = f"; rename '{near[0]}'" if near else ""
    raise UserError(f"{uri}: needs a column 'image' (or 'uri') of paths or urls; it has {', '.join(names) or 'none'}{hint}")


def _csv_column(uri: str) -> Iterator[pa.Array]:
    text = storage.read_bytes(uri, _HEADER_BYTES).decode("utf-8-sig", errors="replace")
    column = _column(uri, next(csv.reader(text.splitlines()[:1]), []))
    filesystem, path = storage.filesystem(uri)
    options = pyarrow.csv.ConvertOptions(include_columns=[column], column_types={column: pa.string()}, strings_can_be_null=False)
    with filesystem.open_input_stream(path) as stream, pyarrow.csv.open_csv(stream, convert_options=options) as reader:
        for batch in reader:
            yield batch.column(0)


def _parquet_column(uri: str) -> Iterator[pa.Array]:
    filesystem, path = storage.filesystem(uri)
    with pq.ParquetFile(path, filesystem=filesystem) as file:
        column = _column(uri, file.schema_arrow.names)
        for batch in file.iter_batches(_ROWS, columns=[column]):
            yield batch.column(0).cast(pa.string())
