"""Manifests: the photos that they name, and their other columns, which the scores table carries on.

All is read once, in batches. Cells of a CSV are read as text; once the last one is read it is known
which columns have only numbers (`Manifests.kinds`).
"""

from __future__ import annotations

import csv
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from ageray import schema, storage
from ageray.errors import UserError, one_line
from ageray.score import inventory, tables
from ageray.storage import delimited

WRITTEN_FROM = "image:written_from"
"""Column of a manifest's photos: how many characters of `image`, from its start, the manifest does
not have: the folder that stands before a relative path."""

IDS = ("key", "id")
"""Names of the column with the input's own ids, in any case. The first one there is, is taken."""

_INPUT = "input_"
_HEADER_BYTES = 2**16
_ROWS = 8192
_TAKEN = {*schema.SCORES.names, schema.POSTERIOR.name, WRITTEN_FROM}
_WHOLE = r"^(-?(0|[1-9][0-9]{0,17}))?$"
_NUMBER = r"^(-?((0|[1-9][0-9]{0,14})(\.[0-9]+)?|\.[0-9]+)([eE][-+]?[0-9]{1,2})?)?$"
_KINDS = ((_WHOLE, pa.int64()), (_NUMBER, pa.float64()))


def result_names(names: Sequence[str], photos: int) -> list[str]:
    """The names that a table's columns have in the scores table.

    A column that is called like one of the scores table, in any case, gets `input_` before its
    name, as does the second of two columns of one name; the third gets it twice, later ones a
    number. photos: place of the column of photos, whose name does not matter.
    """
    taken, numbers = set(_TAKEN), Counter[str]()
    results = []
    for place, name in enumerate(names):
        result = name or f"{_INPUT}{place + 1}"
        if place != photos:
            first, looks = result.lower(), 0
            while result.lower() in taken:
                looks += 1
                result = _INPUT + result
                if looks > 2:
                    numbers[first] += 1
                    result = f"{_INPUT}{name or place + 1}_{numbers[first] + 2}"
            taken.add(result.lower())
        results.append(result)
    return results


def own_id(columns: pa.Schema) -> str | None:
    """The column with the input's own ids, text or whole numbers; None if there is none. columns:
    by the names that they have in the scores table.
    """
    by_name: dict[str, str] = {}
    for field in columns:
        if is_text(field.type) or pa.types.is_integer(field.type):
            by_name.setdefault(field.name.lower().removeprefix(_INPUT), field.name)
    return next((by_name[name] for name in IDS if name in by_name), None)


def is_text(kind: pa.DataType) -> bool:
    """Whether a type is one of the two of text."""
    return kind in (pa.string(), pa.large_string())


def unified(schemas: Iterable[pa.Schema]) -> pa.Schema:
    """All columns of several tables. One that has types without a common one is text.

    Raises UserError for a column of lists or structs that has other values elsewhere.
    """
    fields: dict[str, pa.Field] = {}
    for own in schemas:
        for field in own:
            before = fields.setdefault(field.name, field.with_nullable(True))
            if before.type != field.type:
                fields[field.name] = pa.field(field.name, _common_type(before, field))
    return pa.schema(list(fields.values()))


def plain_type(kind: pa.DataType) -> pa.DataType:
    """A type that several batches of one file can have: without dictionaries and views."""
    if pa.types.is_dictionary(kind):
        return plain_type(kind.value_type)
    plain = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}
    return plain.get(kind, kind)


def _common_type(one: pa.Field, other: pa.Field) -> pa.DataType:
    sides = [pa.schema([("column", field.type)]) for field in (one, other)]
    try:
        return pa.unify_schemas(sides, promote_options="permissive").field(0).type
    except pa.ArrowException:
        if pa.types.is_nested(one.type) or pa.types.is_nested(other.type):
            both = f"{one.type} in one table and {other.type} in another"
            raise UserError(f"INPUT: column '{one.name}' is {both}; score them one by one") from None
        return pa.string()


