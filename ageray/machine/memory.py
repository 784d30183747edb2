"""The memory that this process may still use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

_ROOT = Path("/")
_FILES = {"": ("memory.max", "memory.current"), "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes")}


def available_bytes(root: Path = _ROOT) -> int:
    """Bytes that are free on this machine, and at most what this process's control groups leave.

    0 where the system does not say. root: the folder that holds `proc` and `sys`, for tests.
    """
    free = 0
    with suppress(OSError):
        for line in (root / "proc/meminfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                free = int(value.split()[0]) * 1024
    return max(0, min([free, *_left(root)]))


def _left(root: Path) -> Iterator[int]:
    """Bytes left in each control group of this process, and in those above it, that has a limit."""
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers not in _FILES:
                continue
            limit, usage = _FILES[controllers]
            path = PurePosixPath(group.lstrip("/"))
            for each in (path, *path.parents):
                folder = root / "sys/fs/cgroup" / controllers / each
                with suppress(OSError, ValueError):  # `max`: no limit
                    yield int((folder / limit).read_text()) - int((folder / usage).read_text())
