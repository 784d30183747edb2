"""Joining the Ray cluster of RAY_ADDRESS, or starting Ray on this machine."""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import shlex
import signal
import socket
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import ray.data
from ray.exceptions import AuthenticationError
from ray.util.annotations import RayDeprecationWarning

from ageray.cluster.backpressure import SchedulerPause
from ageray.errors import UserError
from ageray.experiment import Scale
from ageray.machine.cpus import usable_cpus
from ageray.machine.engine import cluster_address
from ageray.machine.environment import SPIN_COUNT

LOSSES = 20
"""How often a task or an actor of Ray Data begins again after its process was lost.

Ray does not count nodes that announce their end. Ray Data's own number has no limit: where one
process has too little memory, a command would go on for ever.
"""

_CONNECT_SECONDS = 10.0
_HEAD_PERIOD = 1.5  # seconds between two looks at the head node
_NO_TOKEN = re.compile("[Uu]nauthenticated|AuthToken|AuthenticationError")
_SOCKET = "ray/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store"
_LONGEST_SOCKET = 103  # bytes of a socket's path, on every system
_SETS_HANDLER = "set_sigterm_handler"  # in ray._private.utils
_TIMED_OUT = "timed out during startup"
_STORE = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION")


def connect(scale: Scale) -> None:
    """Joins the cluster of RAY_ADDRESS, or starts Ray here with `scale.local_cpus` logical CPUs.

    Does neither if this process has a Ray already. Then configures Ray Data for this process.
    Raises UserError if RAY_ADDRESS does not answer, needs a token or cannot be joined, and if Ray
    does not start here in time.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)  # processes that Ray starts inherit it
    os.environ.setdefault("RAY_task_oom_retries", str(LOSSES))  # where Ray ends processes, not the kernel
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray Data's actor for statistics fails every few seconds in the run after one whose driver died
    # on the same cluster. The commands raise the errors of their own tasks themselves.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    if not ray.is_initialized():
        address = cluster_address()
        with _signals_wait():
            if address:
                _join(address)
                _watch_head(ray.get_runtime_context().gcs_address)
            else:
                _start(scale)
    data_context = ray.data.DataContext.get_current()
    # the commands show progress of their own
    data_context.enable_progress_bars = data_context.print_on_execution_start = False
    if SchedulerPause not in data_context.custom_execution_callback_classes:
        data_context.custom_execution_callback_classes.append(SchedulerPause)
    for name in ("ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Ray itself uses what it has deprecated.
    warnings.filterwarnings("ignore", category=RayDeprecationWarning)


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Delays SIGINT and SIGTERM until Ray has started or is joined. This program's handlers stay.

    An exception in the midst of `ray.init` aborts the process (SIGABRT) later, or is lost, since
    Python ignores it in the callbacks of a fork. Ray's own handler of SIGTERM would end the process
    without a word on what is kept, so Ray sets none. A second SIGINT ends at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers: list[int] = []

    def note(number: int, _: object) -> None:
        numbers.append(number)
        if numbers.count(signal.SIGINT) > 1:
            raise KeyboardInterrupt

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    setter = getattr(ray._private.utils, _SETS_HANDLER, None)
    setattr(ray._private.utils, _SETS_HANDLER, lambda handler: None)
    for number in handlers:
        signal.signal(number, note)
    try:
        yield
    finally:
        if setter is not None:
            setattr(ray._private.utils, _SETS_HANDLER, setter)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if numbers:
            signal.raise_signal(numbers[0])


def _start(scale: Scale) -> None:
    """Starts Ray here. Ray allows a start 30 seconds; after that time it is tried once more."""
    _provide_token()
    for last in (False, True):
        try:
            ray.init(
                address="local",
                _temp_dir=_short_folder(),
                num_cpus=scale.local_cpus or max(4, usable_cpus()),
                object_store_memory=scale.object_store_mib * 2**20 or None,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
            return
        except Exception as error:  # Ray has no narrower class for it; what it started ends with this process
            if _TIMED_OUT not in str(error):
                raise
        if last:
            load = f"{os.getloadavg()[0]:.0f} processes want {usable_cpus()} cores"
            remedy = "give the command again when the machine is less busy"
            raise UserError(f"Ray did not start within its 30 seconds, twice ({load}); {remedy}")


def _provide_token() -> None:
    """Gives Ray a token of this run, if it could not write one to the home folder: a container may
    run as a user without one."""
    if any(name in os.environ for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
        return
    home = Path(os.path.expanduser("~"))  # noqa: PTH111  # `Path.home` raises where there is none
    folder = home / ".ray"
    writable = os.access(folder if folder.exists() else home, os.W_OK)
    if not writable and not (folder / "auth_token").is_file():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _short_folder() -> str | None:
    """A folder for Ray's sockets, if the usual one has a path too long for them; else None."""
    usual = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    if len(str(Path(usual, _SOCKET))) <= _LONGEST_SOCKET:
        return None
    short = Path("/tmp", f"ray-{os.getuid()}")
    if not os.access("/tmp", os.W_OK):
        remedy = "set RAY_TMPDIR to a folder with a shorter path"
        raise UserError(f"TMPDIR={usual}: too long for Ray's sockets, and /tmp cannot be written; {remedy}")
    return str(short)


