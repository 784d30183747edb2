"""A process that dies while photos are prepared: the others' answers stay, the photo is listed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pyarrow as pa
import pytest

from ageray.experiment import Scale
from ageray.prepare import inspect, mapping


@pytest.fixture(scope="module")
def apply() -> Iterator[mapping.Map]:
    with mapping.mapping(Scale(engine="local", local_cpus=2)) as apply:
        yield apply


def look(photos: pa.Table) -> pa.Table:
    """Dies on every photo whose key begins with `fatal`."""
    keys = photos.column("key").to_pylist()
    if any(key.startswith("fatal") for key in keys):
        os.kill(os.getpid(), signal.SIGKILL)
    rows = [{"key": key, "bytes": 1} for key in keys]
    return pa.Table.from_pylist(rows, schema=inspect.INSPECTED_SCHEMA)


def test_rows_on_which_a_process_dies_are_listed(apply: mapping.Map) -> None:
    keys = [f"sound {number}" for number in range(9)] + ["fatal"]
    tables = [pa.table({"key": keys[:5]}), pa.table({"key": keys[5:]})]
    rows = pa.concat_tables(apply(look, tables, 4, inspect.give_up)).sort_by("key").to_pylist()
    assert [row["key"] for row in rows] == sorted(keys)
    problems = [(row["key"], row["kind"], row["reason"]) for row in rows if row["kind"] is not None]
    assert problems == [("fatal", "undecodable", "the process died on it twice")]


def test_a_table_that_is_taken_whole_is_tried_whole(apply: mapping.Map) -> None:
    table = pa.table({"key": ["a", "fatal"]})
    (answer,) = apply(look, [table], None, inspect.give_up)
    assert answer.column("key").to_pylist() == ["a", "fatal"]
