"""What the workers of the tests compute."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from ageray.errors import UserError


def squares() -> Callable[[int], int]:
    """Squares numbers; dies on negative ones, and says no to 1300."""
    return _square


def _square(number: int) -> int:
    if number < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 1300:
        raise UserError("1300: not this one; give another")
    return number * number


def broken() -> Callable[[int], int]:
    """Cannot start."""
    raise UserError("model: is broken; copy it again")


def fatal() -> Callable[[int], int]:
    """Dies while it starts."""
    os._exit(1)


def process() -> Callable[[Any], int]:
    """Tells the id of its process."""
    return lambda _: os.getpid()


def state() -> Callable[[str], tuple[bool, bool]]:
    """Whether a module is imported once Arrow has made an array, and whether garbage is
    collected."""

    def tell(module: str) -> tuple[bool, bool]:
        pa.array(["text"])
        return module in sys.modules, gc.isenabled()

    return tell


def rows_and_bytes() -> Callable[[pa.Table], tuple[pa.Table, int]]:
    """Gives a table back, with the bytes that it holds in memory."""
    return lambda table: (table, table.get_total_buffer_size())


def sleeper(log: str) -> Callable[[int], None]:
    """Writes its process id into a folder, then sleeps."""
    return partial(_sleep, Path(log))


def _sleep(folder: Path, seconds: int) -> None:
    (folder / str(os.getpid())).touch()
    time.sleep(seconds)
