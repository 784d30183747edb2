"""Optimiser and learning-rate schedule of a stage."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.optim import SGD, Adadelta, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ageray import experiment
from ageray.errors import UserError
from ageray.models.network import AgeNetwork, Backbone


def make_optimizer(
    network: nn.Module, head: Iterable[nn.Parameter], config: experiment.Optimizer
) -> Optimizer:
    """An optimiser with up to four groups: head and backbone, each with and without weight decay.

    Biases and norms have no weight decay. With `body_lr: 0` the parameters of the backbone are
    frozen: they take no gradient; `config.frozen_blocks` freezes its first blocks. What a network
    never trains (`fixed_parameters`) is frozen always.
    """
    frozen_ids = frozen_parameters(network, config.frozen_blocks)
    head_ids = set(map(id, head))
    backbone_lr = config.lr
    if config.body_lr is not None:
        backbone_lr = config.body_lr
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in network.parameters():
        lr = backbone_lr
        if id(parameter) in head_ids:
            lr = config.lr
        if id(parameter) in frozen_ids:
            lr = 0.0
        parameter.requires_grad_(lr > 0)
        if lr > 0:
            decay = config.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((lr, decay), []).append(parameter)
    parameters = []
    for (lr, decay), members in groups.items():
        parameters.append({"params": members, "lr": lr, "weight_decay": decay})
    if config.name == "sgd":
        return SGD(parameters, momentum=config.momentum, nesterov=config.nesterov and config.momentum > 0)
    if config.name == "adadelta":
        return Adadelta(parameters, rho=config.rho)
    kind: Callable[..., Optimizer] = AdamW if config.name == "adamw" else Adam
    # One kernel a group instead of some ten; on a CPU torch's loop is as fast.
    on_gpu = any(parameter.is_cuda for parameter in network.parameters())
    return kind(parameters, betas=(config.momentum, 0.999), fused=on_gpu or None)


def frozen_parameters(network: nn.Module, blocks: int) -> set[int]:
    """The identities of the parameters of the backbone's first `blocks` blocks
    (`optimizer.frozen_blocks`), and of those that the network never trains.

    Raises UserError if the backbone has fewer blocks, or none that can be frozen.
    """
    fixed, backbone = set[int](), network
    if isinstance(network, AgeNetwork):
        fixed |= set(map(id, network.fixed_parameters()))
    if blocks == 0:
        return fixed
    if isinstance(network, AgeNetwork):
        backbone = network.get_backbone()
    parts = backbone.blocks() if isinstance(backbone, Backbone) else []
    if blocks > len(parts):
        name = getattr(backbone, "name", "this network")
        raise UserError(
            f"train.stages: optimizer.frozen_blocks={blocks}, but {name} has {len(parts)} blocks that can "
            f"be frozen; set {len(parts)} or less"
        )
    for part in parts[:blocks]:
        fixed |= set(map(id, part.parameters()))
    return fixed


def factor(config: experiment.Schedule, step: int, steps: int) -> float:
    """The learning rate at `step` of `steps`, divided by its peak.

    A linear warm-up, then constant, half a cosine down to 0, or a tenth at each milestone.
    """
    warmup = round(config.warmup * steps)
    if step < warmup:
        return (step + 1) / warmup
    if config.name == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
    if config.name == "step":
        return 0.1 ** sum(step >= milestone * steps for milestone in config.milestones)
    return 1.0


def make_schedule(optimizer: torch.optim.Optimizer, config: experiment.Schedule, steps: int) -> LambdaLR:
    """A scheduler to be stepped once after each training step."""
    return LambdaLR(optimizer, lambda step: factor(config, step, steps))
