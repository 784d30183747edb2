"""What a GPU does with a scored batch and a training step, in under 10 minutes, without Ray.

    python benchmarks/gpu.py [STEP ...] [--small] [--model zoo:default] [--recipe default]

Every step is a process with its own limit and prints one line of JSON as soon as it is done. So an
interrupted run has told what it knew. `--small` takes sizes for a CPU.

ceilings   matrix products, copies, and microseconds of a launch: what the others are held against
waits      every place in a training step where the host waits for the device (GPU only)
step       images a second of a training step on a batch in memory, float32 and bf16
compile    the same with train.compile, bf16: seconds before the first step ends, images a second
changes    milliseconds of alignment and random changes alone
predict    faces a second of the predictor at batches of 64 and 256, float32 and bf16
graph      the same in bf16: weights cast in each batch, kept in bf16, and replayed as a CUDA graph;
           the largest difference of an age to the first in years
actor      host milliseconds of a scored batch of 256 from an Arrow table, all of it, and without
           the device's part
yunet      photos a second of the detector's network in torch, float32, at batches of 1 to 256; the
           whole detector with its further looks; how far rows are from ONNX Runtime's
photos     photos a second of the actor that detects, from decoded photos to ages, at 0.2 and 1
           megapixels; its host time, and that of the tasks that feed it
detect     photos a second of the detector on one core, for what feeds the GPU
decode     photos a second of the JPEG decoder on one core at 0.2, 1 and 12 megapixels
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from ageray import bundle, config
from ageray.experiment import Detect
from ageray.faces import yunet
from ageray.faces.canvases import to_tensors
from ageray.faces.detect import YuNet, picture_of
from ageray.faces.detect_batch import BatchYuNet
from ageray.faces.images import Photo, decode
from ageray.faces.yunet_torch import TorchNetwork
from ageray.machine.cpus import usable_cpus
from ageray.models.replay import Replay
from ageray.predictor import Predictor
from ageray.stages.columns import DETECTED_SCHEMA, PHOTO_SCHEMA
from ageray.stages.decode import decoded_batches
from ageray.stages.photos import AgePhotos
from ageray.stages.predict import AgeFaces
from ageray.synthetic import faces as synthetic_faces
from ageray.train.loop import augmented, train_one_epoch

Figures = dict[str, Any]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def wait() -> None:
    """Waits until the device has finished all its work."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def seconds(work: Callable[[], object], rounds: int) -> float:
    """Least seconds of `rounds` calls after one that warms up, with the device's work."""
    durations = []
    for _ in range(rounds + 1):
        wait()
        started = time.perf_counter()
        work()
        wait()
        durations.append(time.perf_counter() - started)
    return min(durations[1:])


def ceilings(options: argparse.Namespace) -> Figures:
    side, megabytes = (256, 4) if options.small else (8192, 512)
    left = torch.randn(side, side, device=DEVICE, dtype=torch.bfloat16)
    content = torch.zeros(megabytes * 2**20, dtype=torch.uint8)
    if DEVICE.type == "cuda":
        content = content.pin_memory()
    one = torch.zeros(1, device=DEVICE)

    def launches() -> None:
        for _ in range(1000):
            one.add_(1)

    return {
        "bf16 TFLOP/s": 2 * side**3 / seconds(lambda: left @ left, 3) / 1e12,
        "GB/s to the device": content.numel() / seconds(lambda: content.to(DEVICE, copy=True), 3) / 1e9,
        "us a launch": seconds(launches, 2) * 1e3,
    }


def _training(options: argparse.Namespace, precision: str, *more: str) -> tuple[Any, Any]:
    from compute import ready

    batch = 4 if options.small else 64
    words = ["model.weights=none", "train.sizes=[]"]  # one size, as the other recipes
    words += [f"train.batch_size={batch}", f"train.precision={precision}", *more]
    if options.small:
        words.append("align.size=64")
    return ready(config.load([f"recipe:{options.recipe}"], words))


def waits(options: argparse.Namespace) -> Figures:
    if DEVICE.type != "cuda":
        return {"skipped": "needs a GPU"}
    state, batch = _training(options, "bf16")
    train_one_epoch(state, [batch] * 3)
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as messages:
        warnings.simplefilter("always")
        train_one_epoch(state, [batch])
    torch.cuda.set_sync_debug_mode("default")
    return {"waits": [f"{each.filename}:{each.lineno}" for each in messages]}


def step(options: argparse.Namespace) -> Figures:
    figures = {}
    count = 2 if options.small else 20
    for precision in ("float32", "bf16"):
        state, batch = _training(options, precision)
        took = seconds(lambda state=state, batch=batch: train_one_epoch(state, [batch] * count), 2)
        figures[f"images/s {precision}"] = len(batch["age"]) * count / took
    return figures


