"""Keeps lines of Ray's own off a command's standard error.

Ray's C++ code writes its log lines of level ERROR to the file descriptor of standard error, for
example one about `max_restarts` for every pool of actors. No setting turns them off without turning
off Ray's log files too. So standard error becomes a pipe, and a thread passes on everything but
such lines. A fatal line of Ray's, which ends the process, is passed on.
"""

from __future__ import annotations

import io
import os
import re
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from threading import Event, Thread

# [2026-11-30 03:09:40,732 E 29621 29621] core_worker.cc:2465: ... or (raylet) [...] file.cc:1: ...
_OF_RAY = re.compile(rb"^(\(\w+\) )?\[\d{4}-\d\d-\d\d [\d:,]+ [DIWE] \d+ \d+\] (\([\w ]+\) )?\S+\.cc:\d+: ")
_START = (b"[", b"(")
_LONGEST_START = 200  # bytes within which a line shows whether it is Ray's


@contextmanager
def without_lines_of_ray() -> Iterator[None]:
    """Filters this process's standard error inside the block."""
    sys.stderr.flush()
    original = os.dup(2)
    reading, writing = os.pipe()
    os.dup2(writing, 2)
    os.close(writing)
    ended = Event()
    thread = Thread(target=_pass_on, args=(reading, original, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(original, 2)  # processes that Ray started may hold the pipe open
        ended.set()
        thread.join()
        os.close(reading)
        os.close(original)


@contextmanager
def without_messages_of_ray() -> Iterator[None]:
    """Drops what is printed inside the block, by any thread.

    When a service ends, a thread of Ray's prints that tasks of its actors failed.
    """
    with redirect_stdout(io.StringIO()):
        yield


def _pass_on(reading: int, original: int, ended: Event) -> None:
    waiting = b""
    while True:
        last = ended.is_set()  # before the look: what was written until then is found by it
        ready, _, _ = select.select([reading], [], [], 0.05)
        if not ready:
            if last:
                break
            continue
        data = os.read(reading, 65_536)
        if not data:
            break
        text, waiting = filtered(waiting + data)
        _write(original, text)
    _write(original, waiting)


def filtered(data: bytes) -> tuple[bytes, bytes]:
    """What is passed on of `data`, and its end, which may be the start of a line of Ray's."""
    lines = data.split(b"\n")
    last = lines.pop()
    parts = []
    for line in lines:
        if not _OF_RAY.match(line):
            parts.append(line + b"\n")
    text = b"".join(parts)
    if _OF_RAY.match(last) or (last.startswith(_START) and len(last) < _LONGEST_START):
        return text, last
    return text + last, b""


def _write(target: int, text: bytes) -> None:
    with suppress(OSError):  # nobody reads it any more
        while text:
            text = text[os.write(target, text) :]
