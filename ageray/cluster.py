"""Joining a Ray cluster, or starting one on this machine."""

from __future__ import annotations

import logging
import os
import time
import warnings

import ray
import ray.data
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.util.annotations import RayDeprecationWarning

from ageray.errors import UserError
from ageray.experiment import Scale

_REST_SECONDS = 0.02


class Pace(ExecutionCallback):
    """Rests between two steps of Ray Data's scheduling loop.

    While blocks wait for a slow consumer the loop does not block: it spins, takes most of a core from a 2-core machine, and where it runs
    inside a training worker, the interpreter lock too (measured: training at half its speed).
    """

    def on_execution_step(self, executor: object) -> None:
        """Called by Ray Data after each step."""
        time.sleep(_REST_SECONDS)


def connect(scale: Scale) -> None:
    """Joins the cluster of RAY_ADDRESS, or starts Ray here with `scale.local_cpus` logical CPUs; does nothing if Ray runs already.

    Raises UserError if RAY_ADDRESS does not answer.
    """
    # Spinning OpenMP threads starve everything else on the same cores; processes that Ray starts inherit this.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS")
    if address:
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
        except ConnectionError as error:
            raise UserError(f"RAY_ADDRESS={address}: no Ray cluster answers there; unset it to run on this machine ({error})") from None
    else:
        ray.init(
            num_cpus=scale.local_cpus or max(4, os.cpu_count() or 1),
            object_store_memory=scale.object_store_mib * 2**20 or None,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    data_context = ray.data.DataContext.get_current()
    data_context.enable_progress_bars = scale.progress
    if Pace not in data_context.custom_execution_callback_classes:
        data_context.custom_execution_callback_classes.append(Pace)
    if not scale.progress:
        data_context.print_on_execution_start = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
    # Ray's own uses of what it deprecated are not the user's concern
    warnings.filterwarnings("ignore", category=RayDeprecationWarning)
