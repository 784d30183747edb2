"""The loss of one batch over all workers: augmented faces in, a scalar and its terms out.

Network and criterion are one module, so that DistributedDataParallel sees exactly the parameters
that the loss reaches.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ageray import distributed
from ageray.experiment import Experiment
from ageray.losses.criterion import FIELDS, Criterion
from ageray.models.network import AgeNetwork


class BatchLoss(nn.Module):
    """forward: a batch of this worker's faces to the loss of the whole batch and its unweighted
    terms (detached).
    """

    def __init__(self, config: Experiment, network: AgeNetwork, criterion: Criterion, bins_K: Tensor) -> None:
        super().__init__()
        self._config, self._criterion, self._bins_K = config, criterion, bins_K
        self._ungathered = network.whole_batch | {"bins"}
        self.network = torch.compile(network) if config.train.compile else network

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """batch: `face` and what else the network takes; `age` (B,), and `gender`, `weight` (B,)
        where there are any.
        """
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
            tensor = own[name]
            whole[name] = tensor if name in self._ungathered else distributed.all_gather(tensor)
        return whole


def autocast(config: Experiment, device: torch.device) -> torch.autocast:
    """The number format of a training step's forward pass, by `train.precision`."""
    kind = torch.float16 if config.train.precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, kind, enabled=config.train.precision != "float32")
