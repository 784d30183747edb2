"""A trace of ten training steps, waiting for data included, for Perfetto or chrome://tracing."""

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
def trace(uri: str, enabled: bool) -> Iterator[Step]:
    """Yields a function to call after every step; steps 6 to 15 are traced into `uri`, once a run.

    If not `enabled`, or the file exists, nothing is traced.
    """
    if not enabled or storage.exists(uri):
        yield lambda: None
        return

    def write(profiler: profile) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "trace.json"
            profiler.export_chrome_trace(str(file))
            storage.write_bytes(uri, file.read_bytes())

    kinds = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        kinds.append(ProfilerActivity.CUDA)
    with profile(
        activities=kinds,
        schedule=schedule(wait=_FIRST - 1, warmup=1, active=_STEPS, repeat=1),
        on_trace_ready=write,
    ) as profiler:
        yield profiler.step
