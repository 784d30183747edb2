"""TODO."""

from __future__ import annotations

import os

_SPIN_COUNT = "2000"
"""How often an OpenMP thread looks for work before it sleeps."""

_KEEPING = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
}


def environment(on_gpu: bool = False) -> dict[str, str]:
    """Variables for a process that holds a network, on whichever node Ray starts it; the caller's own values where it has any.

    What a batch frees, glibc gives back to the system, and the next batch touches every page anew: on CPUs a quarter to a third of the model's
    time in scoring, and a twelfth of a training step of `dhaa` (docs/benchmarks.md). So what is freed is kept there; and in one arena, as those
    of threads are too small for large tensors. With a GPU the tensors are elsewhere, and glibc's defaults stay.
    """
    wanted = {"GOMP_SPINCOUNT": _SPIN_COUNT} if on_gpu else {"GOMP_SPINCOUNT": _SPIN_COUNT, **_KEEPING}
    return {name: os.environ.get(name, value) for name, value in wanted.items()}
