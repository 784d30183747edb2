"""Training speed: faces streamed by Ray Data into a Ray Train worker, against one batch in memory,
against a plain loop with a DataLoader.

    python benchmarks/train.py [SHARDS] [--faces 768] [--repeat 1] [--rounds 3] [--threads 0]
                               [--recipe default dhaa] [key=value ...]

Three contenders take turns, an epoch each, in every round: `streamed`, what ageray train does on
one worker; `memory`, the same worker on one batch in memory, which needs no data at all; `loader`,
a process without Ray, whose DataLoader workers (all cores but one, or --loaders) decode with the
same code, from encoded faces in memory to batches in shared memory, two prefetched a worker. All
run `ageray.train.loop.train_one_epoch`: the same warp, changes and network.

A rate is that of an epoch from its second step on; `start` is how long the first batch takes.
Without SHARDS, faces are drawn. On a machine whose cores both decode and train, decoding takes its
share of them; where a GPU trains it does not.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.util.queue import Empty, Queue
from torch.utils.data import DataLoader, Dataset

from ageray import cluster, config, storage
from ageray.data.stream import decode_rows
from ageray.experiment import Experiment
from ageray.synthetic import faces as synthetic_faces
from ageray.train import plan as planning
from ageray.train import sampler
from ageray.train.loader import Streams, sources
from ageray.train.loop import Columns, train_one_epoch
from ageray.train.plan import Plan
from ageray.train.state import State, new_state

ROOT = Path(__file__).resolve().parents[1]
_COLUMNS = ["key", "image", "landmarks", "box", "age", "subject", "gender", "dataset"]
Turn = dict[str, float]


def timed(state: State, batches: Iterable[Columns]) -> Turn:
    """One epoch: images a second from the second step on, seconds to the first batch's end,
    resident memory in MiB.
    """
    started, ends = time.perf_counter(), list[float]()
    train_one_epoch(state, batches, lambda step, images: ends.append(time.perf_counter()))
    state.epoch += 1
    size = state.config.train.batch_size
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    rate = size * (len(ends) - 1) / (ends[-1] - ends[0])
    return {"rate": rate, "start": ends[0] - started, "mib": pages * os.sysconf("SC_PAGE_SIZE") / 2**20}


def begin(experiment: Experiment, plan: Plan, threads: int) -> State:
    """A network before its first step. Centroids stay random: they cost the same."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(threads)
    state = new_state(experiment, device)
    state.start_stage(0, 10 * plan.steps[0])
    return state


def serve(settings: dict[str, Any]) -> None:
    """The Ray Train worker: receives names of contenders by a queue, runs a turn of each and sends
    its figures back. None ends it.
    """
    experiment, plan = Experiment.model_validate(settings["experiment"]), settings["plan"]
    state, streams = begin(experiment, plan, settings["threads"]), Streams(experiment, plan, settings["rows"])
    batch = next(iter(streams.training(state).batches))
    while (name := settings["requests"].get()) is not None:
        if name == "memory":
            settings["answers"].put(timed(state, [batch] * plan.steps[0]))
        else:
            faces = streams.training(state)
            turn = timed(state, faces.batches)
            settings["answers"].put(turn | {"waited": faces.batches.waited})


def answer(answers: Queue, running: Thread) -> Turn:
    """The figures of the worker's turn. Exits if the worker has failed, after Ray printed why."""
    while running.is_alive():
        with suppress(Empty):
            return answers.get(timeout=1)  # type: ignore[no-any-return]
    raise SystemExit("error: the worker of `streamed` and `memory` ended before its turn; see above")


class Faces(Dataset[Columns]):
    """Batches of faces, encoded in memory, decoded when asked for."""

    def __init__(self, table: pa.Table, align: dict[str, Any]) -> None:
        self._table, self._align = table, align

    def __getitem__(self, rows: list[int]) -> Columns:
        columns = decode_rows(self._table.take(pa.array(rows)), self._align)
        tensors = {}
        for name, values in columns.items():
            if values.dtype != object:
                tensors[name] = torch.from_numpy(values)
        return tensors


class Plain:
    """The plain loop with its DataLoader, in this process."""

    def __init__(self, experiment: Experiment, plan: Plan, threads: int, workers: int) -> None:
        self._state, self._plan = begin(experiment, plan, threads), plan
        tables = []
        for file in storage.list_files(str(experiment.data.shards)):
            if file.endswith(".parquet"):
                tables.append(pq.read_table(file, columns=_COLUMNS))
        table = pa.concat_tables(tables)
        faces = plan.faces["stage-0"].lookup().find(table.column("key").to_pylist())
        self._faces = Faces(
            table.filter(pa.array(faces >= 0)).combine_chunks(), experiment.align.model_dump(mode="json")
        )
        self._order: list[list[int]] = []
        self._loader = DataLoader(
            self._faces,
            sampler=self._order,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=2,
            persistent_workers=True,
            pin_memory=self._state.device.type == "cuda",
            multiprocessing_context="spawn",
        )

    def turn(self) -> Turn:
        train = self._state.config.train
        rows = sampler.shuffled(self._plan.faces["stage-0"], train.shuffle, (train.seed, self._state.epoch))
        self._order[:] = sampler.share(rows, train.batch_size).tolist()
        return timed(self._state, self._loader)


