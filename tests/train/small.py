"""A small training that has ended, the mistake that ends one, and the processes of one."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from ageray import config
from ageray.commands import train as job
from ageray.errors import UserError
from ageray.experiment import Experiment
from ageray.train import plan
from ageray.train import run as train_run

BROKEN = 12  # rows whose picture cannot be decoded
Record = dict[str, Any]


class Run:
    """A finished run: its settings, plan and folder, and the records that it showed."""

    def __init__(
        self, file: Path, runs: Path, *words: str, watch: Callable[[Path], None] | None = None
    ) -> None:
        self.experiment: Experiment = config.load([str(file)], [f"scale.runs={runs}", *words])
        self.plan = plan.make(self.experiment)
        self.folder, self.shown, self.started_with = Path(self.plan.folder), list[Record](), list[bytes]()
        watcher = threading.Thread(target=watch, args=(self.folder,)) if watch else None
        if watcher:
            watcher.start()
        train_run.train(self.experiment, self.plan, self._show)
        if watcher:
            watcher.join()

    def _show(self, record: Record) -> None:
        with suppress(OSError):  # a process that ended while it was looked at: the next record finds them
            self.started_with = self.started_with or [
                Path(f"/proc/{pid}/environ").read_bytes() for pid in trainers(os.getpid())
            ]
        self.shown.append(record)

    @property
    def log(self) -> list[Record]:
        return [json.loads(line) for line in (self.folder / "log.jsonl").read_text().splitlines()]


def last_state(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(folder / "state.pt", weights_only=True)
    return state


def labelled(shards: Path) -> list[Record]:
    return [
        row
        for file in sorted(shards.glob("*.parquet"))
        for row in pq.read_table(file, columns=["key", "subject", "age"]).to_pylist()
    ]


def mistake(settings: Path, runs: Path, *words: str) -> str:
    with pytest.raises(UserError) as caught:
        job.main([str(settings), f"scale.runs={runs}", *words])
    assert "\n" not in str(caught.value)
    return str(caught.value)


def descendants(pid: int) -> list[int]:
    """A process's children and theirs."""
    processes: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            processes += [child, *descendants(child)]
    return processes


def trainers(pid: int, word: bytes = b"RayTrainWorker") -> list[int]:
    """Training workers, or processes with another word in their names, among a process's
    descendants.
    """
    return [child for child in descendants(pid) if word in Path(f"/proc/{child}/cmdline").read_bytes()]