def compiled(options: argparse.Namespace) -> Figures:
    if DEVICE.type == "cpu":  # inductor takes minutes there; the graph is traced all the same
        torch.compile = functools.partial(torch.compile, backend="eager")  # type: ignore[assignment]
    state, batch = _training(options, "bf16", "train.compile=true")
    started = time.perf_counter()
    train_one_epoch(state, [batch])
    wait()
    first = time.perf_counter() - started
    count = 2 if options.small else 20
    train_one_epoch(state, [batch] * 3)  # CUDA graphs are recorded in the second and third step
    took = seconds(lambda: train_one_epoch(state, [batch] * count), 2)
    return {"s to the first step": first, "images/s bf16": len(batch["age"]) * count / took}


def changes(options: argparse.Namespace) -> Figures:
    state, batch = _training(options, "float32")
    return {"ms": 1e3 * seconds(lambda: augmented(state, to_tensors(batch, DEVICE)), 5)}


def predict(options: argparse.Namespace) -> Figures:
    from inference import drawn

    loaded, figures = bundle.load(options.model), {}
    for count in (8,) if options.small else (64, 256):
        faces = drawn(count, loaded.experiment.align)
        for precision in ("float32", "bf16"):
            predictor = Predictor(loaded, precision=precision)
            took = seconds(lambda predictor=predictor, faces=faces: predictor.predict(*faces), 3)
            figures[f"faces/s {precision} at {count}"] = count / took
    return figures


def graph(options: argparse.Namespace) -> Figures:
    from inference import drawn

    loaded, figures = bundle.load(options.model), {}
    count = 8 if options.small else 256
    faces = drawn(count, loaded.experiment.align)
    predictors = {}
    for name in ("as is", "bf16 weights", "replayed"):
        predictors[name] = Predictor(loaded, precision="bf16", cuda_graphs=False)
    predictors["as is"]._network.float()
    predictors["replayed"]._replay = Replay(predictors["replayed"]._flat, DEVICE)
    first = predictors["as is"].predict(*faces).age
    for name, predictor in predictors.items():
        predictor.predict(*faces)  # the second batch of a size is recorded
        took = seconds(lambda predictor=predictor: predictor.predict(*faces), 3)
        figures[f"faces/s {name}"] = count / took
        figures[f"years apart {name}"] = float(np.abs(predictor.predict(*faces).age - first).max())
    figures["recorded sizes"] = len(predictors["replayed"]._replay.sizes)
    return figures


def actor(options: argparse.Namespace) -> Figures:
    from inference import drawn

    count = 8 if options.small else 256
    pixels, points, box = drawn(count, bundle.load(options.model).experiment.align)
    rows = []
    for face in range(count):
        row = {"key": f"{face}", "image": "", "face": 0, "canvas": pixels[face].tobytes()}
        rows.append(row | {"canvas_points": points[face].ravel(), "canvas_box": box[face]})
    table = pa.Table.from_pylist(rows, schema=DETECTED_SCHEMA)
    ages = AgeFaces(options.model)
    host = _cpu_seconds(lambda: ages(table), 2)
    took = seconds(lambda: ages(table), 3)
    predictor = ages._predictor
    faces = {"canvas": pixels, "points": points, "box": box}
    batch = {name: torch.from_numpy(values).to(DEVICE) for name, values in faces.items()}
    with torch.inference_mode():
        columns = predictor._flat(batch)
    predictor._replay = Replay(lambda batch: columns[: len(batch["canvas"])], DEVICE)
    return {
        "faces/s": count / took,
        "wall ms a batch": 1e3 * took,
        "host CPU ms a batch": 1e3 * host,
        "host CPU ms without the device's part": 1e3 * _cpu_seconds(lambda: ages(table)),
    }


def _cpu_seconds(work: Callable[[], object], rounds: int = 9) -> float:
    """Least CPU seconds of this process for `work`, after two calls that warm up."""
    used = []
    for _ in range(rounds + 2):
        started = time.process_time()
        work()
        used.append(time.process_time() - started)
    return min(used[2:])


def torch_detector(options: argparse.Namespace) -> Figures:
    settings, figures = Detect(), {}
    sizes = [(640, 480), (480, 640), (640, 427), (360, 640)]
    if options.small:
        sizes = [(128, 160), (200, 128)]
    drawn = [synthetic_faces.draw_photo(seed, *size).pixels for seed, size in enumerate(sizes)]
    net = TorchNetwork(settings.threshold, DEVICE)
    for count in (1, 4) if options.small else (1, 16, 64, 256):
        pictures = (drawn * count)[:count]
        took = seconds(lambda pictures=pictures: net.rows(pictures), 3)
        figures[f"photos/s at {count}"] = count / took
    other = TorchNetwork(settings.threshold, DEVICE, channels_last=DEVICE.type == "cuda")
    took = seconds(lambda: other.rows(pictures), 3)
    figures[f"photos/s at {count}, {'channels last' if DEVICE.type == 'cuda' else 'channels first'}"] = (
        count / took
    )
    many = BatchYuNet(settings, DEVICE)
    photos = [picture_of(Photo(each, 1, each.shape[1], each.shape[0]), settings) for each in pictures]
    figures[f"photos/s at {count}, whole detector"] = count / seconds(lambda: many.detect(photos), 3)
    onnx = yunet.make_network(settings.threshold)
    pixels = scores = 0.0
    for ours, picture in zip(net.rows(drawn), drawn, strict=True):
        difference = np.abs(ours - onnx.rows(picture))
        pixels, scores = (
            max(pixels, float(difference[:, :14].max())),
            max(scores, float(difference[:, 14].max())),
        )
    return figures | {"pixels from ONNX Runtime": pixels, "score from ONNX Runtime": scores}


