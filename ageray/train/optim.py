"""Optimiser and learning-rate schedule of a stage."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.optim import SGD, Adadelta, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ageray import experiment


def make_optimizer(
    network: nn.Module, head: Iterable[nn.Parameter], config: experiment.Optimizer
) -> Optimizer:
    """An optimiser with up to four groups: head and backbone, each with and without weight decay.

    Biases and norms have no weight decay. With `body_lr: 0` the parameters of the backbone are
    frozen: they take no gradient.
    """
    head_ids = set(map(id, head))
    backbone_lr = config.lr if config.body_lr is None else config.body_lr
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in network.parameters():
        lr = backbone_lr
        if id(parameter) in head_ids:
            lr = config.lr
        parameter.requires_grad_(lr > 0)
        if lr > 0:
            decay = config.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((lr, decay), []).append(parameter)
    parameters = []
    for (lr, decay), members in groups.items():
        parameters.append({"params": members, "lr": lr, "weight_decay": decay})
    if config.name == "sgd":
        return SGD(parameters, momentum=config.momentum, nesterov=config.momentum > 0)
    if config.name == "adadelta":
        return Adadelta(parameters)
    kind: Callable[..., Optimizer] = AdamW if config.name == "adamw" else Adam
    return kind(parameters, betas=(config.momentum, 0.999))


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
