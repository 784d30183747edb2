"""What a process that holds a network is started with."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import ray

from ageray import cluster
from ageray.cluster.actors import ActorPool
from ageray.train.in_memory.slots import TaskSlots

ROUNDS = 20
MEASURED = f"""
import resource, threading, torch

def steps():
    for _ in range(10):  # the first ones still grow the heap
        torch.ones(2**24)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range({ROUNDS}):
        torch.ones(2**24)  # 64 MiB, used and freed
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

thread = threading.Thread(target=steps)  # where Ray Train runs its function
thread.start()
thread.join()
"""


def faults(more: dict[str, str]) -> int:
    bare = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))
    }
    output = subprocess.run(
        [sys.executable, "-c", MEASURED], env=bare | more, capture_output=True, text=True, check=True
    ).stdout
    return int(output)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="variables of glibc")
def test_freed_memory_is_used_again() -> None:
    reused, returned = faults(cluster.environment()), faults({})
    assert returned > ROUNDS * 16  # pages may be of 2 MiB
    assert reused < returned / 10


def test_the_callers_own_values_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    monkeypatch.setenv("MALLOC_ARENA_MAX", "3")
    for on_gpu in (False, True):
        assert cluster.environment(on_gpu)["GOMP_SPINCOUNT"] == "7"
    assert cluster.environment()["MALLOC_ARENA_MAX"] == "3"


def test_beside_a_gpu_the_system_keeps_its_defaults() -> None:
    assert not [name for name in cluster.environment(on_gpu=True) if name.startswith("MALLOC_")]


def test_folds_and_actors_are_started_with_them(ray_local: None) -> None:
    fold = TaskSlots(folds=1, cpus=1, gpus=0, threads=1).task(lambda: dict(os.environ))
    assert cluster.environment().items() <= ray.get(fold.remote()).items()
    for gpus in (0, 1):
        assert ActorPool(1, 1, gpus, 0).options() == {
            "num_cpus": 1,
            "num_gpus": gpus,
            "max_restarts": cluster.LOSSES,
            "runtime_env": {"env_vars": cluster.environment(gpus == 1)},
        }
