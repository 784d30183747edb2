"""The Ray Data pipeline that turns photos into rows of the scores table.

Where a photo travels, from the command to the table; each line is a file to open:

     1 ageray/commands/score.py    reads the command line and the settings
     2 ageray/score/run.py         checks the folder, runs the pipeline, finishes the result
     3 ageray/score/inputs.py      INPUT becomes uris of photos
     4 ageray/score/pipeline.py    this file: `read_photos` -> `detect_faces` -> `predict_ages`
     5 ageray/stages/detect.py     a task on a CPU: from photos to rows, with a canvas for each face
     6 ageray/faces/images.py        bytes are fetched and decoded to pixels
     7 ageray/faces/detect.py        faces are found, with five points each
     8 ageray/faces/canvases.py      a canvas is cut around each face
     9 ageray/stages/predict.py    an actor that holds the model: from canvases to rows with ages
    10 ageray/predictor.py           the batch goes to the device; ages are calibrated
    11 ageray/models/inference.py    the network runs; its outputs become a posterior over ages
    12 ageray/faces/align.py         one resampling, from the canvas to the network's input
    13 ageray/score/pieces.py      rows of whole chunks are written to pieces
    14 ageray/score/write.py       the pieces become the files of the scores table

Where the actors have GPUs (`scale.detect`), they find the faces too. Then `decode_photos` and
`age_photos` stand in 4, and 5 is ageray/stages/decode.py: a task only fetches and decodes (6). The
actor of 9, ageray/stages/photos.py, finds the faces of many photos at once (7, by
ageray/faces/detect_batch.py and ageray/faces/yunet_torch.py) and cuts the canvases (8) before 10.

Without Ray, `ageray/score/local.py` stands in the place of 4: a pool of processes runs 5 to 12.
Tars and tables pass through `ageray/score/read.py` between 3 and 5, lists through
`ageray/score/places.py`. Beside the way stand `chunks` (which 64 photos are done as a whole),
`join` (places as the user wrote them, and a manifest's other columns), `progress`, `files` (names),
`results` and `page`. The object store holds uris, then encoded photos, then uint8 canvases. Where
the actors find the faces, it holds uint8 pixels of the photos in the place of canvases.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ageray import cluster, storage
from ageray.cluster.actors import ActorPool
from ageray.cluster.backpressure import limit_read_ahead
from ageray.errors import UserError
from ageray.experiment import Align, Detect
from ageray.score import chunks, pieces
from ageray.score.checkpoint import ScoreCheckpoint
from ageray.score.files import ScoreFiles
from ageray.score.inputs import Inputs
from ageray.score.join import Join
from ageray.score.pieces import Piece
from ageray.score.places import Places, SegmentReader
from ageray.score.read import InputSummary, list_segments, read_segments, segment_table
from ageray.score.write import Part, WrittenPart, write_part
from ageray.stages.columns import Search
from ageray.stages.decode import decoded_batches
from ageray.stages.detect import face_batches
from ageray.stages.photos import AgePhotos
from ageray.stages.predict import AgeFaces

_MAX_TASKS_PER_PROCESS = 1000
_READERS = WeakKeyDictionary[Places, Any]()  # an actor ends when nobody holds its handle
_GROUP_SECONDS, _GROUP_ROWS = 2.0, 2048  # fewer rows in this time go to the driver
_PIECE_SECONDS, _PIECE_ROWS = 10.0, 16_384  # most of a piece that a task writes
_TASKS_A_CPU, _LARGEST_TASK = 32, 256
_MAX_WRITES = 16  # pieces being written
_MAX_READ_TASKS = 2000  # for a list, however long


def read_photos(
    inputs: Inputs, summary: InputSummary, batch: int, checkpoint: ScoreCheckpoint
) -> ray.data.Dataset | None:
    """The photos that are not done, as `find_faces` takes them, in blocks of `batch` rows; None if
    all are done.
    """
    if summary.places is not None:
        dataset = _photos_of_list(summary.places, checkpoint)
    else:
        tables = _tables_of_segments(summary, checkpoint)
        dataset = _read(tables, inputs) if tables else None
    return dataset and dataset.repartition(target_num_rows_per_block=batch)


def photos_a_task(least: int, photos: int | None, cpus: float) -> int:
    """Photos of a task: `least`, or for a long list more, so that Ray's work for each task (about
    15 ms of the driver) is small beside it. They are whole chunks then.
    """
    tasks = _TASKS_A_CPU * max(1.0, cpus)
    whole = chunks.SIZE * int(min(_LARGEST_TASK, (photos or 0) / tasks) // chunks.SIZE)
    return max(least, whole)


def _photos_of_list(places: Places, checkpoint: ScoreCheckpoint) -> ray.data.Dataset | None:
    """The photos of a list with their chunks. A long list lies in a file of this machine, from
    which an actor gives the tasks one segment at a time.
    """
    done = checkpoint.done_positions()
    blocks: list[Any] = [ray.put(photos) for photos in checkpoint.photos_again(places.segments())]
    if places.file is None:
        for number, uris in enumerate(places.segments()):
            to_do = list(chunks.cut(uris, number, done.get(number, ())))
            if to_do:
                blocks.append(ray.put(pa.concat_tables(to_do)))
        return ray.data.from_arrow_refs(blocks) if blocks else None
    rows = list(list_segments(places, done))
    if not rows:
        return ray.data.from_arrow_refs(blocks) if blocks else None
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    reader = ray.remote(SegmentReader).options(num_cpus=0, scheduling_strategy=here).remote(places.file)
    _READERS[places] = reader
    segments = pa.concat_tables(rows)
    size = -(-len(rows) // _MAX_READ_TASKS)
    tables = [segments.slice(start, size) for start in range(0, len(rows), size)]
    dataset = ray.data.from_arrow(tables).map_batches(
        _read_list,  # type: ignore[arg-type]  # Ray's type has no keyword arguments
        batch_size=None,
        batch_format="pyarrow",
        fn_kwargs={"reader": reader},
        num_cpus=1,
        max_retries=cluster.LOSSES,
    )
    return ray.data.from_arrow_refs(blocks).union(dataset) if blocks else dataset


def _read_list(rows: pa.Table, reader: Any) -> Iterator[pa.Table]:
    """The chunks that are not done of a list's segments. rows: of SEGMENT_SCHEMA."""
    for row in rows.to_pylist():
        photos = ray.get(reader.read.remote(row["number"]))
        yield from chunks.cut(photos, row["number"], set(row["done"]))


