"""From a source of photos to face shards, on Ray Data, and reading them back.

Two passes over the files. The first looks at every photo and returns a light row each; from these the driver decides
what is kept, in which order and in which shard. The second writes one shard a task, fetching the files again. So no
image crosses the object store, and every shard is planned to its bytes before it is written.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data

from ageray import schema, storage
from ageray.data import inspection, selection, sources
from ageray.data.manifest import Problem
from ageray.errors import UserError
from ageray.experiment import Data, Experiment

REPORT = "prepare.json"
"""Written last: a folder of shards that has it is complete."""

_ROW_GROUP = 128 * 2**20  # bytes; a shard a little larger than this is halved, so 64 MiB is the least
_BLOCKS = 256  # blocks of the first pass, about: enough to fill a cluster, few enough for the driver
_MOST_ROWS = 4096  # of a block of the first pass, so that a lost task costs seconds
_WRITTEN = pa.schema({"file": pa.string(), "rows": pa.int64(), "bytes": pa.int64(), "error": pa.string()})


def check(experiment: Experiment, fresh: bool = False) -> sources.Source:
    """The source that `prepare` is to read, once all is checked that needs neither Ray nor the photos' bytes.

    Raises UserError if the source cannot be used or the target is not empty (`fresh` allows earlier shards).
    """
    data = experiment.data
    _target(data, fresh)
    source = sources.read(data)
    if data.landmarks == "source" and source.table.column("landmarks").null_count == source.table.num_rows:
        raise UserError(f"data.landmarks=source: {data.source} ({source.layout}) has no points; use auto or detect")
    return source


def prepare(experiment: Experiment, fresh: bool = False, source: sources.Source | None = None) -> dict[str, Any]:
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
    rows, dropped = selection.choose(source.table, seen)
    problems = source.problems + dropped
    if rows.num_rows == 0:
        first = problems[0]
        raise UserError(
            f"data.source={data.source}: no face is left of {source.photos} photos ({first.where}: {first.reason}); "
            "check that these are photos of faces and that they can be read"
        )
    draft = target + ".unfinished"
    storage.remove_tree(draft)
    storage.make_folder(draft)
    report = {
        "dataset": data.name,
        "source": data.source,
        "layout": source.layout,
        "landmarks": data.landmarks,
        "detect": data.detect.model_dump(),
        "near_duplicates": data.near_duplicates,
        "counts": {"photos": source.photos, "kept": rows.num_rows, **Counter(problem.kind for problem in problems)},
        "shards": _write(rows, draft, data.shard_mib),
        "seconds": round(time.perf_counter() - started, 1),
        "photos_per_second": round(source.photos / (time.perf_counter() - started), 1),
        "problems": [vars(problem) for problem in problems],
        "notes": [vars(note) for note in source.notes + _several(rows)],
    }
    storage.write_text(storage.join(draft, REPORT), json.dumps(report, indent=1) + "\n")
    storage.replace_folder(draft, target, last=REPORT)
    return report


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


def _target(data: Data, fresh: bool) -> str:
    """Where to write; UserError unless that is free, left half written by us, or finished and to be rewritten."""
    if data.shards is None:
        raise UserError("data.shards is not set; give the folder to write: data.shards=PATH")
    target = storage.absolute(data.shards.rstrip("/"))
    if not storage.exists(target) or storage.exists(storage.join(target, storage.UNFINISHED)):
        return target
    if not storage.is_folder(target):
        raise UserError(f"data.shards={data.shards}: is a file; give a folder")
    finished = storage.exists(storage.join(target, REPORT))
    if storage.list_files(target) and not finished:
        raise UserError(f"data.shards={data.shards}: holds files of something else; give a new or empty folder")
    if finished and not fresh:
        raise UserError(f"data.shards={data.shards}: holds finished shards; use another folder, or --fresh to rewrite")
    return target


def _look(photos: pa.Table, data: Data, batch: int) -> pa.Table:
    """First pass: a row of `inspection.SEEN` for every photo, in any order."""
    light = photos.select(["key", "uri", "landmarks"]).combine_chunks()
    step = max(batch, min(-(-light.num_rows // _BLOCKS), _MOST_ROWS))
    blocks = [light.slice(start, step) for start in range(0, light.num_rows, step)]
    dataset = ray.data.from_arrow(blocks).map_batches(
        partial(inspection.look, landmarks=data.landmarks, detect=data.detect, prints=data.near_duplicates == "drop"),
        batch_size=batch,
        batch_format="pyarrow",
    )
    return pa.concat_tables([table.cast(inspection.SEEN) for table in ray.get(dataset.to_arrow_refs())])


def _several(rows: pa.Table) -> list[Problem]:
    """Notes on kept photos in which the detector found more than one face."""
    pairs = zip(rows.column("key").to_pylist(), rows.column("faces").to_pylist(), strict=True)
    several = sorted((key, faces) for key, faces in pairs if faces is not None and faces > 1)
    return [Problem(key, "several faces", f"the most prominent of {faces} was taken") for key, faces in several]


def _write(rows: pa.Table, folder: str, shard_mib: float) -> list[dict[str, Any]]:
    """Second pass: the rows as shards of about `shard_mib` each; returns file, rows and bytes of every one."""
    sizes = rows.column("bytes").to_pylist()
    cuts = selection.cut(sizes, max(1, round(sum(sizes) / (shard_mib * 2**20))))
    light = rows.drop_columns(["faces", "kind", "reason", "phash", "thumbnail"]).combine_chunks()
    blocks = []
    for shard, (start, end) in enumerate(pairwise(cuts)):
        name = storage.join(folder, f"faces-{shard:05d}-of-{len(cuts) - 1:05d}.parquet")
        blocks.append(light.slice(start, end - start).append_column("shard", pa.array([name] * (end - start))))
    written = ray.data.from_arrow(blocks).map_batches(write_shard, batch_size=None, batch_format="pyarrow")
    files = sorted(written.take_all(), key=lambda file: str(file["file"]))
    for file in files:
        error = file.pop("error")
        if error is not None:
            raise UserError(error)
    return files


def write_shard(rows: pa.Table) -> pa.Table:
    """Fetches the photos of one shard and writes it in row groups of 64 to 128 MiB (one, if it is smaller).

    `rows` has the columns of FACES without `image`, and `uri`, `bytes`, `sha256` and `shard` (the uri to write).
    Returns one row with `file`, `rows`, `bytes` and `error`: null, or why the shard could not be written (a photo is
    gone or has changed since the first look, the disk is full); raised in a task, it would reach the driver as a mere
    text.
    """
    uri = rows.column("shard")[0].as_py()
    sizes = rows.column("bytes").to_pylist()
    cuts = selection.cut(sizes, -(-sum(sizes) // _ROW_GROUP))
    error = None
    try:
        with ThreadPoolExecutor(inspection.READERS) as pool, _writer(uri) as writer:
            for start, end in pairwise(cuts):
                group = rows.slice(start, end - start)
                photos = pool.map(_fetch_again, group.column("uri").to_pylist(), group.column("sha256").to_pylist())
                table = group.append_column("image", pa.array(list(photos), pa.binary()))
                writer.write_table(schema.check(table, schema.FACES, uri), row_group_size=end - start)
    except UserError as mistake:
        error = str(mistake)
    except OSError as trouble:
        error = f"{uri}: cannot be written ({trouble}); check the space and the permissions there"
    row = {"file": uri.rsplit("/", 1)[-1], "rows": rows.num_rows, "bytes": sum(sizes), "error": error}
    return pa.Table.from_pylist([row], schema=_WRITTEN)


def _writer(uri: str) -> pq.ParquetWriter:
    filesystem, path = storage.filesystem(uri)
    return pq.ParquetWriter(
        path,
        schema.FACES,
        filesystem=filesystem,
        compression={name: "none" if name == "image" else "zstd" for name in schema.FACES.names},
        use_dictionary=["subject", "gender", "group", "dataset"],
        write_statistics=["key", "age"],
    )


def _fetch_again(uri: str, sha256: str) -> bytes:
    content = storage.read_bytes(uri)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(f"{uri}: changed while it was being prepared; run jobs.prepare again when nothing writes there")
    return content
