"""TODO."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy

from ageray.cluster.actors import ActorPool
from ageray.cluster.backpressure import limit_read_ahead
from ageray.experiment import Align, Detect
from ageray.score import chunks
from ageray.score import read as score_read
from ageray.score.checkpoint import ScoreCheckpoint
from ageray.score.inputs import Collection
from ageray.score.read import InputSummary, read_segments
from ageray.stages.detect import Search, find_faces
from ageray.stages.predict import AgeFaces

_TASKS_PER_PROCESS = 1000


def _tables(dataset: ray.data.Dataset) -> Iterator[pa.Table]:
    # Ray Data's own bars count blocks, and know nothing of an earlier run.
    dataset.context.enable_progress_bars = dataset.context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    limit_read_ahead(dataset)
    tables: Any = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2)
    yield from (table for table in tables if table.num_rows)


def read(
    collection: Collection, survey: InputSummary, batch: int, book: ScoreCheckpoint
) -> ray.data.Dataset | None:
    """The photos that are not done as `find_faces` takes them, in blocks of `batch` rows; None if all are."""
    finished, done = book.finished_segments(), book.done_of()
    if collection.lists_files:
        # In the object store from the start: a long list must not weigh on the driver.
        blocks: list[Any] = []
        for number, places in enumerate(collection.places()):
            left = list(chunks.cut(places, number, done.get(number, ())))
            if left:
                blocks.append(ray.put(pa.concat_tables(left)))
        if not blocks:
            return None
        dataset: ray.data.Dataset = ray.data.from_arrow_refs(blocks)
    else:
        left = [
            stretch._replace(done=done.get(stretch.number, ()))
            for stretch in survey.stretches
            if stretch.number not in finished
        ]
        if not left:
            return None
        dataset = ray.data.from_arrow([score_read.segment_table([stretch]) for stretch in left]).map_batches(
            read_segments,  # type: ignore[arg-type]  # Ray's type knows no keyword arguments
            batch_size=1,
            batch_format="pyarrow",
            fn_kwargs={"columns": collection.columns},
            num_cpus=1,
        )
    return dataset.repartition(target_num_rows_per_block=batch)


def find(
    photos: ray.data.Dataset, batch: int, align: Align, detect: Detect, search: Search
) -> ray.data.Dataset:
    """Second stage: rows of `finding.DETECTED_SCHEMA`, in any order."""
    return photos.map_batches(
        find_faces,  # type: ignore[arg-type]  # Ray's type knows no keyword arguments
        batch_size=batch,
        batch_format="pyarrow",
        fn_kwargs={"align": align, "detect": detect, "search": search, "run": uuid.uuid4().hex[:12]},
        num_cpus=1,
        # Processes are renewed, as decoders leak; and operators with unequal arguments stay apart: Ray would otherwise
        # run this one inside the few actors of the next.
        max_calls=_TASKS_PER_PROCESS,
    )


def age(
    found: ray.data.Dataset, model: str, team: ActorPool, batch: int, posterior: bool
) -> ray.data.Dataset:
    """Third stage: rows of the scores table, in any order."""
    return found.map_batches(
        AgeFaces,
        batch_size=batch,
        batch_format="pyarrow",
        # On a GPU the next batch is put together while one is computed; on CPUs the two would only take each other's cores.
        compute=ActorPoolStrategy(size=team.actors, max_concurrent_calls_per_actor=2 if team.gpus else 1),
        # The model's name, not the model: an actor that restarts loads it again.
        fn_constructor_kwargs={"model": model, "threads": team.threads, "posterior": posterior},
        **team.each(),
    )
