"""From a source of photos to face shards, on Ray Data, and reading them back.

Two passes over the files. The first looks at every photo and returns a light row each; from these the driver decides
what is kept, in which order and in which shard. The second writes one shard a task, fetching the files again. So no
image crosses the object store, and every shard is planned to its bytes before it is written.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from functools import partial
from typing import Any

import pyarrow as pa
import ray
import ray.data

from ageray import storage
from ageray.errors import UserError
from ageray.experiment import Data, Experiment
from ageray.prepare import inspect, select, sources
from ageray.prepare.manifest import Problem
from ageray.prepare.write import _write

REPORT = "prepare.json"
"""ParsedConfig last: a folder of shards that has it is complete."""

_BLOCKS = 256  # blocks of the first pass, about: enough to fill a cluster, few enough for the driver
_MOST_ROWS = 4096  # of a block of the first pass, so that a lost task costs seconds


def check(experiment: Experiment, fresh: bool = False) -> sources.Source:
    """The source that `prepare` is to read, once all is checked that needs neither Ray nor the photos' bytes.

    Raises UserError if the source cannot be used or the target is not empty (`fresh` allows earlier shards).
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
    experiment: Experiment, fresh: bool = False, source: sources.Source | None = None
) -> dict[str, Any]:
    """Writes the face shards of `data.source` to `data.shards`; returns the content of the `prepare.json` beside them.

    It holds `counts` (photos, kept, dropped by kind), `problems` (every dropped photo, with kind and reason), `notes`
    (what is odd about kept ones), `shards` and the time taken. Byte-identical photos are kept once; if their ages
    differ, not at all; with `data.near_duplicates: drop` the same holds of nearly identical ones. Rows stand
    in an order fixed by a hash of their keys, so that reading with a small shuffle
    buffer mixes well. The shards grow in `<data.shards>.unfinished`, which takes the place of `data.shards` when
    complete; what an interrupted run left there is replaced by the next, so two runs must not share a target.
    `source` is what `check` returned, if it was called already. Raises UserError as `check` does, or if no face is left
    or the shards cannot be written.
    """
    started = time.perf_counter()
    data = experiment.data
    source = source or check(experiment, fresh)
    target = _target(data, fresh)
    seen = _look(source.table, data, experiment.scale.decode_batch)
    rows, dropped = select.choose(source.table, seen)
    problems = source.problems + dropped
    if rows.num_rows == 0:
        first = problems[0]
        raise UserError(
            f"data.source={data.source}: no face is left of {source.photos} photos ({first.where}: {first.reason}); "
            "check that these are photos of faces and that they can be read"
        )
    draft = storage.unfinished(target)
    storage.remove_tree(draft)
    storage.make_folder(draft)
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
            **Counter(problem.kind for problem in problems),
        },
        "shards": _write(rows, draft, data.shard_mib),
        "seconds": round(time.perf_counter() - started, 1),
        "photos_per_second": round(source.photos / (time.perf_counter() - started), 1),
        "problems": [vars(problem) for problem in problems],
        "notes": [vars(note) for note in source.notes + _several(rows)],
    }
    storage.write_text(storage.join(draft, REPORT), json.dumps(report, indent=1) + "\n")
    storage.replace_folder(draft, target, last=REPORT)
    return report


def _target(data: Data, fresh: bool) -> str:
    """Where to write; UserError unless that is free, left half written by us, or finished and to be rewritten."""
    if data.shards is None:
        raise UserError("data.shards is not set; give the folder to write: data.shards=PATH")
    target = storage.absolute(data.shards.rstrip("/"))
    if not storage.exists(target) or storage.half_written(target):
        return target
    if not storage.is_folder(target):
        raise UserError(f"data.shards={data.shards}: is a file; give a folder")
    finished = storage.exists(storage.join(target, REPORT))
    if storage.list_files(target) and not finished:
        raise UserError(
            f"data.shards={data.shards}: holds files of something else; give a new or empty folder"
        )
    if finished and not fresh:
        raise UserError(
            f"data.shards={data.shards}: holds finished shards; use another folder, or --fresh to rewrite"
        )
    return target


def _look(photos: pa.Table, data: Data, batch: int) -> pa.Table:
    """First pass: a row of `inspection.INSPECTED_SCHEMA` for every photo, in any order."""
    light = photos.select(["key", "uri", "landmarks"]).combine_chunks()
    step = max(batch, min(-(-light.num_rows // _BLOCKS), _MOST_ROWS))
    blocks = [light.slice(start, step) for start in range(0, light.num_rows, step)]
    dataset = ray.data.from_arrow(blocks).map_batches(
        partial(
            inspect.look, landmarks=data.landmarks, detect=data.detect, prints=data.near_duplicates == "drop"
        ),
        batch_size=batch,
        batch_format="pyarrow",
    )
    return pa.concat_tables(
        [table.cast(inspect.INSPECTED_SCHEMA) for table in ray.get(dataset.to_arrow_refs())]
    )


def _several(rows: pa.Table) -> list[Problem]:
    """Notes on kept photos in which the detector found more than one face."""
    pairs = zip(rows.column("key").to_pylist(), rows.column("faces").to_pylist(), strict=True)
    several = sorted((key, faces) for key, faces in pairs if faces is not None and faces > 1)
    return [
        Problem(key, "several faces", f"the most prominent of {faces} was taken") for key, faces in several
    ]
