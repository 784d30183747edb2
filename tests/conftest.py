"""Shared fixtures: one local Ray for the whole run, real faces where they are at hand."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["RAY_AUTH_MODE"] = "disabled"

import pytest

REAL_FACES = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """A Ray on this machine with 4 logical CPUs: with 2, actors can hold every CPU and wait for ever."""
    import ray

    ray.init(num_cpus=4, object_store_memory=512 * 2**20, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
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
