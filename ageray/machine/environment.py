"""Environment variables of processes that compute."""

from __future__ import annotations

import os

SPIN_COUNT = "2000"
"""How often an OpenMP thread looks for work before it sleeps.

Spinning OpenMP threads starve other processes on the same cores; putting them to sleep at once
makes a training step 10 % slower. A short spin avoids both (docs/benchmarks.md).
"""

_REUSE_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
}


def environment(on_gpu: bool = False) -> dict[str, str]:
    """Variables for a process that holds a network, on any node. The caller's own values go first.

    By default glibc returns a batch's freed memory to the system, and the next batch touches every
    page again. On CPUs that costs 25 to 33 % of the model's time in scoring and 8 % of a training
    step of `dhaa` (docs/benchmarks.md). The variables make glibc reuse the memory, in one arena,
    because the arenas of threads are too small for large tensors. On a GPU the tensors are not in
    this memory, so glibc's defaults are used.
    """
    variables = {"GOMP_SPINCOUNT": SPIN_COUNT}
    if not on_gpu:
        variables |= _REUSE_MEMORY
    return {name: os.environ.get(name, value) for name, value in variables.items()}
