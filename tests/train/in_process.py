"""Ray Train with the worker in this process (its local mode) and the same Ray Data.

Saves 20 CPU seconds a run: five processes of Ray Train's and a worker that imports torch. Runs with
a worker's process are in train/test_run.py and cluster/test_submit.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import ray.train
from ray.train import ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution import train_fn_utils

from ageray.train import run


class LocalTrainer(TorchTrainer):
    def fit(self) -> ray.train.Result:
        try:
            return super().fit()
        except Exception as error:  # what Ray Train raises for a worker that failed
            raise TrainingFailedError(str(error)) from error


@contextmanager
def in_process() -> Iterator[None]:
    """Training that begins here needs no further processes but Ray Data's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "TorchTrainer", LocalTrainer)
        patch.setattr(run, "_scaling", lambda experiment: ScalingConfig(num_workers=0, use_gpu=False))
        patch.setattr(train_fn_utils, "_train_fn_utils", None)  # None again afterwards
        yield
