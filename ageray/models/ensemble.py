"""`ensemble`: several networks whose posteriors are averaged.

Shape letters: B faces, S side of the aligned face, R side of a member's input, K age bins, M age
bins of a member.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ageray import experiment
from ageray.experiment import Align
from ageray.experiment.model import Member
from ageray.faces.align import standardize
from ageray.faces.constants import constant
from ageray.models.decode import classifier_posterior
from ageray.models.network import AgeNetwork, Batch


class Ensemble(AgeNetwork):
    """The weighted mean of the members' posteriors, each over the ensemble's bins.

    Yields `logits` (B, K), the logarithm of that mean, whose softmax it is; and `embedding`, the
    first member's, where it has one. A face is aligned once, at the ensemble's size, and resized
    for members with a size of their own.
    """

    def __init__(self, config: experiment.model.Ensemble, members: list[AgeNetwork]) -> None:
        """members: the networks of `config.members`, in their order."""
        super().__init__()
        self._settings = config.members
        self._first_age, self._bins = config.ages[0], config.ages[1] - config.ages[0] + 1
        self.members = nn.ModuleList(members)
        self.outputs = frozenset({"logits"} | ({"embedding"} & members[0].outputs))
        self.reads_points = any(network.reads_points for network in members)
        weights = torch.tensor([member.weight for member in config.members])
        self._weights = (weights / weights.sum()).tolist()

    def forward(self, batch: Batch) -> Batch:
        """Faces to the logarithm of the mean posterior."""
        outputs: Batch = {}
        mean_BK: Tensor | None = None
        for place, (settings, network) in enumerate(zip(self._settings, self.members, strict=True)):
            own = network(member_input(batch, settings))
            if place == 0 and "embedding" in self.outputs:
                outputs["embedding"] = own["embedding"]
            share_BK = self._weights[place] * self._spread(classifier_posterior(own), settings)
            mean_BK = share_BK if mean_BK is None else mean_BK + share_BK
        assert mean_BK is not None
        tiny = torch.finfo(mean_BK.dtype).tiny
        return outputs | {"logits": mean_BK.clamp_min(tiny).log()}

    def _spread(self, posterior_BM: Tensor, settings: Member) -> Tensor:
        """A member's posterior over the ensemble's bins: (B, K); 0 where the member has no bin."""
        before = settings.model.ages[0] - self._first_age
        after = self._bins - before - posterior_BM.shape[-1]
        return F.pad(posterior_BM, (before, after))

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """Those of all members."""
        for network in self.members:
            assert isinstance(network, AgeNetwork)
            yield from network.head_parameters()

    def get_backbone(self) -> nn.Module:
        """The members."""
        return self.members

    @property
    def least_side(self) -> int:
        """16, the least of `align.size`: members resize the face."""
        return 16


def member_input(batch: Batch, settings: Member) -> Batch:
    """The batch as a member takes it: `face` (B, 3, R, R) and, where there are points, `points`
    in its pixels."""
    face_B3SS, inputs = batch["face"], dict(batch)
    side, size = face_B3SS.shape[-1], settings.size or face_B3SS.shape[-1]
    if size != side:
        resize_RS = constant(resize_matrix, side, size, like=face_B3SS)
        with torch.autocast(face_B3SS.device.type, enabled=False):  # bf16 has too few digits for pixels
            inputs["face"] = resize_RS @ face_B3SS @ resize_RS.T
        if "points" in batch:
            inputs["points"] = (batch["points"] + 0.5) * (size / side) - 0.5
    if settings.standardize:
        inputs["face"] = standardize(inputs["face"], Align(size=size, standardize=True))
    return inputs


def resize_matrix(side: int, size: int) -> Tensor:
    """Bilinear interpolation of one axis from `side` to `size` pixels, smoothed where it shrinks
    (torch's `antialias`): (size, side).

    A picture X (S, S) becomes A X A^T. As a matrix it exports to ONNX and gives the same pixels on
    every device. The weight of a pixel falls linearly with its distance from the new pixel's
    centre, to 0 at the larger of the two pixels' sides.
    """
    step = side / size
    centre_R1 = ((torch.arange(size) + 0.5) * step)[:, None]
    distance_RS = (torch.arange(side) + 0.5 - centre_R1).abs()
    weight_RS = (1 - distance_RS / max(step, 1.0)).clamp_min(0)
    return weight_RS / weight_RS.sum(1, keepdim=True)
