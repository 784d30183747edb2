"""Who does a command's work: a pool of processes on this machine, or Ray.

Ray takes 8 to 10 seconds to start and to end, and needs CPU time of its own while it runs. Without
a cluster it adds nothing that the pool lacks, except that it shares a GPU (docs/benchmarks.md).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Literal

from ageray.errors import UserError
from ageray.experiment import Scale
from ageray.machine.cpus import usable_cpus

Engine = Literal["local", "ray"]

_PHOTOS_BESIDE_A_GPU = 500
"""Photos a CPU that the pool takes from a machine with a GPU. A face takes the model 10 to 20 ms on
a CPU. So the GPU saves the time of Ray's start with about 700 photos a CPU (docs/benchmarks.md)."""


def choose(scale: Scale, photos: int) -> Engine:
    """The engine of `scale.engine`. `auto` takes the pool if `may_be_local`, except for much work
    on a machine with a GPU.

    photos: how many there are, about. Raises UserError if the settings exclude each other.
    """
    if not may_be_local(scale):
        return "ray"
    if scale.engine == "local":
        return "local"
    on_gpu = scale.gpu == "auto" and _has_gpu()
    if on_gpu and photos > _PHOTOS_BESIDE_A_GPU * usable_cpus():
        return "ray"
    return "local"


def may_be_local(scale: Scale) -> bool:
    """Whether the pool may get the work, however much it is.

    With `auto` it does not if RAY_ADDRESS names a cluster (Ray sets it in submitted jobs), if this
    process has joined a Ray already, or if a GPU is asked for.
    """
    if scale.engine == "local" and scale.gpu is True:
        raise UserError("scale.engine=local computes on CPUs; for scale.gpu=true use scale.engine=ray")
    if scale.engine == "local" and scale.detect == "gpu":
        raise UserError("scale.engine=local computes on CPUs; for scale.detect=gpu use scale.engine=ray")
    if scale.engine != "auto":
        return scale.engine == "local"
    return not (cluster_address() or _has_joined() or scale.gpu is True or scale.detect == "gpu")


def cluster_address() -> str | None:
    """RAY_ADDRESS, which Ray sets in submitted jobs; None for a Ray of this machine's own."""
    address = os.environ.get("RAY_ADDRESS", "").strip()
    if address in ("", "local"):
        return None
    return address


def _has_joined() -> bool:
    """Whether this process has a Ray. Does not import Ray to find out."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def _has_gpu() -> bool:
    """Whether there is a GPU of NVIDIA that this process may use."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    return any(Path("/dev").glob("nvidia[0-9]*"))
