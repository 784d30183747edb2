"""A training step on a GPU: images a second on a batch in memory, the share of the measured matrix
rate, and where the time goes.

    python benchmarks/compute.py [--recipe default dhaa] [--batch 64 256] [--steps 30] [--rounds 3]
                                 [--compile] [key=value ...]

Needs no Ray. The step is `ageray.train.loop.train_one_epoch`'s: alignment, random changes, network,
loss, optimiser. Contenders (batch size, number format, with --compile the compiled network) take
turns. The matrix rate is that of one large bf16 product on this device; the share counts the
operations of the network's convolutions and products (`torch.utils.flop_counter`, forward and
backward) and nothing else.

`changes` is the time of alignment and random changes alone, waited for; `busy` the part of a step
in which the device computes (torch.profiler).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from inference import drawn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from ageray import config
from ageray.experiment import Experiment
from ageray.faces.canvases import to_tensors
from ageray.train.loop import Columns, augmented, train_one_epoch
from ageray.train.state import State, new_state

ROOT = Path(__file__).resolve().parents[1]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
KINDS = {
    "convolutions, products": (
        "conv",
        "gemm",
        "wgrad",
        "dgrad",
        "cutlass",
        "xmma",
        "mm_",
        "sm90_",
        "sm80_",
        "implicit",
        "winograd",
    ),
    "normalisation": ("batch_norm", "bn_", "batchnorm", "layer_norm", "lrn"),
    "pooling": ("pool",),
    "copies": ("memcpy", "memset", "copy", "nchw", "nhwc"),
    "optimiser": ("multi_tensor", "adam", "sgd", "lerp"),
}
"""Kinds of device time by words in a kernel's name, the first that fits; the rest is elementwise
work and reductions.
"""


def wait() -> None:
    """Waits until the device has finished all its work."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def matrix_rate(size: int) -> float:
    """Operations a second of a bf16 product of two random square matrices."""
    left = torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16)
    right = torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16)
    times = []
    for _ in range(13):
        wait()
        started = time.perf_counter()
        torch.mm(left, right)
        wait()
        times.append(time.perf_counter() - started)
    return 2 * size**3 / statistics.median(times[3:])


def ready(experiment: Experiment) -> tuple[State, Columns]:
    """A network before its first step and the batch it will see."""
    state = new_state(experiment, DEVICE)
    state.start_stage(0, 10_000)
    count = experiment.train.batch_size
    pixels, points, box = drawn(count, experiment.align)
    ages = torch.linspace(1, 80, count).numpy()
    gender, subject = torch.arange(count) % 2, 1 + torch.arange(count) // 2
    faces = {
        "canvas": pixels,
        "points": points,
        "box": box,
        "age": ages,
        "gender": gender.numpy(),
        "subject": subject.numpy(),
    }
    batch_in_memory = {}
    for name, values in faces.items():
        batch_in_memory[name] = torch.from_numpy(values)
        if DEVICE.type == "cuda":
            batch_in_memory[name] = batch_in_memory[name].pin_memory()
    return state, batch_in_memory


def operations(state: State, batch_in_memory: Columns) -> float:
    """Operations of one step's convolutions and products, forward and backward."""
    counter = FlopCounterMode(display=False)
    with counter:
        train_one_epoch(state, [batch_in_memory])
    return float(counter.get_total_flops())


def images_a_second(state: State, batch_in_memory: Columns, steps: int) -> float:
    wait()
    started = time.perf_counter()
    train_one_epoch(state, [batch_in_memory] * steps)
    wait()
    return len(batch_in_memory["age"]) * steps / (time.perf_counter() - started)


def changes(state: State, batch_in_memory: Columns, steps: int) -> float:
    """Seconds of alignment and random changes a step."""
    wait()
    started = time.perf_counter()
    for _ in range(steps):
        augmented(state, to_tensors(batch_in_memory, DEVICE))
    wait()
    return (time.perf_counter() - started) / steps


def where(state: State, batch_in_memory: Columns, steps: int) -> tuple[float, dict[str, float]]:
    """The share of a step in which the device computes, and the share of each kind of kernel in
    that time. NaN and an empty dict on a CPU.
    """
    if DEVICE.type != "cuda":
        return float("nan"), {}
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        wait()
        started = time.perf_counter()
        train_one_epoch(state, [batch_in_memory] * steps)
        wait()
        whole = time.perf_counter() - started
    kinds: dict[str, float] = defaultdict(float)
    for event in seen.events() or ():
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation:
            kinds[kind_of(event.name.lower())] += event.self_device_time_total / 1e6
    busy, shares = sum(kinds.values()), {}
    for kind, seconds in sorted(kinds.items(), key=lambda item: -item[1]):
        shares[kind] = seconds / busy
    return busy / whole, shares


