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
    13 ageray/score/checkpoint.py  rows of whole chunks are written to pieces
    14 ageray/score/write.py       the pieces become the files of the scores table

Without Ray, `ageray/score/local.py` stands in the place of 4: a pool of processes runs 5 to 12.
Tars and tables pass through `ageray/score/read.py` between 3 and 5, lists through
`ageray/score/places.py`. Beside the way stand `chunks` (which 64 photos are done as a whole),
`progress`, `files` (names), `results` and `page`. The object store holds uris, then encoded photos,
then uint8 canvases.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ageray.cluster.actors import ActorPool
from ageray.cluster.backpressure import limit_read_ahead
from ageray.experiment import Align, Detect
from ageray.score import chunks
from ageray.score.checkpoint import ScoreCheckpoint
from ageray.score.inputs import Inputs
from ageray.score.places import Places, SegmentReader
from ageray.score.read import InputSummary, list_segments, read_segments, segment_table
from ageray.stages.columns import Search
from ageray.stages.detect import find_faces
from ageray.stages.predict import AgeFaces

_MAX_TASKS_PER_PROCESS = 1000
_READERS = WeakKeyDictionary[Places, Any]()  # an actor ends when nobody holds its handle
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
    )


def detect_faces(
    photos: ray.data.Dataset, batch: int, align: Align, detect: Detect, search: Search
) -> ray.data.Dataset:
    """Rows of `ageray.stages.detect.DETECTED_SCHEMA` with their chunks, in any order."""
    return photos.map_batches(
        find_faces,  # type: ignore[arg-type]  # Ray's type has no keyword arguments
        batch_size=batch,
        batch_format="pyarrow",
        fn_kwargs={"align": align, "detect": detect, "search": search, "run": uuid.uuid4().hex[:12]},
        num_cpus=1,
        # Decoders leak memory, so processes are replaced. Arguments that differ from the next
        # stage's also keep Ray from running this stage inside that stage's few actors.
        max_calls=_MAX_TASKS_PER_PROCESS,
    )


def predict_ages(
    faces: ray.data.Dataset, model: str, pool: ActorPool, batch: int, posterior: bool
) -> ray.data.Dataset:
    """Rows of the scores table with their chunks, in any order.

    model: a name that workers can load (`ageray.bundle.model_for_workers`). An actor that restarts
    loads it again.
    """
    # On a GPU the next batch is prepared during a batch. On CPUs the two would compete for cores.
    concurrent = 2 if pool.gpus else 1
    return faces.map_batches(
        AgeFaces,
        batch_size=batch,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=pool.actors, max_concurrent_calls_per_actor=concurrent),
        fn_constructor_kwargs={"model": model, "threads": pool.threads, "posterior": posterior},
        **pool.options(),
    )


def tables(dataset: ray.data.Dataset) -> Iterator[pa.Table]:
    """Runs the pipeline and yields its blocks that have rows."""
    # Ray Data's own bars count blocks and leave out what earlier runs did.
    dataset.context.enable_progress_bars = dataset.context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    limit_read_ahead(dataset)
    blocks: Any = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2)
    for block in blocks:
        if block.num_rows:
            yield block
