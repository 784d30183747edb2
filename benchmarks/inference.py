"""Faces a second of each model's predictor, float32 and bf16, measured in turns so that all see the
same machine; beside it what its network costs.

    python benchmarks/inference.py [--batch 64] [--rounds 3] [--device cpu] [--size 128] [NAME ...]

NAME is a recipe of configs/, a backbone (`mobilenet_v1`, `resnet18` ...: with one classifier), or a
MODEL (`zoo:NAME`, a bundle, a run folder). From canvases in memory to calibrated ages: alignment,
forward passes (two where the mirror image counts, times the views), decoding, for `siamese` a
search among 20,000 faces. Weights are random but a MODEL's; sizes are each one's own unless --size
gives one for all recipes and backbones. `parameters` are millions; `GFLOP` is one forward pass of
one face; `network/s` is faces a second of that pass alone, float32, on the CPU.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray

from ageray import bundle, config
from ageray.experiment import Align
from ageray.experiment.model import Backbone, Siamese
from ageray.faces.canvases import face_canvases
from ageray.models import cost
from ageray.models.build import build
from ageray.models.gallery import Gallery
from ageray.predictor import Predictor, _fast_bf16
from ageray.synthetic import faces as synthetic_faces

RECIPES = ("default", "cluster_cnn", "baseline", "neighborhood", "siamese", "deep_embedding", "dhaa")
GALLERY = 20_000  # faces that a siamese network compares with
PRECISIONS = ("float32", "bf16")
ROOT = Path(__file__).resolve().parents[1]

Faces = tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]


def drawn(count: int, align: Align) -> Faces:
    """Canvases, points and boxes of `count` faces: a few drawn ones, repeated."""
    few = [
        face_canvases(face.jpeg(), face.points[None], face.box[None], align)
        for face in synthetic_faces.faces(min(count, 8), size=200)
    ]
    order = np.arange(count) % len(few)
    pixels, points, box = (
        np.concatenate([getattr(face, name) for face in few])[order] for name in ("pixels", "points", "box")
    )
    return pixels, points, box


def random_gallery(size: int) -> Gallery:
    """Faces at random, as wide as a siamese network's embedding for age."""
    draw = torch.Generator().manual_seed(0)
    subject = torch.zeros(GALLERY, dtype=torch.int64)
    embedding = torch.randn(GALLERY, size, generator=draw).half()
    return Gallery(
        embedding,
        torch.rand(GALLERY, generator=draw) * 90,
        torch.full((GALLERY,), -1, dtype=torch.int8),
        subject,
    )


def contenders(
    recipes: list[str], words: list[str], batch: int, device: str, threads: int
) -> dict[tuple[str, str], tuple[Predictor, Faces]]:
    """A predictor and its batch for each recipe and precision."""
    predictors = {}
    for recipe in recipes:
        loaded = model_of(recipe, words)
        faces = drawn(batch, loaded.experiment.align)
        for precision in PRECISIONS:
            predictors[recipe, precision] = (Predictor(loaded, device, threads, precision), faces)
    return predictors


def model_of(name: str, words: list[str]) -> bundle.Bundle:
    """The bundle of a MODEL, or one with random weights of a recipe or a backbone."""
    recipe = ROOT / "configs" / f"{name}.yaml"
    if name in get_args(Backbone):
        settings = [str(ROOT / "configs" / "baseline.yaml")]
        words = [f"model.backbone={name}", *words]
    elif recipe.is_file():
        settings = [str(recipe)]
    else:
        return bundle.load(name)
    experiment = config.load(settings, ["model.weights=none", *words])
    gallery = random_gallery(experiment.model.age_features) if isinstance(experiment.model, Siamese) else None
    with tempfile.TemporaryDirectory() as folder:
        bundle.save(folder, build(experiment.model, seed=0), experiment, {}, gallery)
        return bundle.load(folder)


def seconds_a_batch(
    predictors: dict[tuple[str, str], tuple[Predictor, Faces]], rounds: int
) -> dict[tuple[str, str], float]:
    """Median over the rounds; in each round every contender has one turn. The first, untimed round
    warms up.
    """
    durations: dict[tuple[str, str], list[float]] = {name: [] for name in predictors}
    for turn in range(rounds + 1):
        for name, (predictor, faces) in predictors.items():
            started = time.perf_counter()
            predictor.predict(*faces)  # ends with a copy to the host, so the device is done
            if turn:
                durations[name].append(time.perf_counter() - started)
    return {name: statistics.median(times) for name, times in durations.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=64, help="faces a batch (default: %(default)s)")
    parser.add_argument(
        "recipes",
        nargs="*",
        default=list(RECIPES),
        metavar="NAME",
        help=f"recipe, backbone or MODEL (default: {', '.join(RECIPES)})",
    )
    parser.add_argument(
        "--size", type=int, help="side of the faces in pixels, for all recipes (default: each its own)"
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="timed batches of each contender (default: %(default)s)"
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto (default: %(default)s)")
    parser.add_argument(
        "--threads", type=int, default=0, help="of the CPU; 0 for all cores (default: %(default)s)"
    )
    arguments = parser.parse_args()
    words = [f"align.size={arguments.size}"] if arguments.size else []
    predictors = contenders(arguments.recipes, words, arguments.batch, arguments.device, arguments.threads)
    device = next(iter(predictors.values()))[0].device
    what = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"CPU, {torch.get_num_threads()} threads"
    )
    bf16 = "fast" if _fast_bf16(device) else "emulated"
    rounds = f"median of {arguments.rounds} rounds"
    print(f"{what}, batches of {arguments.batch}, {rounds}; bf16 is {bf16} here")
    columns = ("pixels", "parameters", "GFLOP", "network/s", "float32/s", "bf16/s", "bf16/float32")
    head = "".join(f"{column:>13}" for column in columns)
    print(f"{'model':<16}{head}   bf16/{arguments.recipes[0]}")
    durations = seconds_a_batch(predictors, arguments.rounds)
    speed = {name: arguments.batch / seconds for name, seconds in durations.items()}
    for recipe in arguments.recipes:
        exact, rough = (speed[recipe, precision] for precision in PRECISIONS)
        loaded = predictors[recipe, "bf16"][0].bundle
        batch = min(arguments.batch, 32)
        price = cost.measure(loaded.network(), loaded.experiment, batch, arguments.rounds)
        print(
            f"{recipe:<16}{loaded.experiment.align.size:>13}"
            f"{price.parameters / 1e6:>13.2f}{price.flop / 1e9:>13.2f}"
            f"{price.rate:>13.1f}{exact:>13.1f}{rough:>13.1f}{rough / exact:>13.2f}"
            f"{rough / speed[arguments.recipes[0], 'bf16']:>10.2f}"
        )


if __name__ == "__main__":
    main()