def repeated(shards: str, times: int, folder: Path) -> str:
    """Writes shards with each face `times` times under different keys, for a longer epoch from few
    faces; returns the folder.
    """
    for file in storage.list_files(shards):
        if file.endswith(".parquet"):
            table = pq.read_table(file)
            for turn in range(times):
                keys = pa.array(
                    [f"{turn}/{key}" for key in table.column("key").to_pylist()],
                    table.schema.field("key").type,
                )
                copied = table.set_column(
                    table.schema.get_field_index("key"), table.schema.field("key"), keys
                )
                pq.write_table(copied, folder / f"{turn:03}-{file.rsplit('/', 1)[-1]}")
    return str(folder)


def compare(recipe: str, shards: str, given: argparse.Namespace, words: list[str]) -> None:
    """Runs all contenders on one recipe in turns and prints the comparison."""
    threads = given.threads or os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder:
        files = [str(ROOT / "configs" / f"{recipe}.yaml")]
        fixed = [
            f"data.shards={shards}",
            f"scale.runs={folder}",
            "protocol.val=0",
            "protocol.test=0",
            "model.weights=none",
        ]
        experiment = config.load(files, [*fixed, *words])
        plan = planning.make(experiment)
        requests, answers = Queue(actor_options={"num_cpus": 0}), Queue(actor_options={"num_cpus": 0})
        settings = {
            "experiment": experiment.model_dump(mode="json"),
            "plan": plan,
            "rows": sources(experiment),
            "threads": threads,
        }
        trainer = TorchTrainer(
            serve,
            train_loop_config={**settings, "requests": requests, "answers": answers},
            scaling_config=ScalingConfig(num_workers=1, use_gpu=torch.cuda.is_available()),
            run_config=RunConfig(
                name="ray",
                storage_path=folder,
                worker_runtime_env={"env_vars": cluster.environment(torch.cuda.is_available())},
            ),
        )
        running = Thread(target=trainer.fit)
        running.start()
        plain = Plain(experiment, plan, threads, workers=given.loaders or max(1, (os.cpu_count() or 2) - 1))
        turns: dict[str, list[Turn]] = {"streamed": [], "memory": [], "loader": []}
        for number in range(given.rounds + 1):  # the first one warms up
            for name, own in turns.items():
                if name == "loader":
                    turn = plain.turn()
                else:
                    requests.put(name)
                    turn = answer(answers, running)
                if number:
                    own.append(turn)
        requests.put(None)
        running.join()
        report(recipe, experiment, plan, turns)


def report(recipe: str, experiment: Experiment, plan: Plan, turns: dict[str, list[Turn]]) -> None:
    """Medians, and ratios within a round, so that what slows a whole round cancels out."""
    train = experiment.train
    what = f"{plan.steps[0]} steps of {train.batch_size}, {experiment.align.size} pixels"
    print(f"\n{recipe}: {what}, {train.precision}")
    rates = {}
    for name, own in turns.items():
        rates[name] = np.array([turn["rate"] for turn in own])
    for name, images_s in rates.items():
        start = statistics.median(turn["start"] for turn in turns[name])
        rounds = f"rounds {images_s.round(1).tolist()}; start {start:.1f} s"
        print(f"  {name:<9} {np.median(images_s):>8.1f} images/s   ({rounds})")
    for name, target in (("memory", 0.95), ("loader", 1.0)):
        ratios = rates["streamed"] / rates[name]
        rounds = f"target {target}; rounds {ratios.round(3).tolist()}"
        print(f"  streamed / {name}: {np.median(ratios):.3f} ({rounds})")
    memory = np.array([turn["mib"] for turn in turns["streamed"]])
    growth = f"{memory[-1] - memory[0]:+.0f}"
    print(f"  worker's memory after its epochs: {memory.round().tolist()} MiB ({growth})")
    waited = np.array([turn["waited"] - turn["start"] for turn in turns["streamed"]])
    seconds = np.maximum(waited, 0).round(2).tolist()
    print(f"  waiting for data beyond the start of an epoch: {seconds} s")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "words", nargs="*", metavar="SHARDS | key=value", help="a folder of face shards, settings"
    )
    parser.add_argument(
        "--faces",
        type=int,
        default=768,
        help="faces to draw where no shards are named (default: %(default)s)",
    )
    parser.add_argument(
        "--repeat", type=int, default=1, help="how often each face is in an epoch (default: %(default)s)"
    )
    parser.add_argument(
        "--loaders",
        type=int,
        default=0,
        help="DataLoader workers; 0 for all cores but one (default: %(default)s)",
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="epochs of each contender (default: %(default)s)"
    )
    parser.add_argument(
        "--recipe", nargs="*", default=["default", "dhaa"], help="names in configs/ (default: default dhaa)"
    )
    parser.add_argument(
        "--threads", type=int, default=0, help="of a CPU that trains; 0 for all cores (default: %(default)s)"
    )
    given = parser.parse_args()
    words, folders = [], []
    for word in given.words:
        if "=" in word:
            words.append(word)
        else:
            folders.append(word)
    with tempfile.TemporaryDirectory() as drawn, tempfile.TemporaryDirectory() as many:
        if not folders:
            synthetic_faces.write_faces_table(
                Path(drawn), given.faces, subjects=given.faces, size=200, shards=2
            )
        shards = (folders or [drawn])[0]
        if given.repeat > 1:
            shards = repeated(shards, given.repeat, Path(many))
        cluster.connect(config.load([], ["scale.progress=false"]).scale)
        for recipe in given.recipe:
            compare(recipe, shards, given, words)
        ray.shutdown()


if __name__ == "__main__":
    main()