class Manifests:
    """The manifests of a run.

    kinds: names and types of the other columns in the scores table; whole once `photos` has ended.
    """

    def __init__(self, files: Sequence[str]) -> None:
        """files: absolute uris of `.csv`, `.parquet` and S3 Inventories. None is opened yet."""
        self._files = list(files)
        self.kinds = pa.schema([])

    def photos(self) -> Iterator[pa.Table]:
        """The photos in their order: `image` (uris), WRITTEN_FROM and the other columns.

        Relative paths start at the manifest's folder. Raises UserError if a manifest cannot be read
        or lacks the column of photos.
        """
        heads = list(map(_head, self._files))
        stored = unified(head.others() for head in heads)
        texts = {name: _Guess() for name in stored.names}
        for file, head in zip(self._files, heads, strict=True):
            folder = posixpath.dirname(file) or "/"
            for table in _batches(file, head):
                others = _others(table, head)
                for name in others.column_names:
                    texts[name].see(others.column(name))
                yield _photos(table.column(head.place), folder, checked(others, stored, file))
        kinds = dict(zip(stored.names, stored.types, strict=True))
        if heads and all(head.delimiter for head in heads):
            kinds = {name: guess.kind for name, guess in texts.items()}
        self.kinds = pa.schema(list(kinds.items()))


class _Head(NamedTuple):
    """How a manifest is written: its columns, the place of the photos among them, and of a CSV its
    encoding and delimiter."""

    schema: pa.Schema
    place: int
    encoding: str = ""
    delimiter: str = ""

    def others(self) -> pa.Schema:
        """The other columns, by the names that they get."""
        names = result_names(self.schema.names, self.place)
        fields = []
        for place, (name, field) in enumerate(zip(names, self.schema, strict=True)):
            if place != self.place:
                fields.append(pa.field(name, plain_type(field.type)))
        return pa.schema(fields)


class _Guess:
    """What a column of text may be: whole numbers, numbers, or text. Text that begins with zeros or
    has too many digits stays text."""

    def __init__(self) -> None:
        self._place = 0
        self._has_values = False

    def see(self, column: pa.ChunkedArray) -> None:
        """Takes some of the column's values. Columns of other types are left alone."""
        if self._place == len(_KINDS) or not pa.types.is_string(column.type):
            return
        self._has_values |= bool(pc.any(pc.not_equal(column, "")).as_py())
        while self._place < len(_KINDS):
            pattern, _ = _KINDS[self._place]
            if pc.all(pc.match_substring_regex(column, pattern)).as_py() is not False:
                return
            self._place += 1

    @property
    def kind(self) -> pa.DataType:
        """The type of the whole column."""
        if self._place == len(_KINDS) or not self._has_values:
            return pa.string()
        return _KINDS[self._place][1]


def checked(table: pa.Table, kinds: pa.Schema, file: str) -> pa.Table:
    """The table with these columns; those that it lacks are null. Raises UserError that names the
    file.
    """
    columns = []
    for field in kinds:
        column = pa.nulls(table.num_rows, field.type)
        if field.name in table.column_names:
            try:
                column = table.column(field.name).cast(field.type, safe=False)
            except pa.ArrowException as error:
                problem = f"column '{field.name}' cannot become {field.type} ({one_line(error)})"
                raise UserError(f"{file}: {problem}; give tables whose columns have one type") from None
        columns.append(column)
    return pa.table(columns, schema=kinds)


