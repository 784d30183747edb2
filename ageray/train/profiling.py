"""A trace of a few training steps, with the waiting for data, for Perfetto or chrome://tracing."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from ageray import storage

_FIRST, _STEPS = 5, 10
Step = Callable[[], object]


@contextmanager
def trace(uri: str, wanted: bool) -> Iterator[Step]:
    """Gives what is to be called after every step; writes the trace of steps 6 to 15 to `uri`, once a run. Not wanted: does nothing."""
    if not wanted or storage.exists(uri):
        yield lambda: None
        return

    def write(found: profile) -> None:
        with tempfile.TemporaryDirectory() as folder:
            found.export_chrome_trace(str(Path(folder) / "trace.json"))
            storage.write_bytes(uri, (Path(folder) / "trace.json").read_bytes())

    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    with profile(
        activities=kinds,
        schedule=schedule(wait=_FIRST - 1, warmup=1, active=_STEPS, repeat=1),
        on_trace_ready=write,
    ) as running:
        yield running.step
