"""Features of a frozen backbone: if no stage trains the backbone, compute them once and train only
the head.

Shape letters: N faces, D features, B faces of a batch.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ageray.experiment import Experiment
from ageray.experiment.model import View
from ageray.faces.canvases import to_tensors
from ageray.models.inference import views
from ageray.models.network import AgeNetwork, Backbone
from ageray.train.state import Columns

_COLUMNS = ("canvas", "points", "box")


class PrecomputedFeatures(nn.Module):
    """Stands in for a backbone: the network is given features (B, D) instead of faces."""

    def forward(self, features_BD: Tensor) -> Tensor:
        """The features, unchanged."""
        return features_BD


def applies(experiment: Experiment, network: AgeNetwork) -> bool:
    """Whether training on precomputed features gives the same head.

    This needs `optimizer.body_lr: 0` in every stage, no augmentation but mirroring (all of
    `train.augment` but `flip` is 0, `train.sizes` is empty), no teacher, one view (`decode.views`),
    and a network that sees a face only through its backbone's pooled features.
    """
    is_frozen = all(stage.optimizer.body_lr == 0 for stage in experiment.train.stages)
    augment = experiment.train.augment.model_dump(exclude={"flip"}) | {"sizes": experiment.train.sizes}
    is_plain = experiment.model.decode.views == (View(),) and experiment.train.teacher is None
    pooled = isinstance(network.get_backbone(), Backbone)
    return is_frozen and is_plain and not any(augment.values()) and pooled


def detach_backbone(network: AgeNetwork) -> nn.Module:
    """Takes the backbone out of the network, which then takes features (B, D) as its `face`;
    returns it.
    """
    backbone = network.get_backbone()
    for name, module in network.named_modules():
        if module is backbone:
            network.set_submodule(name, PrecomputedFeatures())
            break
    return backbone


@torch.inference_mode()
def features(
    backbone: nn.Module, faces: Columns, config: Experiment, device: torch.device
) -> NDArray[np.float32]:
    """The backbone's features of each face and of its mirror image, without augmentation: (N, 2,
    D).

    They are the column `features` of a batch, see `ageray.train.loop` and
    `ageray.models.inference`. faces: `canvas`, `points` and `box` of N >= 1 faces.
    """
    backbone, size = backbone.to(device).eval(), config.scale.faces_a_batch(device.type == "cuda")
    bf16 = config.train.precision == "bf16"
    parts = []
    for first in range(0, len(faces["canvas"]), size):
        batch = to_tensors({name: faces[name][first : first + size] for name in _COLUMNS}, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            both = [backbone(view["face"]).float() for view in views(batch, config, mirrored=True)]
        parts.append(torch.stack(both, 1).cpu().numpy())
    return np.concatenate(parts)
