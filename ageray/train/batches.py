"""What lies between the stream of faces and the training loop: decoded faces that stay in memory,
and batches that are made in the background.

Where the canvases of a part fit (`scale.cache_gib`), a worker keeps those that it has decoded: on a
GPU in its memory, so that each crosses to it once a run, else in the machine's. An epoch after the
first then reads no shards. Batches are equal in every bit to those of a worker that decodes all
faces in every epoch. A thread makes batches while the network computes; on a GPU it puts arrays
into pinned memory, so that the copy to the device does not block.

Shape letters: N faces of a part, S steps, B faces of a batch, C side of a canvas.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ageray.data.row_index import Rows
from ageray.train.sampler import Face, OrderedBatches
from ageray.train.state import Columns

_END = object()
_POLL_SECONDS = 0.2  # between two checks whether the reader is still there
LABEL_BYTES = 400
"""Of a face beside its canvas: points, box, labels, key."""
_LOST = "the shards no longer hold it"


class CanvasCache:
    """The columns of the faces of one part by row number; `present` (N,) says which are there.

    size: the bytes that it takes when all are there, for who shares out the memory.
    """

    def __init__(self, count: int, size: int, device: torch.device) -> None:
        self.present = np.zeros(count, bool)
        self.size, self.device = size, device
        self._canvas: Tensor | None = None  # (N, C, C, 3) uint8
        self._columns: dict[str, NDArray[Any]] = {}

    def missing(self, rows: Rows) -> Rows:
        """Those of the row numbers that are not there, ascending, each once."""
        rows = np.unique(rows)
        return rows[~self.present[rows]]

    def add(self, block: Columns) -> None:
        """Copies the rows of a block of `ageray.data.stream.canvases`, those with an error too."""
        rows = block["row"]
        if not len(rows):
            return
        if self._canvas is None:
            self._allocate(block)
        assert self._canvas is not None
        index = torch.from_numpy(np.array(rows)).to(self.device)
        self._canvas[index] = torch.from_numpy(np.array(block["canvas"])).to(self.device)
        for name, values in self._columns.items():
            values[rows] = block[name]
        self.present[rows] = True

    def lose(self, row: int) -> None:
        """Notes that the shards do not have this row, so that no epoch looks for it again."""
        if self._columns:
            self._columns["row"][row] = row
            self._columns["key"][row], self._columns["error"][row] = f"row {row}", _LOST
            self.present[row] = True

    def problem(self, row: int) -> tuple[str, str] | None:
        """Key and reason of a face that cannot be used; None for another. It must be there."""
        key, error = self._columns["key"][row], self._columns["error"][row]
        if error == "":
            return None
        return str(key), str(error)

    def take(self, rows: Rows) -> Columns:
        """The columns of these rows, in their order. `canvas` is a tensor on the cache's device."""
        assert self._canvas is not None
        columns: Columns = {name: values[rows] for name, values in self._columns.items()}
        columns["canvas"] = self._canvas[torch.from_numpy(np.array(rows)).to(self.device)]
        return columns

    def batches(self, rows: Rows, size: int) -> Iterator[Columns]:
        """The rows in batches of `size`."""
        for first in range(0, len(rows), size):
            yield self.take(rows[first : first + size])

    def _allocate(self, block: Columns) -> None:
        count = len(self.present)
        shape = block["canvas"].shape[1:]
        self._canvas = torch.empty((count, *shape), dtype=torch.uint8, device=self.device)
        for name, values in block.items():
            if name != "canvas":
                self._columns[name] = np.zeros((count, *values.shape[1:]), values.dtype)


class CachedBatches(OrderedBatches):
    """`OrderedBatches` whose faces come from a cache; `blocks` bring those that it lacks.

    After the last batch the rest of the streams is read too: the faces of a last, smaller batch
    are then there for the next epoch. A face that cannot be used is listed once an epoch.
    """

    def __init__(
        self,
        blocks: Sequence[Iterable[Columns]],
        rows_SB: Rows,
        cache: CanvasCache,
        more: Mapping[str, NDArray[Any]] | None = None,
        starts: Sequence[int] = (0,),
    ) -> None:
        super().__init__(blocks, rows_SB, more, starts)
        self._cache = cache
        self._listed = set[int]()

    def __iter__(self) -> Iterator[Columns]:
        yield from super().__iter__()
        while any(self._read(number) for number in range(len(self._blocks))):
            pass

    def _find_any(self) -> bool:
        for row in np.unique(self._rows_SB).tolist():
            self._last = self._face(row)
            if self._last is not None:
                return True
        return False

    def _face(self, row: int) -> Face | None:
        number = self._set_of(row)
        while not self._cache.present[row]:
            if not self._read(number):
                self._cache.lose(row)
                break
        problem = (f"row {row}", _LOST)
        if self._cache.present[row]:
            error = self._cache.problem(row)
            if error is None:
                return {}, row
            problem = error
        if row not in self._listed:
            self._listed.add(row)
            self.skipped.append(problem)
        return None

    def _read(self, number: int) -> bool:
        block = next(self._blocks[number], None)
        if block is None:
            return False
        self._cache.add(block)
        return True

    def _batch(self, faces: list[Face]) -> Columns:
        columns = self._cache.take(np.array([row for _, row in faces]))
        del columns["key"], columns["error"]
        return self._with_more(columns)


class Prefetcher:
    """Iterates once over `batches`, up to `depth` of them read in advance.

    `waited` counts the seconds in which no batch was ready. An error in the thread is raised here.
    The thread ends when iteration stops early.
    """

    def __init__(self, batches: Iterable[Any], depth: int, device: torch.device) -> None:
        self._batches, self._pin = batches, device.type == "cuda"
        self._queue: Queue[Any] = Queue(depth)
        self._closed = Event()
        self.waited = 0.0

    def __iter__(self) -> Iterator[Any]:
        thread = Thread(target=self._read, daemon=True)
        thread.start()
        try:
            while True:
                started = time.perf_counter()
                with torch.profiler.record_function("waiting for data"):
                    item = self._queue.get()
                self.waited += time.perf_counter() - started
                if item is _END:
                    return
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            self._closed.set()
            self._drain()
            thread.join()

    def _read(self) -> None:
        try:
            for batch in self._batches:
                if not self._put(_pinned(batch) if self._pin else batch):
                    return
            self._put(_END)
        except BaseException as error:
            self._put(error)

    def _put(self, item: Any) -> bool:
        """Whether the item was queued; False if the reader has stopped."""
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=_POLL_SECONDS)
            except Full:
                continue
            return True
        return False

    def _drain(self) -> None:
        try:
            while True:
                self._queue.get_nowait()
        except Empty:
            return


def _pinned(batch: dict[str, Any]) -> dict[str, Any]:
    """The arrays of numbers as pinned tensors, the other values as they are."""
    pinned = {}
    for name, values in batch.items():
        if isinstance(values, np.ndarray) and values.dtype != object:
            if not values.flags.writeable:
                values = np.array(values)
            pinned[name] = torch.from_numpy(values).pin_memory()
        elif isinstance(values, torch.Tensor) and values.device.type == "cpu":
            pinned[name] = values.pin_memory()
        else:
            pinned[name] = values
    return pinned