def typed(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """Text as numbers; empty text is null then. Any other column as it is."""
    if column.type == kind:
        return column
    return pc.if_else(pc.equal(column, ""), None, column).cast(kind)


def _photos(paths: pa.ChunkedArray, folder: str, others: pa.Table) -> pa.Table:
    """The rows with their paths as uris. An empty path stays a row, so that the scores table says
    that it cannot be read.
    """
    paths = paths.cast(pa.string()).fill_null("")
    whole = pc.or_(pc.match_substring(paths, "://"), pc.starts_with(paths, "/"))
    whole = pc.or_(whole, pc.equal(paths, ""))
    start = folder.rstrip("/")
    uris = pc.if_else(whole, paths, pc.binary_join_element_wise(start, paths, "/"))
    written_from = pc.if_else(whole, 0, len(start) + 1).cast(pa.int32())
    names = ["image", WRITTEN_FROM, *others.column_names]
    return pa.table([uris, written_from, *others.columns], names)


def _others(table: pa.Table, head: _Head) -> pa.Table:
    """A batch without the column of photos. Text is UTF-8, with marks where it is not."""
    columns = [column for place, column in enumerate(table.columns) if place != head.place]
    if head.delimiter:
        columns = list(map(_text, columns))
    return pa.table(columns, head.others().names)


def _text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    try:
        return column.cast(pa.string())
    except pa.ArrowInvalid:
        texts = [value.decode("utf-8", "replace") for value in column.to_pylist()]
        return pa.chunked_array([pa.array(texts, pa.string())])


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        remedy = "write it again as comma-separated UTF-8 or Parquet"
        raise UserError(f"{uri}: cannot be read ({one_line(error)}); {remedy}") from None


def _head(uri: str) -> _Head:
    if uri.lower().endswith(inventory.MANIFEST):
        return _Head(pa.schema([("image", pa.string())]), 0)
    if not uri.lower().endswith(".csv"):
        filesystem, path = storage.filesystem(uri)
        with _explained(uri), pq.ParquetFile(path, filesystem=filesystem) as file:
            own = file.schema_arrow
        return _Head(own, own.names.index(tables.uri_column(uri, tuple(own.names))))
    data = storage.read_bytes(uri, _HEADER_BYTES)
    encoding = delimited.encoding(data)
    whole = data[: len(data) // 2 * 2] if encoding == "utf-16" else data
    header = re.split("\r?\n|\r", whole.decode(encoding, "replace"), maxsplit=1)[0]  # as Arrow divides lines
    delimiter = delimited.delimiter(header)
    names = next(csv.reader([header], delimiter=delimiter), [])
    place = names.index(tables.uri_column(uri, tuple(names)))
    own = pa.schema([pa.field(name, pa.string()) for name in names])
    return _Head(own, place, encoding.removesuffix("-sig"), delimiter)


def _batches(uri: str, head: _Head) -> Iterator[pa.Table]:
    """All columns of a manifest."""
    with _explained(uri):
        if head.delimiter:
            yield from _csv_batches(uri, head)
        elif uri.lower().endswith(inventory.MANIFEST):
            for paths in inventory.paths(uri):
                yield pa.table({"image": paths})
        else:
            filesystem, path = storage.filesystem(uri)
            with pq.ParquetFile(path, filesystem=filesystem) as file:
                for batch in file.iter_batches(_ROWS):
                    batch.column(head.place).validate(full=True)  # texts that are not UTF-8
                    yield pa.Table.from_batches([batch])


def _csv_batches(uri: str, head: _Head) -> Iterator[pa.Table]:
    """The cells as text. Those of other columns than the photos' are not checked for UTF-8: one
    wrong letter in a note shall not end the run."""
    kinds = dict.fromkeys(head.schema.names, pa.binary()) | {head.schema.names[head.place]: pa.string()}
    filesystem, path = storage.filesystem(uri)
    with (
        filesystem.open_input_stream(path) as stream,
        pyarrow.csv.open_csv(
            stream,
            pyarrow.csv.ReadOptions(encoding=head.encoding),
            pyarrow.csv.ParseOptions(delimiter=head.delimiter),
            pyarrow.csv.ConvertOptions(column_types=kinds, strings_can_be_null=False),
        ) as reader,
    ):
        for batch in reader:
            yield pa.Table.from_batches([batch])
