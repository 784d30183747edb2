"""Stages whose process dies on some photos, for the tests of a pool."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pyarrow as pa

from ageray.stages.both import Stages

FATAL, ONCE = "fatal.jpg", "once.jpg"


class FrailStages(Stages):
    """Dies on FATAL always, and on ONCE if there is no file of that name with `.died` behind it."""

    def __call__(self, task: tuple[pa.Table, int]) -> pa.Table:
        photos, deaths = task
        for image in photos.column("image").to_pylist():
            mark = Path(f"{image}.died")
            if image.endswith(ONCE) and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if image.endswith(FATAL) and deaths < 2:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(task)


def make_stages(*arguments: Any) -> FrailStages:
    """As `ageray.score.local.make_stages`."""
    return FrailStages(*arguments)
