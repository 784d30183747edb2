"""The state of a run: network, loss, moving average, optimiser, random generators, counters, log.

`State.state_dict` is what a checkpoint holds; `load_state_dict` continues from it, equal in every
bit on one worker.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from ageray import distributed
from ageray.experiment import Experiment
from ageray.losses.criterion import FIELDS, Criterion
from ageray.models.build import build
from ageray.models.decode import bins
from ageray.models.network import AgeNetwork
from ageray.train import teacher
from ageray.train.optim import frozen_parameters, make_optimizer, make_schedule

Columns = dict[str, Any]
"""A batch as numpy columns, see `ageray.faces.canvases`."""


class BatchLoss(nn.Module):
    """Network and criterion as one module, so that DistributedDataParallel sees exactly the
    parameters that the loss reaches.

    forward: a batch of this worker's faces to the loss of the whole batch and its unweighted
    terms (detached).
    """

    def __init__(self, config: Experiment, network: AgeNetwork, criterion: Criterion, bins_K: Tensor) -> None:
        super().__init__()
        self._config, self._criterion, self._bins_K = config, criterion, bins_K
        self._ungathered = network.whole_batch | {"bins"}
        self.network: nn.Module = network
        self._compute: Callable[[dict[str, Tensor]], tuple[Tensor, dict[str, Tensor]]] = self._loss
        self._replays = False
        if config.train.compile and distributed.rank_and_world()[1] > 1:
            # the network alone, since the loss talks to the other workers
            self.network = cast(nn.Module, torch.compile(network))
        elif config.train.compile:
            # Gradients of several pieces are added up in memory that a CUDA graph would write to.
            self._replays = bins_K.is_cuda and config.train.accumulate == 1
            mode = "reduce-overhead" if self._replays else None
            self._compute = torch.compile(self._loss, mode=mode, dynamic=False)

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """batch: `face` and what else the network takes; `age` (B,), and `age_std`, `gender`,
        `weight` (B,) and `teacher` (B, K) where there are any.
        """
        if not self._replays:
            return self._compute(batch)
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        loss, terms = self._compute(batch)
        values = torch.stack(list(terms.values())).unbind()  # the next step writes to the graph's
        return loss.clone(), dict(zip(terms, values, strict=True))

    def _loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """See `forward`. With `train.compile` and one worker it is one graph."""
        with autocast(self._config, self._bins_K.device):
            outputs = self.network(batch)
        own = {**outputs, "bins": self._bins_K}
        for name in (*FIELDS, "weight"):
            if name in batch:
                own[name] = batch[name]
        if distributed.rank_and_world()[1] == 1:
            loss, terms = self._criterion(own)
        elif self._config.train.mining == "local":
            loss, terms = self._criterion(self._gathered(own), own)
        else:
            loss, terms = self._criterion(self._gathered(own))
        return loss, terms

    def _gathered(self, own: dict[str, Tensor]) -> dict[str, Tensor]:
        """Every tensor for the faces of all workers."""
        whole = {}
        # sorted: all workers must gather in the same order, and the order of a set differs between
        # processes
        for name in sorted(own):
            whole[name] = own[name]
            if name not in self._ungathered:
                whole[name] = distributed.all_gather(own[name])
        return whole


def autocast(config: Experiment, device: torch.device) -> torch.autocast:
    """The number format of a training step's forward pass, by `train.precision`."""
    kind = torch.float16 if config.train.precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, kind, enabled=config.train.precision != "float32")


@dataclass
class EpochProgress:
    """The epoch under way: finished `steps`, `images` of all workers, `seconds`, and `sums`, each
    loss over the steps.
    """

    steps: int = 0
    images: int = 0
    seconds: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)


