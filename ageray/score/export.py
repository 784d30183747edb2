"""The scores table in other forms: CSV or JSON lines instead of Parquet, or all in one file."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from ageray import storage
from ageray.errors import UserError, one_line
from ageray.score.files import FORMATS, ScoreFiles

Format = Literal["parquet", "csv", "jsonl"]
"""One of FORMATS."""

_PARQUET = ".parquet"
_ROWS = 65_536


class Target(NamedTuple):
    """What `--out` asks for: the scores folder and, if it names a file, that file."""

    folder: str
    file: str | None = None

    @property
    def format(self) -> str:
        """Of the file."""
        return (self.file or "").rpartition(".")[2].lower()


def target(out: str, inputs: Sequence[str] = ()) -> Target:
    """`ages.csv` asks for that file, from the scores folder `ages.scores`; any other name is that
    of the folder.

    Raises UserError if there is another file of this name, or an INPUT.
    """
    stem, _, ending = out.rpartition(".")
    name = stem.rpartition("/")[2]
    if ending.lower() not in FORMATS or not name or storage.is_folder(out):
        return Target(out)
    files = ScoreFiles(storage.absolute(f"{stem}.scores"))
    file = storage.absolute(out)
    if file in map(storage.absolute, inputs):
        raise UserError(f"--out {out}: is an INPUT; give another name")
    if storage.exists(file) and not any(map(storage.exists, (files.folder, files.unfinished))):
        raise UserError(f"--out {out}: is a file that ageray score did not write; give another name")
    return Target(f"{stem}.scores", out)


def convert(folder: str, form: str) -> None:
    """Replaces every Parquet file of a folder by a file of another of FORMATS."""
    if form == "parquet":
        return
    for file in storage.list_files(folder, (_PARQUET,)):
        _write(f"{file.removesuffix(_PARQUET)}.{form}", form, [file])
        storage.remove(folder, [file.rpartition("/")[2]])


def one_file(to: Target) -> None:
    """Writes the table of a scores folder as one file: the faces, then the rows with an error.

    Raises UserError if it cannot be written.
    """
    assert to.file is not None
    files = ScoreFiles(to.folder)
    parts = [file for file in storage.list_files(to.folder, (_PARQUET,)) if file != files.errors]
    _write(to.file, to.format, [*parts, files.errors])


def _write(uri: str, form: str, parts: list[str]) -> None:
    """The rows of Parquet files as one file of this form, whole or not at all."""
    filesystem, path = storage.filesystem(uri)
    draft = path
    if not storage.is_remote(uri):
        folder, _, name = path.rpartition("/")
        draft = f"{folder}/.{name}.{uuid.uuid4().hex[:8]}"
        storage.make_folder(folder or "/")
    try:
        with filesystem.open_output_stream(draft) as sink:
            _write_rows(sink, form, parts)
        if draft != path:
            filesystem.move(draft, path)
    except OSError as error:
        remedy = "check the space and the permissions there"
        raise UserError(f"{uri}: cannot be written ({one_line(error)}); {remedy}") from None


def _write_rows(sink: pa.NativeFile, form: str, parts: list[str]) -> None:
    filesystem, path = storage.filesystem(parts[0])
    schema = pq.read_schema(path, filesystem=filesystem)
    if form == "parquet":
        with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
            for table in _tables(parts):
                writer.write_table(table)
    elif form == "csv":
        with pyarrow.csv.CSVWriter(sink, _flat(schema.empty_table()).schema) as lines:
            for table in _tables(parts):
                lines.write_table(_flat(table))
    else:
        for table in _tables(parts):
            rows = _plain(table).to_pylist()
            sink.write(
                "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows).encode()
            )


def _tables(parts: list[str]) -> Iterator[pa.Table]:
    for part in parts:
        filesystem, path = storage.filesystem(part)
        with pq.ParquetFile(path, filesystem=filesystem) as file:
            for batch in file.iter_batches(_ROWS):
                yield pa.Table.from_batches([batch])


def _plain(table: pa.Table) -> pa.Table:
    """The table with numbers in as few digits as tell them apart, without NaN, and with bytes in
    base64.
    """
    for place, field in enumerate(table.schema):
        column = pa.chunked_array(
            [_plain_array(chunk) for chunk in table.column(place).chunks], _plain_type(field.type)
        )
        table = table.set_column(place, field.name, column)
    return table


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_floating(kind):
        return pa.float64()
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return pa.string()
    if _is_list(kind) and pa.types.is_floating(kind.value_type):
        return pa.list_(pa.float64())
    return kind


def _plain_array(array: pa.Array) -> pa.Array:
    kind = _plain_type(array.type)
    if kind == array.type and kind != pa.float64():
        return array
    if kind == pa.float64():
        values = array if array.type == kind else array.cast(pa.string()).cast(kind)
        return pc.if_else(pc.is_finite(values), values, None)
    if kind == pa.string():
        texts = [None if value is None else base64.b64encode(value).decode() for value in array.to_pylist()]
        return pa.array(texts, kind)
    lists = array.cast(pa.list_(array.type.value_type))
    values = _plain_array(lists.values)
    return pa.ListArray.from_arrays(lists.offsets, values, mask=lists.is_null())


def _flat(table: pa.Table) -> pa.Table:
    """As `_plain`, with lists as JSON text, since a cell of a CSV holds no list."""
    table = _plain(table)
    for place, field in enumerate(table.schema):
        if pa.types.is_nested(field.type):
            texts = []
            for value in table.column(place).to_pylist():
                texts.append(None if value is None else json.dumps(value, ensure_ascii=False, default=str))
            table = table.set_column(place, field.name, pa.array(texts, pa.string()))
    return table


def _is_list(kind: pa.DataType) -> bool:
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(is_kind(kind) for is_kind in kinds)
