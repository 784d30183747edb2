"""A pool of worker processes on this machine.

The driver (the process that has the pool) gives each worker one task at a time over a socket. The
workers are forked from `ageray.machine.fork_server`. If the driver ends, they end too.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from queue import Full, Queue
from threading import Event, Thread
from types import TracebackType
from typing import Any, NamedTuple, Self

from ageray.errors import UserError
from ageray.machine.environment import environment
from ageray.machine.fork_server import receive, send

_PROGRAM = (
    "import sys; sys.path[:] = sys.argv[3:]; from ageray.machine.fork_server import serve; "
    "serve(int(sys.argv[1]), sys.argv[2].split())"
)
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_END = object()
_POLL_SECONDS = 0.2  # between two checks of the thread that reads tasks whether the pool is closed


class Outcome(NamedTuple):
    """A task, and what came of it: `value`, or `died` if its worker died on it."""

    task: Any
    value: Any
    died: bool = False


class _Worker:
    """The driver's side of a worker process."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.task: Any = _END  # none
        self.ready = False

    @property
    def is_idle(self) -> bool:
        """Whether it waits for a task."""
        return self.ready and self.task is _END


class Pool:
    """Worker processes that compute tasks, inside a `with` block."""

    def __init__(self, modules: Sequence[str]) -> None:
        """Starts to import `modules`, which the workers need, in a process of its own. Returns at
        once.
        """
        self._modules = modules
        self._control, self._server = self._start_server()
        self._retries: deque[Any] = deque()
        self._closed = Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kills the workers, even in the midst of a task."""
        self._closed.set()
        self._control.close()
        with suppress(ProcessLookupError):
            os.killpg(self._server.pid, signal.SIGKILL)
        self._server.wait()

    def run(
        self, make: Callable[[], Callable[[Any], Any]], tasks: Iterable[Any], processes: int
    ) -> Iterator[Outcome]:
        """Computes `tasks` in `processes` workers. The outcomes come in any order.

        make: called once in each worker, gives the function that computes a task. It is pickled.
        tasks: a thread reads them, a few in advance.
        Raises what `make`, the function or `tasks` raise, and UserError if a worker dies while
        it starts.
        """
        self._retries.clear()
        workers = [self._new_worker(make) for _ in range(processes)]
        queue = self._read_ahead(tasks, processes)
        try:
            task = _next(queue)
            while True:
                for worker in workers:
                    if worker.is_idle and self._retries:
                        _give(worker, self._retries.popleft())
                    elif worker.is_idle and task is not _END:
                        _give(worker, task)
                        task = _next(queue)
                if task is _END and not self._retries and all(each.task is _END for each in workers):
                    return
                for connection in wait([worker.connection for worker in workers]):
                    number = next(i for i, each in enumerate(workers) if each.connection is connection)
                    outcome, ended = _outcome(workers[number])
                    if ended:
                        workers[number].connection.close()
                        workers[number] = self._new_worker(make)
                    if outcome is not None:
                        yield outcome
        finally:
            for worker in workers:
                worker.connection.close()

    def retry(self, task: Any) -> None:
        """Adds a task to those of `run`, which computes it next."""
        self._retries.append(task)

    def _read_ahead(self, tasks: Iterable[Any], depth: int) -> Queue[Any]:
        """A queue that a thread fills with up to `depth` tasks; after the last one it has _END."""
        queue: Queue[Any] = Queue(depth)

        def read() -> None:
            for item in _to_the_end(tasks):
                if not self._put(queue, item):
                    return

        Thread(target=read, daemon=True).start()
        return queue

    def _put(self, queue: Queue[Any], item: Any) -> bool:
        """Whether the item was queued; False if the pool is closed."""
        while not self._closed.is_set():
            with suppress(Full):
                queue.put(item, timeout=_POLL_SECONDS)
                return True
        return False

    def _new_worker(self, make: Callable[[], Callable[[Any], Any]]) -> _Worker:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(self._control, [b"f"], [theirs.fileno()])
            except OSError:  # the server was killed, perhaps for lack of memory
                self._control.close()
                self._server.wait()
                self._control, self._server = self._start_server()
                socket.send_fds(self._control, [b"f"], [theirs.fileno()])
        worker = _Worker(Connection(ours.detach()))
        send(worker.connection, make)
        return worker

    def _start_server(self) -> tuple[socket.socket, subprocess.Popen[bytes]]:
        ours, theirs = socket.socketpair()
        variables = os.environ | environment() | dict.fromkeys(_ONE_THREAD, "1")
        with theirs:
            server = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, str(theirs.fileno()), " ".join(self._modules), *sys.path],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=variables,
                process_group=0,  # an interrupt from the keyboard reaches the driver alone
            )
        return ours, server


class _Failure(NamedTuple):
    """An error of the thread that reads tasks."""

    error: BaseException


def _to_the_end(tasks: Iterable[Any]) -> Iterator[Any]:
    """The tasks, or those before an error and a _Failure; then _END."""
    try:
        yield from tasks
    except Exception as error:
        yield _Failure(error)
    yield _END


def _next(queue: Queue[Any]) -> Any:
    task = queue.get()
    if isinstance(task, _Failure):
        raise task.error
    return task


def _give(worker: _Worker, task: Any) -> None:
    worker.task = task
    with suppress(OSError):  # it has died, and `wait` tells it at once
        send(worker.connection, task)


def _outcome(worker: _Worker) -> tuple[Outcome | None, bool]:
    """The outcome that a worker sends, None if it says that it is ready; and whether it has ended.

    Raises the error that it sends, and UserError if it died while it started.
    """
    try:
        kind, value, ended = receive(worker.connection)
    except (EOFError, OSError):
        if not worker.ready:
            raise UserError(
                "a worker process died while it started; if nothing above says why, the kernel ended it for "
                "lack of memory: give the command more memory, or fewer processes (scale.local_cpus=1)"
            ) from None
        if worker.task is _END:
            return None, True
        return Outcome(worker.task, None, died=True), True
    if kind == "failed":
        raise value
    if kind == "ready":
        worker.ready = True
        return None, False
    task, worker.task = worker.task, _END
    return Outcome(task, value), ended
