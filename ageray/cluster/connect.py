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
from typing import Any

import ray
import ray.data
from ray.exceptions import AuthenticationError
from ray.util.annotations import RayDeprecationWarning

from ageray.cluster.backpressure import SchedulerPause
from ageray.cluster.environment import _SPIN_COUNT
from ageray.errors import UserError
from ageray.experiment import Scale

_PATIENCE_SECONDS = 10.0
_NO_TOKEN = re.compile("[Uu]nauthenticated|AuthToken|AuthenticationError")
_NO_TIME = "timed out during startup"
_STORE = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION")


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
    if SchedulerPause not in data_context.custom_execution_callback_classes:
        data_context.custom_execution_callback_classes.append(SchedulerPause)
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
        ray.init(
            address=address, runtime_env=_passed_on(), log_to_driver=False, logging_level=logging.WARNING
        )
    except (AuthenticationError, ConnectionError, ValueError) as error:
        # Ray tells of a wrong token by its own error or, on the way to one, by the text of what caused another
        if isinstance(error, AuthenticationError) or _NO_TOKEN.search(str(error.__cause__)):
            remedy = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) to its head node's, or submit the command as a job"
            raise UserError(
                f"RAY_ADDRESS={address}: the cluster wants its token and got none or another; {remedy}"
            ) from None
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
    return UserError(
        f"RAY_ADDRESS={address}: no Ray cluster answers there; unset it to run on this machine ({reason})"
    )


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


# --- room -----------------------------------------------------------------------------------------------------------
