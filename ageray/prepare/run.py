"""A source of photos to face shards, in two passes over the files.

The first pass looks at each photo and returns a light row. From these rows the driver decides which
photos to keep, in which order and in which shard. The second pass fetches the files again and
writes one shard a task. So no image goes through the object store, and the size of each shard is
known before it is written.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from functools import partial
from operator import attrgetter
from typing import Any

import pyarrow as pa

from ageray import storage
from ageray.errors import UserError
from ageray.experiment import Data, Experiment
from ageray.machine.progress import Show, show_nothing
from ageray.prepare import inspect, select, sources
from ageray.prepare.manifest import Problem
from ageray.prepare.mapping import Map, mapping
from ageray.prepare.write import write_shards
from ageray.storage.lease import Lease, is_lease

REPORT = "prepare.json"
"""Name of the report. It is written last, so a folder of shards that has it is complete."""

_MARK = "prepare.unfinished"  # a file in the folder that a run is writing
_SHARD = re.compile(r"faces-\d{5}-of-\d{5}\.parquet")
_BLOCKS = 256  # about so many blocks in the first pass: they fill a cluster and do not load the driver
_MAX_ROWS = 4096  # rows of a block in the first pass, so that a lost task costs only seconds


def check(experiment: Experiment, fresh: bool = False) -> sources.Source:
    """The source that `prepare` will read, after every check that needs neither Ray nor photos.

    Raises UserError if the source cannot be used or the target is not empty; `fresh` allows earlier
    shards in the target.
    """
    data = experiment.data
    _target(data, fresh)
    source = sources.read(data)
    if data.landmarks == "source" and source.table.column("landmarks").null_count == source.table.num_rows:
        raise UserError(
            f"data.landmarks=source: {data.source} ({source.layout}) has no points; use auto or detect"
        )
    return source


def prepare(
    experiment: Experiment,
    fresh: bool = False,
    source: sources.Source | None = None,
    show: Show = show_nothing,
) -> dict[str, Any]:
    """Writes the face shards of `data.source` to `data.shards`; returns the report `prepare.json`.

    The report has `counts` (photos, kept, dropped by kind), `problems` (every dropped photo, with
    kind and reason), `notes` (on kept photos), `shards` and the time. Of photos with identical
    bytes one is kept, or none if their ages differ; `data.near_duplicates: drop` treats nearly
    identical photos in the same way. A hash of the keys fixes the order of the rows, so that a
    small shuffle buffer mixes well.

    The shards are written to `<data.shards>.unfinished`, which replaces `data.shards` when it is
    complete. The next run replaces an unfinished folder. Two runs with one target are told apart by
    a lease.

    source: the result of `check`, if it was called already. show: receives records of `what`,
    `done` and `total` as photos are looked at and written.
    Raises UserError as `check` does, and if no face is left or the shards cannot be written.
    """
    started = time.perf_counter()
    with mapping(experiment.scale) as apply:
        source = source or check(experiment, fresh)
        return _prepare(experiment, _target(experiment.data, fresh), source, apply, started, show)


def _prepare(
    experiment: Experiment, target: str, source: sources.Source, apply: Map, started: float, show: Show
) -> dict[str, Any]:
    data = experiment.data
    inspected = _look(source.table, data, experiment.scale.decode_batch, apply, show)
    rows, dropped = select.choose(source.table, inspected)
    problems = source.problems + dropped
    if rows.num_rows == 0:
        first = problems[0]
        raise UserError(
            f"data.source={data.source}: no face is left of {source.photos} photos ({first.where}: "
            f"{first.reason}); "
            "check that these are photos of faces and that they can be read"
        )
    draft = storage.unfinished(target)
    _check_draft(draft)
    with Lease(draft, "preparation") as lease:
        _clear(draft)
        shards = write_shards(rows, draft, data.shard_mib, apply, show)
        lease.check()
    report = {
        "dataset": data.name,
        "source": data.source,
        "layout": source.layout,
        "landmarks": data.landmarks,
        "detect": data.detect.model_dump(),
        "near_duplicates": data.near_duplicates,
        "counts": {
            "photos": source.photos,
            "kept": rows.num_rows,
            **Counter(map(attrgetter("kind"), problems)),
        },
        "shards": shards,
        "seconds": round(time.perf_counter() - started, 1),
        "photos_per_second": round(source.photos / (time.perf_counter() - started), 1),
        "problems": list(map(vars, problems)),
        "notes": list(map(vars, source.notes + _several_faces(rows))),
    }
    storage.write_text(storage.join(draft, REPORT), json.dumps(report, indent=1) + "\n")
    storage.remove(draft, [_MARK])
    storage.replace_folder(draft, target, last=REPORT)
    return report


def _target(data: Data, fresh: bool) -> str:
    """The folder to write.

    Raises UserError unless it is empty, unfinished, or finished and `fresh` is true.
    """
    if data.shards is None:
        raise UserError("data.shards is not set; give the folder to write: data.shards=PATH")
    target = storage.absolute(data.shards.rstrip("/"))
    if not storage.exists(target):
        return target
    if not storage.is_folder(target):
        raise UserError(f"data.shards={data.shards}: is a file; give a folder")
    names = storage.names_below(target)
    finished = REPORT in names
    strange = [name for name in names if not _is_ours(name)]
    if storage.MARKER in names and not strange:
        return target  # a run was ended while it replaced the shards
    if names and (strange or not finished):
        raise UserError(
            f"data.shards={data.shards}: holds files of something else ({(strange or names)[0]}); "
            "give a new or empty folder"
        )
    if finished and not fresh:
        raise UserError(
            f"data.shards={data.shards}: holds finished shards; use another folder, or --fresh to rewrite"
        )
    return target


def _is_ours(name: str) -> bool:
    """Whether a run writes a file of this name."""
    return name in (REPORT, storage.MARKER) or _SHARD.fullmatch(name) is not None or storage.is_draft(name)


def _check_draft(draft: str) -> None:
    """Raises UserError if the unfinished folder has other files than a run leaves there, or
    finished shards.
    """
    names = storage.names_below(draft)
    remedy = "move it away, or give another data.shards"
    for name in names:
        if not (_is_ours(name) or name == _MARK or is_lease(name)):
            raise UserError(f"{draft}: has {name}, which ageray prepare did not write; {remedy}")
    if REPORT in names and _MARK not in names:
        raise UserError(f"{draft}: has finished shards; {remedy}")


def _clear(draft: str) -> None:
    """Removes what an earlier run left, and marks the folder as unfinished."""
    storage.write_text(storage.join(draft, _MARK), "Written by ageray prepare; not complete.\n")
    old = []
    for name in storage.names_below(draft):
        if name != _MARK and not is_lease(name):
            old.append(name)
    storage.remove(draft, old)


def _look(photos: pa.Table, data: Data, batch: int, apply: Map, show: Show) -> pa.Table:
    """First pass: a row of `inspect.INSPECTED_SCHEMA` for every photo, in any order."""
    light = photos.select(["key", "uri", "landmarks"]).combine_chunks()
    step = max(batch, min(-(-light.num_rows // _BLOCKS), _MAX_ROWS))
    blocks = [light.slice(start, step) for start in range(0, light.num_rows, step)]
    look = partial(
        inspect.look,
        landmarks=data.landmarks,
        detect=data.detect,
        fingerprint=data.near_duplicates == "drop",
    )
    tables: list[pa.Table] = []
    done = 0
    for table in apply(look, blocks, batch, inspect.give_up):
        tables.append(table.cast(inspect.INSPECTED_SCHEMA))
        done += table.num_rows
        show({"what": "photos looked at", "done": done, "total": light.num_rows})
    return pa.concat_tables(tables)


def _several_faces(rows: pa.Table) -> list[Problem]:
    """Notes on kept photos in which the detector found more than one face."""
    notes = []
    columns = rows.select(["key", "faces"]).sort_by("key").to_pydict()
    for key, faces in zip(columns["key"], columns["faces"], strict=True):
        if faces is not None and faces > 1:
            notes.append(Problem(key, "several faces", f"the most prominent of {faces} was taken"))
    return notes
