"""A function on a GPU recorded as CUDA graphs, one for each of a few batch sizes.

A batch of 256 faces takes some 240 launches from the host; a replayed graph takes one. A graph
reads and writes fixed memory. So a batch is copied into its inputs, the graph is launched, and its
output is copied out. On a CPU "recording" keeps the same memory and calls the function, so that all
but the graph itself is tested without a GPU.

Shape letters: B faces of a batch, S faces of a recording (S >= B), W numbers a face.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Columns = dict[str, NDArray[np.generic]]
_ALIGNED = 256  # bytes between the starts of two columns in one buffer
_SMALLEST = 8


def recorded_size(count: int) -> int:
    """The batch size S that `count` faces are computed with: 8, 12, 16, 24, 32, 48 and so on.

    Photos without a face leave batches of any size. From 8 faces on padding adds less than half of
    them. A graph for each size would take longer to record than it saves, and memory of its own.
    """
    size = _SMALLEST
    while size < count:
        if size * 3 // 2 >= count:
            return size * 3 // 2
        size *= 2
    return size


class _Layout(NamedTuple):
    """Where the columns of a batch of `size` faces lie in one buffer of bytes: name, type and shape
    of a face's part, first byte."""

    size: int
    columns: tuple[tuple[str, np.dtype[np.generic], tuple[int, ...], int], ...]
    total: int

    @classmethod
    def of(cls, columns: Columns, size: int) -> _Layout:
        places, first = [], 0
        for name, values in columns.items():
            places.append((name, values.dtype, values.shape[1:], first))
            count = size * math.prod(values.shape[1:]) * values.dtype.itemsize
            first += -(-count // _ALIGNED) * _ALIGNED
        return cls(size, tuple(places), first)

    def views(self, buffer: Tensor) -> dict[str, Tensor]:
        """The columns in a buffer (total,), (S, ...) each."""
        tensors = {}
        for name, kind, shape, first in self.columns:
            dtype = torch.from_numpy(np.empty(0, kind)).dtype
            count = self.size * math.prod(shape) * kind.itemsize
            tensors[name] = buffer[first : first + count].view(dtype).view(self.size, *shape)
        return tensors


class _Host:
    """Memory of the host for one batch under way; on a GPU it is pinned. It grows and is kept."""

    def __init__(self, device: torch.device) -> None:
        self._pinned = device.type == "cuda"
        self._input = self._output = torch.empty(0)
        self._done: torch.cuda.Event | None = None
        if self._pinned:
            self._done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]

    def fill(self, columns: Columns, layout: _Layout) -> Tensor:
        """Copies a batch in; returns the buffer (total,). The faces beyond are those of the first
        row, since other bytes could be numbers that no face has."""
        self._input = self._grown(self._input, layout.total, torch.uint8)
        buffer = self._input[: layout.total]
        for name, tensor in layout.views(buffer).items():
            values, target = columns[name], tensor.numpy()
            target[: len(values)] = values
            target[len(values) :] = values[:1]
        return buffer

    def take(self, output_SW: Tensor) -> None:
        """Starts to copy the output to the host."""
        self._output = self._grown(self._output, output_SW.numel(), torch.float32)
        self._output[: output_SW.numel()].view(output_SW.shape).copy_(output_SW, non_blocking=True)
        if self._done is not None:
            self._done.record()

    def rows(self, count: int, width: int) -> NDArray[np.float32]:
        """Waits for the output; (count, width) of it, in memory of their own."""
        if self._done is not None:
            self._done.synchronize()
        rows: NDArray[np.float32] = self._output[: count * width].view(count, width).numpy().copy()
        return rows

    def _grown(self, buffer: Tensor, count: int, dtype: torch.dtype) -> Tensor:
        if buffer.numel() >= count and buffer.dtype == dtype:
            return buffer
        return torch.zeros(count, dtype=dtype, pin_memory=self._pinned)


class _Recording:
    """The inputs of one batch size on the device, and what replays the function on them."""

    def __init__(self, layout: _Layout, device: torch.device) -> None:
        self.input = torch.zeros(layout.total, dtype=torch.uint8, device=device)
        self.batch = layout.views(self.input)
        self.batches = 0
        self.replay: Callable[[], Tensor] | None = None


