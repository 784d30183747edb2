"""The number of CPUs that this process may use."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

_ROOT = Path("/")


def usable_cpus(root: Path = _ROOT) -> int:
    """Logical CPUs that this process may use, at least 1.

    A container often has a few CPUs of a large host: `os.cpu_count` counts the host's. This
    counts those of the process's affinity (`docker --cpuset-cpus`, `taskset`, Slurm), and at
    most the quota of its control groups (`docker --cpus`, a Kubernetes limit), rounded up.

    root: the folder that holds `proc` and `sys`, for tests.
    """
    count = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # Linux
        count = len(os.sched_getaffinity(0))
    for quota in _quotas(root):
        count = min(count, math.ceil(quota))
    return max(1, count)


def _quotas(root: Path) -> Iterator[float]:
    """CPUs that each control group of this process, and each group above it, allows."""
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            folder = root / "sys/fs/cgroup"
            if controllers:
                folder /= controllers  # version 1 has a tree for each controller
            # In a container the path may be the host's, and only the top of the tree is there.
            path = PurePosixPath(group.lstrip("/"))
            for each in (path, *path.parents):
                with suppress(OSError, ValueError, ZeroDivisionError):
                    quota, period = _limit(folder / each)
                    if quota > 0:
                        yield quota / period


def _limit(folder: Path) -> tuple[float, float]:
    """Microseconds of CPU time, and of the period that they are for. Raises OSError or ValueError
    if the group has no limit."""
    both = folder / "cpu.max"  # version 2
    if both.exists():
        quota, period = both.read_text().split()
        return float(quota), float(period)
    quota = (folder / "cpu.cfs_quota_us").read_text()
    return float(quota), float((folder / "cpu.cfs_period_us").read_text())