def _tables_of_segments(summary: InputSummary, checkpoint: ScoreCheckpoint) -> list[pa.Table]:
    """A table for each segment that has chunks to do, as `read_segments` takes it."""
    finished, done = checkpoint.finished_segments(), checkpoint.done_positions()
    tables = []
    for segment in summary.segments:
        if segment.number not in finished:
            tables.append(segment_table(segment._replace(done=done.get(segment.number, ()))))
    return tables


def _read(segments: list[pa.Table], inputs: Inputs) -> ray.data.Dataset:
    """The photos of tables or tars, read by a task for each segment."""
    return ray.data.from_arrow(segments).map_batches(
        read_segments,  # type: ignore[arg-type]  # Ray's type has no keyword arguments
        batch_size=1,
        batch_format="pyarrow",
        fn_kwargs={"columns": inputs.columns},
        num_cpus=1,
        max_retries=cluster.LOSSES,
    )


def detect_faces(
    photos: ray.data.Dataset, batch: int, align: Align, detect: Detect, search: Search
) -> ray.data.Dataset:
    """Rows of `ageray.stages.columns.DETECTED_SCHEMA` with their chunks, in any order."""
    return _first_stage(face_batches, photos, batch, align, detect, search)


def decode_photos(
    photos: ray.data.Dataset, batch: int, align: Align, detect: Detect, search: Search
) -> ray.data.Dataset:
    """Rows of `ageray.stages.columns.DECODED_SCHEMA` with their chunks, in any order."""
    return _first_stage(decoded_batches, photos, batch, align, detect, search)


def _first_stage(
    stage: Callable[..., Iterator[pa.Table]],
    photos: ray.data.Dataset,
    batch: int,
    align: Align,
    detect: Detect,
    search: Search,
) -> ray.data.Dataset:
    return photos.map_batches(
        stage,
        batch_size=batch,
        batch_format="pyarrow",
        fn_kwargs={"align": align, "detect": detect, "search": search, "run": uuid.uuid4().hex[:12]},
        num_cpus=1,
        # Decoders leak memory, so processes are replaced. Arguments that differ from the next
        # stage's also keep Ray from running this stage inside that stage's few actors.
        max_calls=_MAX_TASKS_PER_PROCESS,
        max_retries=cluster.LOSSES,
    )


def predict_ages(
    faces: ray.data.Dataset,
    model: str,
    pool: ActorPool,
    batch: int,
    posterior: bool,
    cuda_graphs: bool = True,
) -> ray.data.Dataset:
    """Rows of the scores table with their chunks, in any order.

    model: a name that workers can load (`ageray.bundle.model_for_workers`). An actor that restarts
    loads it again. cuda_graphs: see `ageray.predictor.Predictor`.
    """
    # On a GPU two batches are under way: while one is computed, another thread copies the next into
    # pinned memory, and makes rows of the last. On CPUs the two would compete for cores.
    on_gpu = bool(pool.gpus)
    compute = ActorPoolStrategy(
        size=pool.actors,
        max_concurrent_calls_per_actor=2 if on_gpu else 1,
        enable_true_multi_threading=on_gpu,
    )
    model_arguments = {
        "model": model,
        "threads": pool.threads,
        "posterior": posterior,
        "cuda_graphs": cuda_graphs,
    }
    return faces.map_batches(
        AgeFaces,
        batch_size=batch,
        batch_format="pyarrow",
        compute=compute,
        fn_constructor_kwargs=model_arguments,
        **pool.options(),
    )


