"""One folder, one run: the lease that expires."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ageray import storage
from ageray.errors import UserError
from ageray.storage import lease, listing
from ageray.storage.lease import Lease


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "_PERIOD", 0.05)
    monkeypatch.setattr(lease, "_LOOK", 0.02)
    monkeypatch.setattr(lease, "_EXPIRY", 0.5)


def wait_for(condition: Any) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_the_second_run_is_refused_until_the_first_ends(kind: str, tmp_path: Path) -> None:
    folder = str(tmp_path / "out") if kind == "local" else f"memory://{uuid.uuid4().hex}"
    with Lease(folder):
        with pytest.raises(
            UserError, match=rf"another run is writing there \(process {os.getpid()} on .*wait"
        ):
            Lease(folder)
        assert storage.names_below(folder) == ["lease-000001.json"]
    assert storage.names_below(folder) == []
    with Lease(folder) as again:
        again.check()


def test_the_lease_of_a_dead_process_is_taken_at_once(tmp_path: Path) -> None:
    code = f"from ageray.storage.lease import Lease; Lease({str(tmp_path / 'out')!r})"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(lease.__file__).parents[2])
    started = time.monotonic()
    with Lease(str(tmp_path / "out")):
        assert time.monotonic() - started < 0.4
        assert storage.names_below(str(tmp_path / "out")) == ["lease-000002.json"]


def test_the_lease_of_another_machine_is_taken_when_it_is_not_renewed(tmp_path: Path) -> None:
    file = tmp_path / "lease-000007.json"
    file.write_text(json.dumps({"id": "x", "beat": 3, "process": 1, "host": "another"}))
    started = time.monotonic()
    with Lease(str(tmp_path)):
        assert time.monotonic() - started > 0.4
        assert storage.names_below(str(tmp_path)) == ["lease-000008.json"]


def test_a_run_that_was_suspended_learns_that_another_took_over(tmp_path: Path) -> None:
    folder = str(tmp_path / "out")
    with Lease(folder) as slow:
        slow.check()
        (tmp_path / "out" / "lease-000002.json").write_text("{}")
        wait_for(lambda: slow._lost)
        with pytest.raises(UserError, match="another run has taken over"):
            slow.check()
    assert storage.names_below(folder) == ["lease-000002.json"]


def test_of_many_that_begin_at_once_one_gets_it(tmp_path: Path) -> None:
    won: list[Lease] = []
    refused = []
    start = threading.Barrier(8)

    def begin() -> None:
        start.wait()
        try:
            own = Lease(str(tmp_path / "out"))
        except UserError as error:
            refused.append(error)
        else:
            own.__enter__()
            won.append(own)

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(refused)) == (1, 7)
    won[0].release()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"process": "x", "host": 3}'])
def test_a_damaged_lease_expires(text: str, tmp_path: Path) -> None:
    (tmp_path / "lease-000001.json").write_text(text)
    with Lease(str(tmp_path)) as own:
        own.check()


def test_a_folder_that_goes_while_it_is_listed_has_no_names(tmp_path: Path) -> None:
    """As of several jobs that end at the same moment, one removes the folders of all."""
    for number in range(3):
        storage.write_text(str(tmp_path / f"shard{number}" / "plan.json"), "{}")
    (tmp_path / "lease.json").touch()
    names = listing._names(str(tmp_path))
    assert next(names) == "lease.json"
    for number in (0, 2):
        shutil.rmtree(tmp_path / f"shard{number}")
    assert list(names) == ["shard1/plan.json"]
    shutil.rmtree(tmp_path)
    assert list(listing._names(str(tmp_path))) == []


def test_a_folder_that_others_remove_is_written_to_and_listed(tmp_path: Path) -> None:
    folder = tmp_path / "out.shards" / "inner"

    def work(number: int) -> None:
        for _ in range(100):
            storage.write_text(str(folder / f"{number}.json"), "{}")
            storage.names_below(str(tmp_path / "out.shards"))
            storage.remove(str(tmp_path / "out.shards"), [f"inner/{number}.json"])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert storage.names_below(str(tmp_path)) == []
