"""A body that no stage moves gives a face the same features in every step: they are computed once, and only the head is trained.

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

_SEEN = ("canvas", "points", "box")


class PrecomputedFeatures(nn.Module):
    """Stands where a body stood: features (B, D), given in the place of faces, come out as they are."""

    def forward(self, features_BD: Tensor) -> Tensor:
        """The same."""
        return features_BD


def applies(experiment: Experiment, network: AgeNetwork) -> bool:
    """Whether remembered features train the same head: every stage has `optimizer.body_lr: 0`, training changes no face at random but by
    mirroring it (all of `train.augment` but `flip` is 0), no teacher looks at the faces, and the network sees a face through its backbone's pooled features alone."""
    still = all(stage.optimizer.body_lr == 0 for stage in experiment.train.stages)
    changes = experiment.train.augment.model_dump(exclude={"flip"})
    one_view = experiment.model.decode.views == (View(),)  # what is remembered is of one view
    alone = experiment.train.teacher is None  # a teacher sees faces, not features
    pooled = isinstance(network.body(), Backbone)
    return still and one_view and alone and not any(changes.values()) and pooled


def detach_backbone(network: AgeNetwork) -> nn.Module:
    """Takes the body out of the network and returns it. From then on the network takes features (B, D) as its `face`."""
    body = network.body()
    name = next(name for name, module in network.named_modules() if module is body)
    network.set_submodule(name, PrecomputedFeatures())
    return body


@torch.inference_mode()
def features(
    body: nn.Module, faces: Columns, config: Experiment, device: torch.device
) -> NDArray[np.float32]:
    """The body's features of each face and of its mirror image, without augmentation: (N, 2, D), what the column `features` of a batch is to
    `ageray.train.loop` and `ageray.models.inference`. `faces` holds canvas, points and box of N faces, one at least."""
    body, size = body.to(device).eval(), config.scale.faces_a_batch(device.type == "cuda")
    found = []
    for first in range(0, len(faces["canvas"]), size):
        batch = to_tensors({name: faces[name][first : first + size] for name in _SEEN}, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.train.precision == "bf16"):
            both = [body(view["face"]).float() for view in views(batch, config, mirrored=True)]
        found.append(torch.stack(both, 1).cpu().numpy())
    return np.concatenate(found)