def age_photos(
    photos: ray.data.Dataset,
    model: str,
    pool: ActorPool,
    batch: int,
    posterior: bool,
    detect: Detect,
    cuda_graphs: bool = True,
) -> ray.data.Dataset:
    """As `predict_ages`, of decoded photos, whose faces the actors find.

    A batch is a block, so that no pixels are copied to join two. Tasks give tables of 64 MiB, which
    are some 60 photos of 640 pixels.
    """
    return photos.map_batches(
        AgePhotos,
        batch_size=None,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=pool.actors, max_concurrent_calls_per_actor=2),
        fn_constructor_kwargs={
            "model": model,
            "detect": detect,
            "cutters": max(1, int(pool.cpus)),
            "threads": pool.threads,
            "posterior": posterior,
            "batch": batch,
            "run": uuid.uuid4().hex[:12],
            "cuda_graphs": cuda_graphs,
        },
        **pool.options(),
    )


def results(
    dataset: ray.data.Dataset, files: ScoreFiles, by_tasks: bool = True
) -> Iterator[pa.Table | Piece]:
    """Runs the pipeline and yields its rows, in any order: tables of rows, or pieces that tasks of
    the cluster have written.

    While fewer than some thousand rows come in 2 s, they come as tables. Where more come, a task
    writes them where they are, and only rows of incomplete chunks come as a table, as they do from
    a machine that does not see the folder. by_tasks: whether tasks may write. Rows of photos that
    were unavailable before are the driver's.
    """
    # Ray Data's own bars count blocks and leave out what earlier runs did.
    dataset.context.enable_progress_bars = dataset.context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    limit_read_ahead(dataset)
    write = ray.remote(_write_piece).options(num_cpus=0, num_returns=2)
    group: list[Any] = []
    rows, started = 0, time.monotonic()
    tasks: list[Any] = []
    for bundle in dataset.iter_internal_ref_bundles():
        group += bundle.block_refs
        rows += bundle.num_rows() or 0
        seconds = time.monotonic() - started
        pause = _GROUP_SECONDS if rows < _GROUP_ROWS else _PIECE_SECONDS
        if seconds < pause and rows < _PIECE_ROWS:
            continue
        if by_tasks and rows >= _GROUP_ROWS:
            tasks.append(write.remote(files, *group))
        else:
            yield from _tables(group)
        group, rows, started = [], 0, time.monotonic()
        while tasks and (len(tasks) > _MAX_WRITES or _is_done(tasks[0])):
            yield from _written(tasks.pop(0))
    yield from _tables(group)
    for task in tasks:
        yield from _written(task)


def _tables(blocks: list[Any]) -> Iterator[pa.Table]:
    for block in blocks:
        table = ray.get(block)
        if table.num_rows:
            yield table


def _is_done(task: list[Any]) -> bool:
    done, _ = ray.wait(task, num_returns=2, timeout=0)
    return len(done) == 2


def _written(task: list[Any]) -> Iterator[pa.Table | Piece]:
    piece, rest = ray.get(task)
    if piece is not None:
        yield piece
    if rest.num_rows:
        yield rest


def _write_piece(files: ScoreFiles, *blocks: pa.Table) -> tuple[Piece | None, pa.Table]:
    """Writes the rows of whole chunks; returns the piece and the other rows. Where the folder
    cannot be written, all rows are returned.
    """
    rows = pa.concat_tables(blocks)
    whole, rest = chunks.split(rows)
    if not whole.num_rows:
        return None, rows
    with suppress(UserError):  # no credentials here; the driver has them
        if storage.exists(files.plan):
            return pieces.write(files, whole), rest
    return None, rows


def write_parts(
    parts: list[Part], files: ScoreFiles, target: ScoreFiles, schema: pa.Schema, join: Join | None = None
) -> Iterator[WrittenPart]:
    """Writes the parts of the result into `target` by tasks of the cluster, and yields them in
    their order.

    A part that no task can write, because its machine does not see the folder, is written here.
    """
    write = ray.remote(_write_part).options(num_cpus=1)
    ahead = max(2, int(cluster.total(cluster.nodes(), "CPU")))
    tasks: list[Any] = []
    for number, part in enumerate(parts):
        while len(tasks) < min(number + ahead, len(parts)):
            following = parts[len(tasks)]
            own = join and join.for_part(following.first, following.last)
            tasks.append(write.remote(following, files, target, schema, own))
        written = ray.get(tasks[number])
        tasks[number] = None  # its rows with errors are no longer needed
        yield written or write_part(part, target, schema, join)


def _write_part(
    part: Part, files: ScoreFiles, target: ScoreFiles, schema: pa.Schema, join: Join | None = None
) -> WrittenPart | None:
    """The part; None where the folder cannot be written."""
    with suppress(UserError):
        if storage.exists(files.plan):
            return write_part(part, target, schema, join)
    return None