@dataclass
class State:
    """Everything that a run carries from step to step.

    batch_loss: network and criterion as one module, in DistributedDataParallel from `start_stage`
    on where there are several workers. ema_network: the moving average of the weights, None without
    `train.ema`. teacher: of `train.teacher`, where each step asks it. epoch, step: the numbers of
    finished epochs and steps
    over all stages. best: the least figure by `train.select`, in years. epoch_steps: the steps of
    the epoch under way. total_epochs: of all stages.
    """

    config: Experiment
    device: torch.device
    network: AgeNetwork
    batch_loss: nn.Module
    bins: Tensor
    generator: torch.Generator
    scaler: torch.amp.GradScaler
    ema_network: AgeNetwork | None = None
    teacher: AgeNetwork | None = None
    optimizer: torch.optim.Optimizer | None = None
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None
    stage: int = -1
    epoch: int = 0
    step: int = 0
    best: float = float("inf")
    log: list[dict[str, Any]] = field(default_factory=list)
    epoch_progress: EpochProgress = field(default_factory=EpochProgress)
    epoch_steps: int | None = None
    total_epochs: int = 0

    @property
    def eval_network(self) -> AgeNetwork:
        """The network that is validated and saved: the moving average if there is one."""
        return self.ema_network or self.network

    def start_stage(self, index: int, steps: int) -> None:
        """Makes a new optimiser and schedule for stage `index`, which takes `steps` steps; the
        weights stay.
        """
        stage = self.config.train.stages[index]
        self.optimizer = make_optimizer(self.network, self.network.head_parameters(), stage.optimizer)
        self.schedule = make_schedule(self.optimizer, stage.schedule, steps)
        # the optimiser has frozen or released parameters
        self.batch_loss = distributed.data_parallel(distributed.unwrap(self.batch_loss))
        self.stage = index

    def backward(self, batch: dict[str, Tensor], pieces: int, last: bool) -> dict[str, Tensor]:
        """Adds the gradient of one of `pieces` pieces of a batch; returns the loss and its terms.

        The last piece averages the sum over the workers.
        """
        with nullcontext() if last else distributed.gradients_stay_local(self.batch_loss):
            loss, terms = self.batch_loss(batch)
            self.scaler.scale(loss / pieces).backward()
        return {"loss": loss.detach(), **terms}

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values that `torch.load(weights_only=True)` reads. The keys are those
        of files on disk.
        """
        assert self.optimizer is not None
        assert self.schedule is not None
        return {
            "network": self.network.state_dict(),
            "average": self.ema_network.state_dict() if self.ema_network else None,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "generator": self.generator.get_state(),
            "scaler": self.scaler.state_dict(),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "progress": {"stage": self.stage, "epoch": self.epoch, "step": self.step, "best": self.best},
            "partial": vars(self.epoch_progress) | {"sums": dict(self.epoch_progress.sums)},
            "log": list(self.log),
        }

    def load_state_dict(self, saved: dict[str, Any], steps: int) -> None:
        """Continues from `saved`; `steps` is the length of the stage that it was in."""
        progress = saved["progress"]
        self.network.load_state_dict(saved["network"])
        if self.ema_network is not None:
            self.ema_network.load_state_dict(saved["average"])
        self.start_stage(progress["stage"], steps)
        assert self.optimizer is not None
        assert self.schedule is not None
        self.optimizer.load_state_dict(saved["optimizer"])
        self.schedule.load_state_dict(saved["schedule"])
        self.generator.set_state(saved["generator"].cpu())
        self.scaler.load_state_dict(saved["scaler"])
        torch.set_rng_state(saved["torch"].cpu())
        if saved["cuda"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(saved["cuda"].cpu(), self.device)
        self.epoch, self.step, self.best = progress["epoch"], progress["step"], progress["best"]
        self.log, self.epoch_progress = saved["log"], EpochProgress(**saved["partial"])


def new_state(config: Experiment, device: torch.device) -> State:
    """A run at its start, the network on `device`.

    Raises UserError for weights that do not fit, or a loss that the network cannot feed.
    """
    torch.manual_seed(config.train.seed)  # dropout draws from the global generator
    network = build(config.model, seed=config.train.seed)
    criterion = Criterion(config.loss, network.outputs, config.model.name)
    for stage in config.train.stages:
        frozen_parameters(network, stage.optimizer.frozen_blocks)  # a later stage's mistake is found now
    network = network.to(device)
    ema_network = copy.deepcopy(network).requires_grad_(False) if config.train.ema else None
    distributed.prepare_for_distributed(network, config.train.sync_batchnorm)
    bins_K = bins(config.model).to(device)
    return State(
        config,
        device,
        network,
        BatchLoss(config, network, criterion, bins_K),
        bins_K,
        torch.Generator().manual_seed(config.train.seed),
        torch.amp.GradScaler(device.type, enabled=config.train.precision == "fp16"),
        ema_network,
        _step_teacher(config, device),
    )


def _step_teacher(config: Experiment, device: torch.device) -> AgeNetwork | None:
    """The teacher that sees the faces of every step; None without one, or where each face is shown
    to it once (`train.teacher_faces: aligned`)."""
    if config.train.teacher_faces == "aligned":
        return None
    found = teacher.load(config, device)
    return found.network if found else None
