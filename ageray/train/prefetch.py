"""Batches read in the background: a thread reads on while the network computes.

On a GPU the thread puts arrays into pinned memory, so that the copy to the device does not block.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Any

import numpy as np
import torch

_END = object()
_POLL_SECONDS = 0.2  # between two checks whether the reader is still there


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
