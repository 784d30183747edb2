"""The process from which the workers of `ageray.machine.pool` are forked.

It imports modules once, so that a worker starts in milliseconds and shares their memory. Forking is
safe here, because this process has one thread: it only imports. `multiprocessing`'s fork server is
not used, because it runs the caller's main module again in every worker.
"""

from __future__ import annotations

import gc
import importlib
import io
import os
import pickle
import signal
import socket
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pyarrow as pa

from ageray.machine.arrow import leave_out_pandas

_MAX_TASKS = 1000
_MAX_BYTES = 2**30
"""After so many tasks, or with so much memory, a worker is replaced: decoders leak memory, and one
huge photo leaves its pages behind."""
_STATM = Path("/proc/self/statm")


def serve(descriptor: int, modules: Sequence[str]) -> None:
    """Imports `modules`, then forks a worker for each descriptor of a socket that comes over the
    socket `descriptor`. When that is closed, the workers are killed, even in the midst of a task.

    This process must lead a process group of its own.
    """
    gc.disable()  # collections while modules are imported take 0.3 s, and find nothing
    leave_out_pandas()
    for module in modules:
        importlib.import_module(module)
    gc.freeze()  # a collection would write to, and so copy, the pages that workers share
    gc.enable()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for workers that have ended
    control = socket.socket(fileno=descriptor)
    while True:
        _, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not descriptors:
            os.killpg(0, signal.SIGKILL)
        if os.fork() == 0:
            control.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            try:
                _work(Connection(descriptors[0]))
            except (BrokenPipeError, ConnectionResetError):
                pass  # nobody waits for the answer any more; errors of a task do not come here
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)
        os.close(descriptors[0])


def _work(connection: Connection) -> None:
    """What a worker does: makes its function, then answers one task after the other.

    An answer is (kind, value, whether the worker ends): `ready`, `done` or `failed`.
    """
    try:
        function: Callable[[Any], Any] = receive(connection)()
    except EOFError:
        return
    except Exception as error:
        _fail(connection, error)
        return
    send(connection, ("ready", None, False))
    for number in range(1, _MAX_TASKS + 1):
        try:
            task = receive(connection)
        except EOFError:
            return
        try:
            value = function(task)
        except Exception as error:
            _fail(connection, error)
            return
        ends = number == _MAX_TASKS or _resident_bytes() > _MAX_BYTES
        send(connection, ("done", value, ends))
        if ends:
            return


def _fail(connection: Connection, error: Exception) -> None:
    text = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # its class has arguments of its own
        error = RuntimeError(str(error))
    error.add_note(f"In a worker process:\n{text}")
    send(connection, ("failed", error, True))


def _resident_bytes() -> int:
    """The memory of this process; 0 where the system does not tell it as Linux does."""
    try:
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


class _Pickler(pickle.Pickler):
    """Pickles a slice of a table without the rest of the table."""

    def reducer_override(self, value: Any) -> Any:
        """How `value` is pickled, if not in the usual way."""
        if not isinstance(value, pa.Table):
            return NotImplemented
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, value.schema) as stream:
            stream.write_table(value)
        return _read_table, (pickle.PickleBuffer(sink.getvalue()),)


def _read_table(content: Any) -> pa.Table:
    return pa.ipc.open_stream(pa.py_buffer(content)).read_all()


def send(connection: Connection, value: Any) -> None:
    """Sends `value` as one message. Raises OSError if the other side has ended."""
    content = io.BytesIO()
    _Pickler(content, protocol=5).dump(value)
    connection.send_bytes(content.getbuffer())


def receive(connection: Connection) -> Any:
    """The next message. Raises EOFError or OSError if the other side has ended."""
    return pickle.loads(connection.recv_bytes())