class Replay:
    """Calls a function on batches of any size; from the second batch of a size on, by its graph.

    Threads may call it at the same time: each has its own memory on the host, and while the device
    works on one batch the next is copied into pinned memory. The device works on one batch after
    the other.
    """

    def __init__(
        self, function: Callable[[dict[str, Tensor]], Tensor], device: torch.device, limit: int = 12
    ) -> None:
        """function: tensors (S, ...) on the device by name to float32 (S, W), every row by itself,
        without waiting for the device. limit: recordings that are kept; the one that was used
        longest ago makes room. Batches of up to 256 have 11 sizes."""
        self._function, self._device, self._limit = function, device, limit
        self._lock = threading.Lock()
        self._recordings: OrderedDict[_Layout, _Recording] = OrderedDict()
        self._spare: list[_Host] = []
        self._records = True
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            # graphs take turns and their outputs are copied out, so they can share their memory
            self._pool = torch.cuda.graph_pool_handle()

    @torch.inference_mode()
    def __call__(self, columns: Columns) -> NDArray[np.float32]:
        """The function of a batch: arrays (B, ...) by name, B at least 1, to (B, W).

        Raises ValueError if the arrays differ in B, and what the function raises. An error while
        recording is logged once; all batches are then computed without graphs.
        """
        count = len(next(iter(columns.values())))
        if any(len(values) != count for values in columns.values()):
            raise ValueError("the arrays of a batch differ in length")  # rows would be filled up
        layout = _Layout.of(columns, recorded_size(count))
        host = self._host()
        buffer = host.fill(columns, layout)
        with self._lock, self._on_stream():
            recording = self._recording(layout)
            recording.input.copy_(buffer, non_blocking=True)
            output_SW = self._output(recording)
            host.take(output_SW)
        rows_BW = host.rows(count, output_SW.shape[1])
        self._spare.append(host)  # not after an error, when the device may still read it
        return rows_BW

    @property
    def sizes(self) -> list[int]:
        """The batch sizes that are replayed, the one used last at the end."""
        return [layout.size for layout, each in self._recordings.items() if each.replay is not None]

    def _host(self) -> _Host:
        try:
            return self._spare.pop()
        except IndexError:
            return _Host(self._device)

    def _on_stream(self) -> AbstractContextManager[object]:
        """The stream of all batches: a graph cannot be recorded on the default stream."""
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _recording(self, layout: _Layout) -> _Recording:
        recording = self._recordings.pop(layout, None)
        if recording is None:
            while len(self._recordings) >= self._limit:
                self._recordings.popitem(last=False)
            if self._stream is not None:  # the weights were copied on another stream
                self._stream.wait_stream(torch.cuda.default_stream(self._device))
            recording = _Recording(layout, self._device)
        self._recordings[layout] = recording
        return recording

    def _output(self, recording: _Recording) -> Tensor:
        """The function of the recording's inputs. The first batch of a size warms the function up,
        the second is recorded: a size that comes once costs no graph."""
        recording.batches += 1
        if recording.replay is None and recording.batches > 1 and self._records:
            try:
                recording.replay = self._record(recording)
            except RuntimeError as error:
                self._records = False
                reason = " ".join(str(error).split())[:300]
                logging.getLogger(__name__).warning("CUDA graphs are not used: %s", reason)
        if recording.replay is None:
            return self._function(recording.batch)
        return recording.replay()

    def _record(self, recording: _Recording) -> Callable[[], Tensor]:
        """What runs the function on the recording's inputs and returns its output, which is
        always in the same memory."""
        if self._stream is None:
            output_SW = self._function(recording.batch).clone()

            def call() -> Tensor:
                return output_SW.copy_(self._function(recording.batch))

            return call
        graph = torch.cuda.CUDAGraph()
        # other threads may go on: they prepare their batches
        mode = "thread_local"
        with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode=mode):
            graph_SW = self._function(recording.batch)

        def replay() -> Tensor:
            graph.replay()
            return graph_SW

        return replay
