"""The pool of processes: every task is done once, and dead or broken workers are noticed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import pyarrow as pa
import pytest

from ageray.errors import UserError
from ageray.machine.pool import Pool
from tests.machine import work

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool(["tests.machine.work"]) as pool:
        yield pool


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_every_task_is_done_once(pool: Pool) -> None:
    outcomes = list(pool.run(work.squares, range(100), 3))
    assert sorted(outcomes) == [(number, number**2, False) for number in range(100)]
    assert list(pool.run(work.squares, [], 2)) == []


def test_a_dead_worker_is_noticed_and_replaced(pool: Pool) -> None:
    tasks = [1, -2, 3, -4, 5, 6]
    outcomes = []
    for outcome in pool.run(work.squares, tasks, 2):
        outcomes.append(outcome)
        if outcome.died:
            pool.retry(-outcome.task)
    assert {outcome.task for outcome in outcomes if outcome.died} == {-2, -4}
    assert {outcome.value for outcome in outcomes if not outcome.died} == {1, 4, 9, 16, 25, 36}


def test_errors_keep_their_class(pool: Pool) -> None:
    with pytest.raises(UserError, match="^1300: not this one; give another$"):
        list(pool.run(work.squares, [1300], 1))
    with pytest.raises(UserError, match="^model: is broken; copy it again$"):
        list(pool.run(work.broken, [1], 1))
    with pytest.raises(UserError, match="died while it started.*lack of memory"):
        list(pool.run(work.fatal, [1], 1))

    def unreadable() -> Iterator[int]:
        yield 1
        raise UserError("input: is gone")

    with pytest.raises(UserError, match="^input: is gone$"):
        list(pool.run(work.squares, unreadable(), 1))


def test_the_fork_server_is_replaced_too(pool: Pool) -> None:
    pool._server.kill()
    pool._server.wait()
    assert [outcome.value for outcome in pool.run(work.squares, [2, 3], 1)] == [4, 9]


def test_a_worker_is_replaced_after_many_tasks(pool: Pool) -> None:
    processes = [outcome.value for outcome in pool.run(work.process, range(1001), 1)]
    assert len(set(processes[:1000])) == 1
    assert processes[1000] != processes[0]


def test_workers_do_without_pandas_and_collect_garbage(pool: Pool) -> None:
    assert [outcome.value for outcome in pool.run(work.state, ["pandas"], 1)] == [(False, True)]


def test_a_slice_of_a_table_travels_without_the_rest(pool: Pool) -> None:
    table = pa.table({"content": [b"x" * 1000] * 1000})
    ((_, (rows, size), _),) = pool.run(work.rows_and_bytes, [table.slice(10, 2)], 1)
    assert rows.equals(table.slice(10, 2))
    assert 2000 <= size < 10_000


def test_workers_end_with_their_driver(tmp_path: Path) -> None:
    program = (
        "import sys; from functools import partial; from ageray.machine.pool import Pool; "
        "from tests.machine import work; pool = Pool(['tests.machine.work']); "
        "list(pool.run(partial(work.sleeper, sys.argv[1]), [600] * 2, 2))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    driver = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, env=environment)
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
    workers = [psutil.Process(int(file.name)) for file in tmp_path.iterdir()]
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive


def test_closing_does_not_wait_for_a_task(tmp_path: Path) -> None:
    with Pool(["tests.machine.work"]) as pool:
        started = time.monotonic()
        for outcome in pool.run(partial(work.sleeper, str(tmp_path)), [600, 0], 2):
            assert outcome.task == 0
            break
    assert time.monotonic() - started < 60
    workers = [int(file.name) for file in tmp_path.iterdir()]
    wait_until(lambda: not any(map(psutil.pid_exists, workers)))


def test_an_answer_that_nobody_waits_for_is_dropped_in_silence(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As after a signal, if a worker is ready before it is killed."""
    with Pool(["tests.machine.work"]) as pool:
        outcomes = pool.run(partial(work.sleeper, str(tmp_path)), [1, 0], 2)
        assert next(outcomes).task == 0
        outcomes.close()  # type: ignore[attr-defined]
        workers = [int(file.name) for file in tmp_path.iterdir()]
        wait_until(lambda: not any(map(psutil.pid_exists, workers)))
    assert capfd.readouterr().err == ""
