"""Joining a Ray cluster, or starting one on this machine; and what the cluster has room for."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import socket
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
import ray.data
import yaml
from ray._private.state import state as ray_state
from ray.exceptions import AuthenticationError
from ray.util.annotations import RayDeprecationWarning

from ageray.errors import UserError
from ageray.experiment import Scale
from ageray.pace import Pace

LASTING = "on_demand"
"""A node that offers this resource stays. Where there are any, training workers go to no other: a spot node may be taken away at any minute."""

_SPIN_COUNT = "2000"
"""How often an OpenMP thread looks for work before it sleeps."""

_KEEPING = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**33)}
_PATIENCE_SECONDS = 10.0
_NO_TOKEN = re.compile("[Uu]nauthenticated|AuthToken|AuthenticationError")
_NO_TIME = "timed out during startup"
_STORE = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION")
_LAUNCHED = Path("~/ray_bootstrap_config.yaml")
"""What `ray up` leaves on the head node, where submitted jobs run: the node types that its autoscaler may start."""


def connect(scale: Scale) -> None:
    """Joins the cluster of RAY_ADDRESS, or starts Ray here with `scale.local_cpus` logical CPUs, unless this process has a Ray already; then
    settles how Ray Data runs in this process.

    Raises UserError if RAY_ADDRESS does not answer, wants a token, or is an address for other uses, and if Ray does not start here in time.
    """
    # OpenMP threads that spin starve everything else on the same cores; asleep at once, they cost a step a tenth. A short spin does neither
    # (docs/benchmarks.md). Processes that Ray starts inherit this.
    os.environ.setdefault("GOMP_SPINCOUNT", _SPIN_COUNT)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if not ray.is_initialized():
        address = _address()
        if address:
            _join(address)
        else:
            _start(scale)
    data_context = ray.data.DataContext.get_current()
    data_context.enable_progress_bars = scale.progress
    if Pace not in data_context.custom_execution_callback_classes:
        data_context.custom_execution_callback_classes.append(Pace)
    if not scale.progress:
        data_context.print_on_execution_start = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
    # Ray's own uses of what it deprecated are not the user's concern
    warnings.filterwarnings("ignore", category=RayDeprecationWarning)


def _start(scale: Scale) -> None:
    """Starts Ray here; a second time if the first took longer than Ray allows, which is a fixed 30 seconds."""
    for last in (False, True):
        try:
            ray.init(
                address="local",
                num_cpus=scale.local_cpus or max(4, os.cpu_count() or 1),
                object_store_memory=scale.object_store_mib * 2**20 or None,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.WARNING,
            )
            return
        except Exception as error:  # Ray raises no narrower one; what it started ends with this process
            if _NO_TIME not in str(error):
                raise
        if last:
            load = f"{os.getloadavg()[0]:.0f} processes want {os.cpu_count()} cores"
            raise UserError(
                f"Ray did not start within its 30 seconds, twice ({load}); give the command again when the machine is less busy"
            )


def _address() -> str | None:
    """RAY_ADDRESS, or None for a Ray of this machine's own. Ray sets it in submitted jobs."""
    address = os.environ.get("RAY_ADDRESS", "").strip()
    return None if address in ("", "local") else address


def _join(address: str) -> None:
    if "://" in address:
        raise UserError(f"RAY_ADDRESS={address}: {_other_use(address)}")
    _answers(address)
    try:
        ray.init(address=address, runtime_env=_passed_on(), log_to_driver=False, logging_level=logging.WARNING)
    except (AuthenticationError, ConnectionError, ValueError) as error:
        # Ray tells of a wrong token by its own error or, on the way to one, by the text of what caused another
        if isinstance(error, AuthenticationError) or _NO_TOKEN.search(str(error.__cause__)):
            remedy = (
                "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) to its head node's, or submit the command as a job"
            )
            raise UserError(f"RAY_ADDRESS={address}: the cluster wants its token and got none or another; {remedy}") from None
        reason = str(error).strip().partition("\n")[0]
        raise _silent(address, reason) from None


