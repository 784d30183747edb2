"""Every table of configs/tables, trained and tested to the end at the official sizes of its sets.

    python benchmarks/tables.py DIR [FILE...] [--folds 3] [--share 1.0] [--all-rows]

The sets are fabricated: labels of the official layout, one small picture for all faces. So that the
networks cost little, a row trains two steps at 32 pixels (72 where the row says so) on a stand-in:
MobileNetV1 for a published backbone, a sixteenth of the width for DHAA and the residual networks.
Networks without normalisation start from small random weights, as two steps of the papers' rates
would take others to infinity.
Sets, splits, protocols, galleries, predictions, reports and pages have their full size. Of a
protocol with many folds, and of repeated splits, the first `--folds` run. Of each file the first
row of each recipe runs; `--all-rows` runs all. `--share` scales the sizes of the sets.

Printed for each file: cells, trainings, seconds, and the most memory of this process with its Ray
workers (proportional set size, which counts shared pages once). DIR keeps the sets and the results;
files with results are passed over.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ageray import cluster
from ageray.config.paper_table import plan_table, read_table
from ageray.data import protocols
from ageray.evaluate import table as tables
from ageray.experiment import Scale
from ageray.experiment.paper_table import Column, PaperTable, Row
from ageray.models.googlenet import GoogLeNet
from ageray.models.mobilenet import MobileNetV1
from tests.evaluate.official_sets import ROOT, SIZES, fabricated

_STEPS = 2
_SECONDS_BETWEEN = 1.0
_MACHINE = {
    "gpu": False,
    "threads": 1,
    "progress": False,
    "parallel_trainings": 1,
    "object_store_mib": 1200,
    "local_cpus": 4,
    "cpus_per_worker": 1,
}
_SHORT = ["align.size=32", "train.precision=float32", f"train.stages.0.steps={_STEPS}"]
_STAND_INS = {
    "baseline": ["model.backbone=mobilenet_v1", "model.weights={mobilenet}"],
    "dhaa": ["model.width=0.0625", "model.weights=none"],
    "cluster_cnn": ["model.weights={googlenet}"],
    "deep_embedding": ["model.backbone=mobilenet_v1", "model.weights={mobilenet}"],
    "neighborhood": ["model.width=0.0625", "model.weights=none"],
    "siamese": ["model.backbone=mobilenet_v1", "model.weights={mobilenet}"],
}


def _small_weights(folder: Path) -> dict[str, Path]:
    """Files of random weights whose first layer is a hundredth, by network."""
    files = {name: folder / f"{name}.safetensors" for name in ("googlenet", "mobilenet")}
    torch.manual_seed(0)
    layers = {name.removeprefix("layers."): tensor for name, tensor in GoogLeNet().state_dict().items()}
    layers["conv1_7x7_s2.weight"] /= 100
    save_file(layers, files["googlenet"])
    layers = MobileNetV1().state_dict()
    layers["conv1.weight"] /= 100
    save_file(layers, files["mobilenet"])
    return files


class MemoryPeak:
    """The most memory of this process and its children, in bytes, sampled once a second."""

    def __init__(self) -> None:
        self.bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemoryPeak:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        own = psutil.Process()
        while not self._stop.wait(_SECONDS_BETWEEN):
            total = 0
            for process in (own, *own.children(recursive=True)):
                total += _proportional_bytes(process.pid)
            self.bytes = max(self.bytes, total)


def _proportional_bytes(pid: int) -> int:
    """The proportional set size of a process, 0 if it has ended."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    for line in text.splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def _shortened(table: PaperTable, recipe: str, all_rows: bool, most: int) -> PaperTable:
    """The rows of a recipe, with short stages on other sets and at most so many repeats."""
    rows = list[Row]()
    for row in table.rows:
        if row.recipe == recipe and (all_rows or not rows):
            rows.append(row)
    names = {row.name for row in rows}
    for place, row in enumerate(rows):
        if row.control not in names:
            rows[place] = row.model_copy(update={"control": None})
    columns = list[Column]()
    for column in table.columns:
        column = column.model_copy(update={"repeats": min(column.repeats, most)})
        if column.pretraining is not None:
            stage = column.pretraining.model_copy(update={"overrides": (f"steps={_STEPS}",)})
            column = column.model_copy(update={"pretraining": stage})
        columns.append(column)
    return table.model_copy(update={"rows": tuple(rows), "columns": tuple(columns)})


def _first_folds(most: int) -> None:
    """Protocols have at most so many folds from now on."""
    every = protocols.folds
    protocols.folds = lambda *arguments: every(*arguments)[:most]


def run(file: Path, folder: Path, sets: dict[str, str], all_rows: bool, most: int) -> dict[str, Any]:
    """Trains and tests a table; returns what is printed."""
    table, cells, trainings, start = read_table(str(file)), 0, 0, time.perf_counter()
    machine = folder / "machine.yaml"
    machine.write_text(yaml.safe_dump({"scale": {**_MACHINE, "runs": str(folder / "runs")}}))
    weights = _small_weights(folder)
    with MemoryPeak() as peak:
        for recipe in dict.fromkeys(row.recipe for row in table.rows):
            part = _shortened(table, recipe, all_rows, most)
            words = [*_SHORT, *(word.format(**weights) for word in _STAND_INS[Path(recipe).stem])]
            plan = plan_table(part, str(file), sets, [str(machine)], words)
            estimates = tables.estimate(plan, print, measure=False)
            name = f"{file.stem}-{Path(recipe).stem}"
            result = tables.run_table(plan, estimates, name, str(folder / "out"), lambda record: None)
            for row in result["rows"]:
                for cell in row["cells"]:
                    if cell is not None and not cell["missing"]:
                        assert cell["ours"] is not None, (file, row["name"])
                        cells += 1
            trainings += sum(each.cost.trainings for each in estimates)
    seconds = time.perf_counter() - start
    return {
        "file": file.stem,
        "cells": cells,
        "trainings": trainings,
        "seconds": round(seconds),
        "peak_gib": round(peak.bytes / 2**30, 2),
    }


def main() -> None:
    """Runs the files and prints a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", metavar="DIR", type=Path)
    parser.add_argument("files", metavar="FILE", nargs="*", type=Path)
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--all-rows", action="store_true")
    arguments = parser.parse_args()
    folder: Path = arguments.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    sets = {}
    for name, count in SIZES.items():
        file = folder / f"{name}.yaml"
        if not file.exists():
            shutil.rmtree(folder / "shards" / name, ignore_errors=True)
            fabricated(folder, name, max(1002, round(arguments.share * count)), size=48)
        sets[name] = str(file)
    _first_folds(arguments.folds)
    cluster.connect(Scale.model_validate(_MACHINE))
    results = folder / "results.jsonl"
    lines = results.read_text().splitlines() if results.exists() else []
    done = {json.loads(line)["file"] for line in lines}
    for file in arguments.files or sorted((ROOT / "configs" / "tables").glob("*.yaml")):
        if file.stem in done or not read_table(str(file)).sets():
            continue
        line = json.dumps(run(file, folder, sets, arguments.all_rows, arguments.folds))
        print(line, flush=True)
        with results.open("a") as sink:
            sink.write(line + "\n")


if __name__ == "__main__":
    main()
