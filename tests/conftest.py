"""Shared fixtures: one local Ray for the whole run, real faces where they are at hand."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# oneDNN's barriers spin: on two busy cores a step with two threads takes many times as long
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["RAY_AUTH_MODE"] = "disabled"

import hypothesis
import pytest

# on a busy machine any example may take a second
hypothesis.settings.register_profile("ageray", deadline=None)
hypothesis.settings.load_profile("ageray")

ON_RAY = "ray_local"
REAL_FACES = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"


@pytest.hookimpl(tryfirst=True)  # xdist looks for the marks in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Groups the tests for two processes (`-n 2 --dist loadgroup`). One process runs the files that
    need Ray, which often wait; the tests of a file stay together."""
    with_ray = {item.path for item in items if ON_RAY in getattr(item, "fixturenames", ())}
    for item in items:
        item.add_marker(pytest.mark.xdist_group("ray" if item.path in with_ray else item.path.stem))


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