def _join(address: str) -> None:
    if "://" in address:
        raise UserError(f"RAY_ADDRESS={address}: {_why_not_joined(address)}")
    _check_listening(address)
    try:
        ray.init(
            address=address,
            runtime_env=_runtime_environment(),
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (AuthenticationError, ConnectionError, ValueError) as error:
        # A wrong token is an error of its own, or else stands in the text of the cause.
        if isinstance(error, AuthenticationError) or _NO_TOKEN.search(str(error.__cause__)):
            remedy = (
                "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) to its head node's, "
                "or submit the command as a job"
            )
            raise UserError(
                f"RAY_ADDRESS={address}: the cluster wants its token and got none or another; {remedy}"
            ) from None
        reason = str(error).strip().partition("\n")[0]
        raise _no_answer(address, reason) from None


def _watch_head(address: str) -> None:
    """Starts a thread that says so when the head node is gone: Ray ends the process a minute later,
    often without a word. address: host:port of the head's control service.
    """
    host, _, port = address.rpartition(":")

    def watch() -> None:
        missed = 0
        while missed < 2:
            time.sleep(_HEAD_PERIOD)
            if not ray.is_initialized():
                return
            try:
                socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
                missed = 0
            except OSError:
                missed += 1
        print(
            f"\nnote: the cluster's head node ({address}) does not answer; if it stays away, Ray ends this "
            "command within about a minute. What is finished is kept: give the command to another cluster",
            file=sys.stderr,
            flush=True,
        )

    threading.Thread(target=watch, name="head", daemon=True).start()


def _check_listening(address: str) -> None:
    """Raises UserError if nothing listens at host:port. Ray would try for minutes."""
    host, colon, port = address.rpartition(":")
    if not colon:
        return  # `auto`
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        raise _no_answer(address, getattr(error, "strerror", None) or str(error)) from None


def _no_answer(address: str, reason: str) -> UserError:
    remedy = "unset it to run on this machine"
    return UserError(f"RAY_ADDRESS={address}: no Ray cluster answers there; {remedy} ({reason})")


def _runtime_environment() -> dict[str, Any] | None:
    """A runtime environment that tells processes on other machines where `s3://` is, but not the
    keys to it.

    Variables that the job's own environment sets are left out: Ray refuses a variable that is set
    twice.
    """
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    of_job = (job.get("runtime_env") or {}).get("env_vars") or {}
    variables = {}
    for name in _STORE:
        if name in os.environ and name not in of_job:
            variables[name] = os.environ[name]
    return {"env_vars": variables} if variables else None


def _why_not_joined(address: str) -> str:
    """Why an address with a scheme cannot be joined, and the command to give instead."""
    words = sys.orig_argv[1:]
    if words and Path(words[0]).name == "ageray":  # the console command has no place in a job's environment
        words = ["-m", "ageray", *words[1:]]
    command = shlex.join(["python", *words])
    submit = "ray job submit --address {} --working-dir . -- {}"
    if address.startswith("ray://"):
        job = submit.format("http://HEAD:8265", command)
        return f"Ray Client cannot carry these commands; run it as a job: {job}"
    return f"takes jobs and cannot be joined; submit the command: {submit.format(address, command)}"