def photos(options: argparse.Namespace) -> Figures:
    align, settings, figures = bundle.load(options.model).experiment.align, Detect(), {}
    count = 4 if options.small else 256
    sizes = {"0.2 MP": (404, 502)}
    if not options.small:
        sizes["1 MP"] = (1154, 866)
    actor = AgePhotos(options.model, settings)
    for name, size in sizes.items():
        rows = []
        for number in range(count):
            content = BytesIO()
            Image.fromarray(synthetic_faces.draw_photo(number % 8, *size).pixels).save(
                content, "JPEG", quality=90
            )
            rows.append({"image": f"{number}.jpg", "content": content.getvalue()})
        table = pa.Table.from_pylist(rows, schema=PHOTO_SCHEMA)
        started = time.process_time()
        decoded = pa.concat_tables(decoded_batches(table, align, settings, "auto", None))
        figures[f"CPU ms a photo of a task at {name}"] = (time.process_time() - started) * 1e3 / count
        took = seconds(lambda decoded=decoded: list(actor(decoded)), 2)
        started, _ = time.process_time(), list(actor(decoded))
        figures[f"CPU ms a photo of the actor at {name}"] = (time.process_time() - started) * 1e3 / count
        figures[f"photos/s at {name}, {usable_cpus()} threads that cut"] = count / took
    return figures


def detect(options: argparse.Namespace) -> Figures:
    pixels = synthetic_faces.draw_photo(0, 416, 512).pixels
    photo, net = Photo(pixels, 1, 416, 512), YuNet(Detect())
    return {"photos/s at 416x512": 1 / seconds(lambda: net.detect(photo), 3 if options.small else 20)}


def decoding(options: argparse.Namespace) -> Figures:
    figures = {}
    sizes = {"0.2 MP": (502, 404)}
    if not options.small:
        sizes |= {"1 MP": (1154, 866), "12 MP": (4000, 3000)}
    picture = Image.fromarray(synthetic_faces.draw_photo(0, 640, 480).pixels)
    for name, size in sizes.items():
        content = BytesIO()
        picture.resize(size).save(content, "JPEG", quality=90)
        data = content.getvalue()
        figures[f"photos/s at {name}, whole"] = 1 / seconds(lambda data=data: decode(data), 5)
        figures[f"photos/s at {name}, for the detector"] = 1 / seconds(lambda data=data: decode(data, 640), 5)
    return figures


STEPS: dict[str, tuple[int, Callable[[argparse.Namespace], Figures]]] = {
    "ceilings": (30, ceilings),
    "waits": (40, waits),
    "step": (60, step),
    "compile": (70, compiled),
    "changes": (40, changes),
    "predict": (45, predict),
    "graph": (45, graph),
    "actor": (45, actor),
    "yunet": (60, torch_detector),
    "photos": (90, photos),
    "detect": (30, detect),
    "decode": (40, decoding),
}
"""By name: the limit in seconds, and the function."""


def run(name: str, words: list[str]) -> Figures:
    """The figures of a step from a process of its own, or why there are none."""
    limit = STEPS[name][0]
    command = [sys.executable, __file__, name, "--here", *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {limit} s"}
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1:]}
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("steps", nargs="*", metavar="STEP", help="default: all")
    parser.add_argument("--small", action="store_true", help="sizes for a CPU")
    parser.add_argument("--model", default="zoo:default")
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    for name in options.steps:
        if name not in STEPS:
            parser.error(f"{name}: no such step; there are {', '.join(STEPS)}")
    if options.here:
        print(json.dumps(STEPS[options.steps[0]][1](options)))
        return
    device = "CPU"
    if DEVICE.type == "cuda":
        device = torch.cuda.get_device_name()
    print(json.dumps({"device": device, "torch": torch.__version__, "numpy": np.__version__}), flush=True)
    words = ["--model", options.model, "--recipe", options.recipe]
    if options.small:
        words.append("--small")
    for name in options.steps or STEPS:
        started = time.perf_counter()
        figures = run(name, words)
        print(json.dumps({"step": name, **figures, "s": round(time.perf_counter() - started, 1)}), flush=True)


if __name__ == "__main__":
    main()
