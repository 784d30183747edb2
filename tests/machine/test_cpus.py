"""CPUs are counted as a container has them, not as its host has."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import ray
import torch

from ageray import bundle, cluster
from ageray.experiment import Scale
from ageray.machine.cpus import usable_cpus
from ageray.predictor import Predictor


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host of 64 CPUs, of which this process may use 8."""
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "250000 100000\n"}, 3),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "5000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "6400000 100000\n"}, 8),
        (  # the limit of a pod is above its container's own group
            {
                "proc/self/cgroup": "0::/pod/one\n",
                "sys/fs/cgroup/pod/one/cpu.max": "max 100000\n",
                "sys/fs/cgroup/pod/cpu.max": "400000 100000\n",
            },
            4,
        ),
        (  # the path is the host's
            {"proc/self/cgroup": "0::/docker/1a2b\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"},
            2,
        ),
        (
            {
                "proc/self/cgroup": "3:cpuset:/\n1:cpu,cpuacct:/docker/1a2b\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "150000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            2,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            8,
        ),
    ],
)
def test_affinity_and_quota(files: dict[str, str], expected: int, tmp_path: Path) -> None:
    write(tmp_path, files)
    assert usable_cpus(tmp_path) == expected


def test_without_affinity_all_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")  # macOS
    assert usable_cpus(tmp_path) == 64


def test_ray_and_a_model_take_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    options: dict[str, object] = {}
    monkeypatch.setattr(ray, "init", lambda **given: options.update(given))
    sys.modules[cluster.connect.__module__]._start(Scale())
    assert options["num_cpus"] == 4  # fewer could wait for each other
    before = torch.get_num_threads()
    try:
        Predictor(bundle.load("zoo:default"))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
