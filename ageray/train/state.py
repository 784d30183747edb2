"""What a training run carries from step to step, and how it starts. Ray is not needed here."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ageray import bundle, distributed
from ageray.errors import UserError
from ageray.experiment import Experiment
from ageray.losses.criterion import Criterion
from ageray.models.build import build
from ageray.models.decode import bins
from ageray.models.network import AgeNetwork
from ageray.train.optim import frozen_parameters, make_optimizer, make_schedule

Columns = dict[str, Any]
"""A batch as numpy columns, see `ageray.faces.canvases`."""


@dataclass
class Partial:
    """An epoch under way: finished `steps`, `images` seen by all workers, seconds, and the sums of the losses over the steps."""

    steps: int = 0
    images: int = 0
    seconds: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)


@dataclass
class State:
    """All that a run carries from step to step. `state_dict` and `load_state_dict` make a resumed run equal an uninterrupted one."""

    config: Experiment
    device: torch.device
    network: AgeNetwork
    criterion: Criterion
    bins: Tensor
    generator: torch.Generator
    scaler: torch.amp.GradScaler
    forward: Callable[[dict[str, Tensor]], dict[str, Tensor]]
    average: AgeNetwork | None = None
    teacher: AgeNetwork | None = None
    optimizer: torch.optim.Optimizer | None = None
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None
    stage: int = -1
    epoch: int = 0  # finished epochs over all stages
    step: int = 0  # finished steps over all stages
    best: float = float("inf")
    log: list[dict[str, Any]] = field(default_factory=list)
    partial: Partial = field(default_factory=Partial)

    @property
    def judged(self) -> AgeNetwork:
        """The network that is validated and kept: the moving average where there is one."""
        return self.average or self.network

    def start_stage(self, index: int, steps: int) -> None:
        """A new optimiser and schedule for stage `index`, which will take `steps` steps, on the weights so far."""
        stage = self.config.train.stages[index]
        self.optimizer = make_optimizer(self.network, self.network.head_parameters(), stage.optimizer)
        self.schedule = make_schedule(self.optimizer, stage.schedule, steps)
        self.stage = index

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values, fit for `torch.load(weights_only=True)`."""
        assert self.optimizer is not None
        assert self.schedule is not None
        return {
            "network": self.network.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "generator": self.generator.get_state(),
            "scaler": self.scaler.state_dict(),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "progress": {"stage": self.stage, "epoch": self.epoch, "step": self.step, "best": self.best},
            "partial": vars(self.partial) | {"sums": dict(self.partial.sums)},
            "log": list(self.log),
        }

    def load_state_dict(self, saved: dict[str, Any], steps: int) -> None:
        """Continues from `saved`; `steps` is the length of the stage it was in."""
        progress = saved["progress"]
        self.network.load_state_dict(saved["network"])
        if self.average is not None:
            self.average.load_state_dict(saved["average"])
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
        self.log, self.partial = saved["log"], Partial(**saved["partial"])


def new_state(config: Experiment, device: torch.device) -> State:
    """A run at its start: the network on the device, the criterion bound to it. Raises UserError for combinations that cannot work."""
    torch.manual_seed(config.train.seed)  # of dropout
    network = build(config.model, seed=config.train.seed)
    criterion = Criterion(config.loss, network.outputs, config.model.name)
    for stage in config.train.stages:
        frozen_parameters(network, stage.optimizer.frozen_blocks)  # a later stage's mistake is told now
    network = network.to(device)
    average = copy.deepcopy(network).requires_grad_(False) if config.train.ema else None
    distributed.spread(network, config.train.sync_batchnorm)
    generator = torch.Generator().manual_seed(config.train.seed)
    scaler = torch.amp.GradScaler(device.type, enabled=config.train.precision == "fp16")
    forward = torch.compile(network) if config.train.compile else network
    return State(
        config,
        device,
        network,
        criterion,
        bins(config.model).to(device),
        generator,
        scaler,
        forward,
        average,
        make_teacher(config, device),
    )


def make_teacher(config: Experiment, device: torch.device) -> AgeNetwork | None:
    """The network that `train.teacher` names, in eval mode and without gradients; None where there is none.

    Raises UserError if the loss has no use for it or misses it, if it has other age bins, or sees faces of another alignment.
    """
    name, term = config.train.teacher, config.loss.distillation
    if name is None and term is None:
        return None
    if name is None:
        raise UserError("loss.distillation: has no teacher; set train.teacher, to start or to a model")
    if term is None:
        raise UserError(
            f"train.teacher={name}: no loss listens to it; set loss.distillation, or take the teacher away"
        )
    if name == "start":
        teacher = build(config.model, seed=config.train.seed)
    else:
        loaded = bundle.load(name)
        if loaded.experiment.model.ages != config.model.ages:
            raise UserError(
                f"train.teacher={name}: has model.ages={list(loaded.experiment.model.ages)}, this model {list(config.model.ages)}; "
                "they must be the same"
            )
        if loaded.experiment.align != config.align:
            raise UserError(
                f"train.teacher={name}: its align differs from this model's; the same faces must fit both"
            )
        teacher = loaded.network()
    return teacher.to(device).eval().requires_grad_(False)


def autocast(config: Experiment, device: torch.device) -> torch.autocast:
    """The number format of a training step's forward pass."""
    kind = torch.float16 if config.train.precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, kind, enabled=config.train.precision != "float32")