def _answers(address: str) -> None:
    """Raises UserError if nothing listens at host:port: Ray would try for minutes."""
    host, colon, port = address.rpartition(":")
    if not colon:
        return  # `auto`
    try:
        socket.create_connection((host.strip("[]"), int(port)), _PATIENCE_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        raise _silent(address, getattr(error, "strerror", None) or str(error)) from None


def _silent(address: str, reason: str) -> UserError:
    return UserError(f"RAY_ADDRESS={address}: no Ray cluster answers there; unset it to run on this machine ({reason})")


def _passed_on() -> dict[str, Any] | None:
    """A runtime environment with where `s3://` is, for processes on other machines; the keys to it are theirs. A job's own environment
    goes first: Ray refuses to be told a variable twice."""
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    told = ((job.get("runtime_env") or {}).get("env_vars")) or {}
    values = {name: os.environ[name] for name in _STORE if name in os.environ and name not in told}
    return {"env_vars": values} if values else None


def _other_use(address: str) -> str:
    """Why an address with a scheme cannot be joined, and the command to give instead."""
    command = shlex.join(["python", *sys.orig_argv[1:]])
    if address.startswith("ray://"):
        return f"Ray Client cannot carry these commands; run it as a job: ray job submit --address http://HEAD:8265 --working-dir . -- {command}"
    return f"takes jobs and cannot be joined; submit the command: ray job submit --address {address} --working-dir . -- {command}"


# --- processes that compute -----------------------------------------------------------------------------------------


def environment(on_gpu: bool = False) -> dict[str, str]:
    """Variables for a process that holds a network, on whichever node Ray starts it; the caller's own values where it has any.

    What a batch frees, glibc gives back to the system, and the next batch touches every page anew: on CPUs a quarter to a third of the model's
    time in scoring, and a twelfth of a training step of `dhaa` (docs/benchmarks.md). So what is freed is kept there; and in one arena, as those
    of threads are too small for large tensors. With a GPU the tensors are elsewhere, and glibc's defaults stay.
    """
    wanted = {"GOMP_SPINCOUNT": _SPIN_COUNT} if on_gpu else {"GOMP_SPINCOUNT": _SPIN_COUNT, **_KEEPING}
    return {name: os.environ.get(name, value) for name, value in wanted.items()}


# --- room -----------------------------------------------------------------------------------------------------------


def nodes() -> list[dict[str, float]]:
    """Resources of each node of the connected cluster at its largest: the nodes that are there or, where an autoscaler may start more, as
    many of each type as it may start."""
    there = [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    may_come = list(_may_come())
    return may_come if _sum(may_come, "CPU") > _sum(there, "CPU") or _sum(may_come, "GPU") > _sum(there, "GPU") else there


def check_fits(what: str, workers: int, needs: dict[str, float], beside: float = 0) -> None:
    """Raises UserError if the cluster could never hold so many workers of such needs at once and `beside` logical CPUs for other work: Ray
    would wait for room for ever. `what` names the setting and its value."""
    largest = nodes()
    fit = holds(largest, needs)
    cpus = _sum(largest, "CPU")
    each = " and ".join(f"{amount:g} {name}" for name, amount in needs.items() if amount and name != LASTING)
    if fit < workers:
        on = f" on nodes that offer {LASTING}" if needs.get(LASTING) else ""
        raise UserError(
            f"{what}: {workers} of {each} do not fit{on}; the cluster's {len(largest)} nodes hold {fit} at most; lower it or add nodes"
        )
    if workers * needs.get("CPU", 0) + beside > cpus:
        raise UserError(
            f"{what}: {workers} of {each} leave less than {beside:g} of {cpus:g} logical CPUs to read data; lower it or add nodes"
        )


def holds(nodes: list[dict[str, float]], needs: dict[str, float]) -> int:
    """How many workers of such needs, each on one node, the nodes hold at once."""
    return sum(_holds(node, needs) for node in nodes)


def lasting(needs: dict[str, float]) -> dict[str, float]:
    """The needs of a training worker, which is to run on nodes that stay where the cluster tells those from spot nodes."""
    return needs | {LASTING: 0.001} if any(LASTING in node for node in nodes()) else needs


def _may_come() -> Iterator[dict[str, float]]:
    """Resources of every node that an autoscaler may have running at once, the head's included; none where there is no autoscaler."""
    told = ray_state.get_cluster_config() if ray.is_initialized() else None  # by autoscaler v2, so by KubeRay's too
    if told is not None:
        for group in told.node_group_configs:
            yield from [dict(group.resources)] * group.max_count
    elif _address() and _LAUNCHED.expanduser().is_file():
        yield from _launched(yaml.safe_load(_LAUNCHED.expanduser().read_text()))


def _launched(config: dict[str, object]) -> Iterator[dict[str, float]]:
    """The nodes of a `cluster.yaml` at their most: its head, and of each type as many as `max_workers` allows."""
    types, head = config["available_node_types"], config["head_node_type"]
    assert isinstance(types, dict)
    for name, kind in types.items():
        yield from [dict(kind["resources"])] * (1 if name == head else int(kind.get("max_workers", config["max_workers"])))


def _holds(node: dict[str, float], needs: dict[str, float]) -> int:
    return int(min((node.get(name, 0) / amount + 1e-6 for name, amount in needs.items() if amount), default=0))


def _sum(nodes: list[dict[str, float]], name: str) -> float:
    return sum(node.get(name, 0) for node in nodes)