def kind_of(kernel: str) -> str:
    """The kind of a kernel, by the words in its name."""
    for kind, words in KINDS.items():
        for word in words:
            if word in kernel:
                return kind
    return "elementwise, reductions"


def compare(recipe: str, arguments: argparse.Namespace, peak: float) -> None:
    """All contenders of one recipe, in turns."""
    contenders: dict[tuple[Any, ...], tuple[State, Columns]] = {}
    compilations = [False]
    if arguments.compile:
        compilations.append(True)
    for batch in arguments.batch:
        for precision in arguments.precision:
            for compiled in compilations:
                words = [
                    f"train.batch_size={batch}",
                    f"train.precision={precision}",
                    f"train.compile={str(compiled).lower()}",
                ]
                fixed = ["model.weights=none", *words, *arguments.words]
                with contextlib.redirect_stdout(io.StringIO()):
                    contenders[batch, precision, compiled] = ready(
                        config.load([str(ROOT / "configs" / f"{recipe}.yaml")], fixed)
                    )
    size = next(iter(contenders.values()))[0].config.align.size
    print(f"\n{recipe}: {size} pixels")
    head = f"{'batch':>7} {'format':<9}{'compiled':<10}{'images/s':>10}{'ms/step':>10}{'changes':>10}"
    print(f"{head}{'GFLOP/image':>13}{'share':>8}{'busy':>7}  rounds")
    flops = {}
    for (batch, *_), (state, batch_in_memory) in contenders.items():
        if batch not in flops:
            plain = new_state(
                state.config.model_copy(
                    update={"train": state.config.train.model_copy(update={"compile": False})}
                ),
                DEVICE,
            )
            plain.start_stage(0, 10)
            flops[batch] = operations(plain, batch_in_memory) / batch
        for _ in range(2):
            images_a_second(state, batch_in_memory, max(3, arguments.steps // 3))  # warms up, compiles
    rates: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    for _ in range(arguments.rounds):
        for name, (state, batch_in_memory) in contenders.items():
            rates[name].append(images_a_second(state, batch_in_memory, arguments.steps))
    for name, (state, batch_in_memory) in contenders.items():
        (batch, precision, compiled), rate = name, statistics.median(rates[name])
        busy, kinds = where(state, batch_in_memory, 5)
        rounds = " ".join(f"{each:.0f}" for each in rates[name])
        row = f"{batch:>7} {precision:<9}{'yes' if compiled else 'no':<10}"
        row += f"{rate:>10.1f}{1e3 * batch / rate:>10.1f}{1e3 * changes(state, batch_in_memory, 10):>10.1f}"
        row += f"{flops[batch] / 1e9:>13.1f}{flops[batch] * rate / peak:>8.3f}{busy:>7.2f}  {rounds}"
        print(row)
        if kinds:
            print(" " * 8 + ", ".join(f"{kind} {share:.2f}" for kind, share in kinds.items()))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*", metavar="key=value", help="settings for all contenders")
    parser.add_argument(
        "--recipe", nargs="*", default=["default", "dhaa"], help="names in configs/ (default: default dhaa)"
    )
    parser.add_argument("--batch", type=int, nargs="*", default=[64], help="batch sizes (default: 64)")
    parser.add_argument(
        "--precision", nargs="*", default=["bf16", "float32"], help="number formats (default: bf16 float32)"
    )
    parser.add_argument("--compile", action="store_true", help="each contender compiled too")
    parser.add_argument("--steps", type=int, default=30, help="steps a turn (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=3, help="turns of each contender (default: %(default)s)"
    )
    parser.add_argument(
        "--matrix", type=int, default=8192, help="side of the matrices of the product (default: %(default)s)"
    )
    arguments = parser.parse_args()
    peak = matrix_rate(arguments.matrix)
    what = (
        torch.cuda.get_device_name() if DEVICE.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    )
    print(f"{what}, torch {torch.__version__}: bf16 product of {arguments.matrix}: {peak / 1e12:.1f} TFLOP/s")
    for recipe in arguments.recipe:
        compare(recipe, arguments, peak)


if __name__ == "__main__":
    main()
