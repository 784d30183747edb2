"""Batches made ready while the network works: a thread reads on, and on a GPU puts them where the copy to the device need not wait."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Any

import numpy as np
import torch

_END = object()
_PATIENCE = 0.2  # seconds between looks whether anybody still wants a batch


class Prefetcher:
    """Iterates once over `batches`, `depth` of them read ahead; `waited` counts the seconds in which none was ready.

    What the reading raises is raised here. When iteration stops early, the thread ends too.
    """

    def __init__(self, batches: Iterable[Any], depth: int, device: torch.device) -> None:
        self._batches, self._pin = batches, device.type == "cuda"
        self._queue: Queue[Any] = Queue(depth)
        self._unwanted = Event()
        self.waited = 0.0

    def __iter__(self) -> Iterator[Any]:
        thread = Thread(target=self._read, daemon=True)
        thread.start()
        try:
            while True:
                started = time.perf_counter()
                with torch.profiler.record_function("waiting for data"):
                    found = self._queue.get()
                self.waited += time.perf_counter() - started
                if found is _END:
                    return
                if isinstance(found, BaseException):
                    raise found
                yield found
        finally:
            self._unwanted.set()
            self._empty()
            thread.join()

    def _read(self) -> None:
        try:
            for batch in self._batches:
                if not self._offer(_pinned(batch) if self._pin else batch):
                    return
            self._offer(_END)
        except BaseException as error:
            self._offer(error)

    def _offer(self, item: Any) -> bool:
        while not self._unwanted.is_set():
            try:
                self._queue.put(item, timeout=_PATIENCE)
            except Full:
                continue
            return True
        return False

    def _empty(self) -> None:
        try:
            while True:
                self._queue.get_nowait()
        except Empty:
            return


def _pinned(batch: dict[str, Any]) -> dict[str, Any]:
    def pin(values: Any) -> Any:
        plain = isinstance(values, np.ndarray) and values.dtype != object
        return (
            torch.from_numpy(np.array(values) if not values.flags.writeable else values).pin_memory()
            if plain
            else values
        )

    return {name: pin(values) for name, values in batch.items()}
