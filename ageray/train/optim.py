"""Optimiser and schedule of a stage."""

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
    """Four groups: head and body, each with and without weight decay (biases and norms are
    exempt).

    A body rate of 0 freezes the body: its parameters take no gradient; `config.frozen_blocks`
    freezes its first blocks.
    """
    frozen_ids = frozen_parameters(network, config.frozen_blocks)
    head_ids = {id(parameter) for parameter in head}
    body_lr = config.lr if config.body_lr is None else config.body_lr
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in network.parameters():
        lr = config.lr if id(parameter) in head_ids else body_lr
        if id(parameter) in frozen_ids:
            lr = 0.0
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


def frozen_parameters(network: nn.Module, blocks: int) -> set[int]:
    """The identities of the parameters of the backbone's first `blocks` blocks
    (`optimizer.frozen_blocks`).

    Raises UserError if the backbone has fewer blocks, or none that can be frozen.
    """
    if blocks == 0:
        return set()
    backbone = network.body() if isinstance(network, AgeNetwork) else network
    parts = backbone.blocks() if isinstance(backbone, Backbone) else []
    if blocks > len(parts):
        name = getattr(backbone, "name", "this network")
        raise UserError(
            f"train.stages: optimizer.frozen_blocks={blocks}, but {name} has {len(parts)} blocks that can "
            f"be frozen; set {len(parts)} or less"
        )
    return {id(parameter) for part in parts[:blocks] for parameter in part.parameters()}


def factor(config: experiment.Schedule, step: int, steps: int) -> float:
    """The learning rate at `step` of `steps` as a factor of the peak: linear warm-up, then
    constant, half a cosine down to 0, or steps of 10."""
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
