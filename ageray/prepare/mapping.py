"""Applies a function to tables: in a pool of processes on this machine, or on Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Protocol

import pyarrow as pa

from ageray.experiment import Scale
from ageray.machine import engine
from ageray.machine.cpus import usable_cpus
from ageray.machine.pool import Pool

Function = Callable[[pa.Table], pa.Table]


class Map(Protocol):
    """Applies a function to tables."""

    def __call__(
        self, function: Function, tables: Sequence[pa.Table], batch: int | None, give_up: Function
    ) -> Iterator[pa.Table]:
        """The answers as they come, in any order.

        batch: rows of a call; None gives `function` each table as a whole. give_up: answers for
        rows (or a whole table) on which a process died twice. Ray does not need it: it tries a
        task again without end.
        """


_MODULES = ("ageray.prepare.inspect", "ageray.prepare.write")
_MAX_DEATHS = 2


@contextmanager
def mapping(scale: Scale) -> Iterator[Map]:
    """How `scale.engine` computes. Joins or starts Ray if it is Ray."""
    if engine.choose(scale, photos=0) == "local":  # no GPU is needed, so the amount does not matter
        with Pool(_MODULES) as pool:
            yield partial(_map_here, pool, scale)
    else:
        from ageray import cluster  # Ray takes a second to import

        cluster.connect(scale)
        yield _map_on_ray


def _map_here(
    pool: Pool,
    scale: Scale,
    function: Function,
    tables: Sequence[pa.Table],
    batch: int | None,
    give_up: Function,
) -> Iterator[pa.Table]:
    """A batch on which a process died is tried again, each of its rows alone."""
    tasks = []
    for table in tables:
        rows = batch or table.num_rows
        tasks += [(table.slice(start, rows), 0) for start in range(0, table.num_rows, rows)]
    processes = min(scale.local_cpus or usable_cpus(), len(tasks))
    for outcome in pool.run(partial(_of_task, function), tasks, processes):
        table, deaths = outcome.task
        if not outcome.died:
            yield outcome.value
        elif deaths + 1 == _MAX_DEATHS:
            yield give_up(table)
        else:
            rows = 1 if batch else table.num_rows
            for start in range(0, table.num_rows, rows):
                pool.retry((table.slice(start, rows), deaths + 1))


def _of_task(function: Function) -> Callable[[tuple[pa.Table, int]], pa.Table]:
    return lambda task: function(task[0])


def _map_on_ray(
    function: Function, tables: Sequence[pa.Table], batch: int | None, give_up: Function
) -> Iterator[pa.Table]:
    import ray.data

    from ageray import cluster

    dataset = ray.data.from_arrow(list(tables))
    answers = dataset.map_batches(
        function, batch_size=batch, batch_format="pyarrow", max_retries=cluster.LOSSES
    )
    yield from answers.iter_batches(batch_size=None, batch_format="pyarrow")
