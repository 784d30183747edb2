"""The forward pass that decides: aligned faces to a posterior over age bins, averaged with the mirror image. Used by validation and by the
predictor, so that what was selected is what is served. Shape letters: B faces, K bins."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ageray.experiment import Experiment
from ageray.faces import geometry
from ageray.faces.align import align_faces, standardize
from ageray.models.decode import classifier_posterior


def posterior(network: nn.Module, batch: dict[str, Tensor], config: Experiment, autocast: bool) -> Tensor:
    """Probabilities (B, K), float32, of canvases `canvas` (B, 3, C, C), `points` (B, 5, 2), `box` (B, 4) on the network's device.

    With `decode.flip` the mean of the face's posterior and its mirror image's (DHAA, section 4.2). The network must be in eval mode.
    """
    faces, points = align_faces(batch["canvas"], batch["points"], batch["box"], config.align)
    faces = standardize(faces, config.align).contiguous(memory_format=torch.channels_last)
    with torch.autocast(faces.device.type, torch.bfloat16, enabled=autocast):
        result = classifier_posterior(network({"face": faces, "points": points}))
        if config.model.decode.flip:
            mirrored = {"face": faces.flip(-1), "points": geometry.mirror_points(points, config.align.size)}
            result = (result + classifier_posterior(network(mirrored))) / 2
    return result
