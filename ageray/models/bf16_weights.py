"""Weights kept in bf16 where autocast would cast them anyway.

Autocast keeps the casts of a training step, but in inference mode it casts every weight again in
every batch: two small kernels a layer.
"""

from __future__ import annotations

import torch
from torch import nn

from ageray.models.network import AgeNetwork, Backbone


def keep_bf16(network: AgeNetwork) -> None:
    """Turns weights and biases of convolutions and linear layers to bf16, in place.

    The network may then only run under bf16 autocast. Its outputs stay equal in every bit, since
    autocast's cast of the same numbers gives the same numbers. Everything else stays float32:
    norms and buffers; an LSTM, whose weights autocast packs in a way of its own; parameters of
    other modules; and the layers that a network names in `float32_layers`.
    """
    exact: set[int] = set()
    for module in network.modules():
        if isinstance(module, AgeNetwork | Backbone):
            exact |= {id(getattr(module, name)) for name in module.float32_layers}
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and id(module) not in exact:
            module.to(torch.bfloat16)
