"""What a network costs: parameters, floating-point operations, faces a second on this CPU."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ageray.experiment import Experiment
from ageray.faces import geometry
from ageray.models.network import AgeNetwork, Batch


@dataclass(frozen=True)
class Cost:
    """parameters: how many weights. flop: operations of one forward pass of one face; a
    multiplication and an addition are two, and only convolutions and matrix products are
    counted. rate: faces a second of one forward pass, on `threads` threads of this CPU, float32,
    without alignment and mirror image."""

    parameters: int
    flop: int
    rate: float
    threads: int


def measure(network: AgeNetwork, experiment: Experiment, batch: int = 32, rounds: int = 3) -> Cost:
    """The cost of the network at `align.size`; the rate is the median of `rounds` batches after
    one that warms up."""
    inputs = _faces(experiment, batch)
    times: list[float] = []
    network = network.eval()
    with torch.inference_mode():
        for _ in range(rounds + 1):
            started = time.perf_counter()
            network(inputs)
            times.append(time.perf_counter() - started)
    rate = batch / statistics.median(times[1:])
    return Cost(parameters(network), flop(network, experiment), rate, torch.get_num_threads())


def parameters(network: AgeNetwork) -> int:
    """How many weights the network has."""
    return sum(tensor.numel() for tensor in network.parameters())


def flop(network: AgeNetwork, experiment: Experiment) -> int:
    """Operations of one forward pass of one face."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        network.eval()(_faces(experiment, 1))
    return counter.get_total_flops()


def _faces(experiment: Experiment, count: int) -> Batch:
    """Random faces as the network takes them, with the points of the template."""
    size = experiment.align.size
    face_B3SS: Tensor = torch.rand(count, 3, size, size) * 255
    points_B52 = geometry.template(size, experiment.align.coverage).expand(count, 5, 2).contiguous()
    return {"face": face_B3SS.contiguous(memory_format=torch.channels_last), "points": points_B52}
