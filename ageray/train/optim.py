"""Optimiser and schedule of a stage."""

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
    """Four groups: head and body, each with and without weight decay (biases and norms are exempt).

    A body rate of 0 freezes the body: its parameters take no gradient.
    """
    head_ids = {id(parameter) for parameter in head}
    body_lr = config.lr if config.body_lr is None else config.body_lr
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in network.parameters():
        lr = config.lr if id(parameter) in head_ids else body_lr
        parameter.requires_grad_(lr > 0)
        if lr > 0:
            decay = config.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((lr, decay), []).append(parameter)
    parameters = [
        {"params": members, "lr": lr, "weight_decay": decay} for (lr, decay), members in groups.items()
    ]
    if config.name == "sgd":
        return SGD(parameters, momentum=config.momentum, nesterov=config.momentum > 0)
    if config.name == "adadelta":
        return Adadelta(parameters)
    kind: Callable[..., Optimizer] = AdamW if config.name == "adamw" else Adam
    return kind(parameters, betas=(config.momentum, 0.999))


def factor(config: experiment.Schedule, step: int, steps: int) -> float:
    """The learning rate at `step` of `steps` as a factor of the peak: linear warm-up, then constant, half a cosine down to 0, or steps of 10."""
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
