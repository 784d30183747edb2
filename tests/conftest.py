"""Shared fixtures: one local Ray for the whole run, real faces where they are at hand."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# oneDNN's barriers spin: on two busy cores a step with two threads takes many times as long
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["RAY_AUTH_MODE"] = "disabled"
# Ray's workers give way to every other process (niceness 15), and so would wait for other tests
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (Ray reads it in this case)
# Ray ends a worker that is idle for a second; the next test's tasks would start and import anew
os.environ["RAY_idle_worker_killing_time_threshold_ms"] = "600000"  # noqa: SIM112
os.environ["AGERAY_STORE_PATIENCE"] = "1"  # no test waits a minute for a store that is away

import signal

import hypothesis
import pytest

# what a shell starts in the background ignores it, and so would the commands that tests interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)

# on a busy machine any example may take a second
hypothesis.settings.register_profile("ageray", deadline=None)
hypothesis.settings.load_profile("ageray")

REAL_FACES = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
_LONGEST = (
    "cluster/test_submit.py",
    "score/test_run.py",
    "score/test_pipeline.py",
    "train/test_run.py",
    "serve/test_app.py",
    "train/test_gallery_run.py",
    "score/test_local.py",
    "tune/test_search.py",
    "evaluate/test_folds.py",
    "evaluate/test_run.py",
    "evaluate/test_results.py",
    "evaluate/test_table.py",
    "train/test_workers.py",
    "train/test_loop.py",
    "train/test_golden.py",
    "train/test_in_memory.py",
    "score/test_join.py",
    "calibrate/test_run.py",
    "export/test_run.py",
    "cluster/test_placement.py",
)
"""Files that take longest, first: processes that begin with them end at about the same time.
Without `--no-loadscope-reorder` xdist begins with the files that have most tests."""


@pytest.hookimpl(tryfirst=True)  # xdist looks for the marks in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Groups the tests for several processes (`make test`): the tests of a file stay together. Each
    process has a Ray of its own once a test needs one (`ray_local`).
    """
    tests = Path(__file__).resolve().parent
    places = {tests / name: place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))
    for item in items:
        item.add_marker(pytest.mark.xdist_group(item.path.relative_to(tests).as_posix()))


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """A local Ray with 4 logical CPUs. With 2, actors can occupy every CPU and wait for ever."""
    import ray

    from ageray import cluster
    from ageray.experiment import Scale

    ray.init(
        address="local",
        num_cpus=4,
        object_store_memory=512 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
    )
    cluster.connect(Scale(progress=False))
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def fgnet() -> Path:
    """FG-NET's folder, for tests that need hand-placed points."""
    folder = REAL_FACES / "fgnet"
    if not folder.is_dir():
        pytest.skip("real faces are not at hand")
    return folder


@pytest.fixture(scope="session")
def utkface() -> Path:
    """UTKFace's folder, for tests that need real labels and their noise."""
    folder = REAL_FACES / "utkface"
    if not folder.is_dir():
        pytest.skip("real faces are not at hand")
    return folder
