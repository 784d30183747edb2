"""The first stage of scoring starts no more tasks than the later ones can use soon."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray.data

from ageray.score import pipeline
from ageray.score.files import ScoreFiles

BLOCKS = 80


def at_rest(folder: Path) -> int:
    """How many files the folder has once none has come for three seconds, and more than a worker or
    two have left there.
    """
    seen, since = 0, time.monotonic()
    while seen < 12 or time.monotonic() - since < 3:
        count = len(list(folder.iterdir()))
        if count != seen:
            seen, since = count, time.monotonic()
        time.sleep(0.05)
    return seen


@pytest.mark.parametrize(
    "limited",
    [
        # shows that Ray Data has no such limit, so that the other case tests ours
        pytest.param(False, marks=pytest.mark.slow),
        True,
    ],
)
def test_reading_ahead_of_a_model_that_is_not_ready(limited: bool, ray_local: None, tmp_path: Path) -> None:
    ready, folder = tmp_path / "ready", tmp_path / "read"
    folder.mkdir()

    def read(table: pa.Table) -> pa.Table:
        (folder / str(table.column("number")[0].as_py())).touch()
        return table

    class Use:
        def __call__(self, table: pa.Table) -> pa.Table:
            while not ready.exists():
                time.sleep(0.05)
            return table

    options: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow"}
    tables = [pa.table({"number": [number]}) for number in range(BLOCKS)]
    # stages of unequal needs stay apart
    dataset = ray.data.from_arrow(tables).map_batches(read, **options, num_cpus=1)
    dataset = dataset.map_batches(Use, **options, num_cpus=0.5, compute=ray.data.ActorPoolStrategy(size=1))
    rows: Any = dataset.iter_batches(**options)
    if limited:
        rows = pipeline.results(dataset, ScoreFiles(str(tmp_path / "scores")))
    used: list[int] = []
    drain = threading.Thread(target=lambda: used.extend(batch.num_rows for batch in rows))
    drain.start()
    try:
        waiting = at_rest(folder)
    finally:
        ready.touch()
        drain.join()
    assert sum(used) == BLOCKS
    if limited:
        cpus = ray.cluster_resources()["CPU"]  # type: ignore[no-untyped-call]
        assert (
            waiting <= 4 * cpus + 2 * cpus < BLOCKS / 2
        )  # four rounds, and what was under way on either side
    else:
        assert waiting == BLOCKS  # a store has room for them all
