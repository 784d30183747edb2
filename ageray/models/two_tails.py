"""`two_tails`: a published age network that is trained without forgetting.

All tails share the first blocks, which stay as published. The last blocks exist in several copies,
the tails: one with the published weights and age layer, which stays as it is, and others that are
trained. The published tail was trained on half a million dated photos and is better on the young;
the trained tails are better on adults. The posterior of a face is a mixture of both, weighted by
the age that the published tail estimates.

Shape letters: B faces, S side of the face, C channels, H height, W width, D features, M hidden
features, K age bins, A tails.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ageray.experiment.model import TwoTails as Config
from ageray.models.decode import bins, median
from ageray.models.mobilenet import MobileNetV1
from ageray.models.network import BIAS_GAP, AgeNetwork, Batch, PublishedHead

_LEAST = 1e-12
"""Added to a mixture before its logarithm, so that logits are finite."""


class Tail(nn.Module):
    """The last blocks of MobileNetV1, a hidden layer and a classifier: maps (B, C, H, W) to
    logits (B, K) and hidden features (B, M)."""

    def __init__(self, backbone: MobileNetV1, first: int, hidden: int, ages: int, dropout: float) -> None:
        """first: the first separable block that the tail has."""
        super().__init__()
        self.dw = nn.ModuleList(copy.deepcopy(block) for block in backbone.dw[first:])
        self.pw = nn.ModuleList(copy.deepcopy(block) for block in backbone.pw[first:])
        self.hidden = nn.Linear(backbone.features, hidden)
        self.dropout = nn.Dropout(dropout)
        self.age = nn.Linear(hidden, ages)
        nn.init.kaiming_normal_(self.hidden.weight, nonlinearity="relu")
        nn.init.zeros_(self.hidden.bias)

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, K) and what they are linear in (B, M)."""
        for depthwise, pointwise in zip(self.dw, self.pw, strict=True):
            x_BCHW = F.relu6(pointwise(F.relu6(depthwise(x_BCHW))))
        hidden_BM = F.relu(self.hidden(x_BCHW.mean((2, 3))))
        logits_BK: Tensor = self.age(self.dropout(hidden_BM))
        return logits_BK, hidden_BM

    def load_blocks(self, backbone: MobileNetV1, first: int) -> None:
        """Takes the backbone's weights of these blocks."""
        for own, published in ((self.dw, backbone.dw), (self.pw, backbone.pw)):
            for block, source in zip(own, published[first:], strict=True):
                block.load_state_dict(source.state_dict())

    @torch.no_grad()
    def load_head(self, published: PublishedHead, first_age: int) -> None:
        """Takes the hidden layer and, for each bin that is there, the published row of that age.
        first_age: of the first bin, in years."""
        self.hidden.weight.copy_(published.hidden_weight)
        self.hidden.bias.copy_(published.hidden_bias)
        self.age.weight.zero_()
        self.age.bias.fill_(float(published.age_bias.min()) - BIAS_GAP)
        for row in range(self.age.out_features):
            source = first_age + row - published.first_age
            if 0 <= source < len(published.age_bias):
                self.age.weight[row] = published.age_weight[source]
                self.age.bias[row] = published.age_bias[source]


class TwoTails(AgeNetwork):
    """See the module. In training it yields the `logits` (B, K) of the first trained tail, those
    of the others as `aux_logits` (B, A - 1, K), and `embedding` (B, M), the published tail's
    hidden features. In eval mode `logits` are the logarithm of the mixture."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        backbone = MobileNetV1()
        self.name, self.least = backbone.name, backbone.least_side
        self.config = config
        self.first = config.shared_blocks - 1  # the first convolution is a block of its own
        self.register_buffer("bins", bins(config), persistent=False)
        self.bins: Tensor
        count = len(self.bins)
        self.published = Tail(backbone, self.first, config.hidden, count, 0.0)
        self.tails = nn.ModuleList(
            Tail(backbone, self.first, config.hidden, count, config.dropout) for _ in range(config.tails)
        )
        del backbone.dw[self.first :], backbone.pw[self.first :]
        self.trunk = backbone
        self.outputs = frozenset({"logits", "embedding"} | ({"aux_logits"} if config.tails > 1 else set()))

    def maps(self, face_B3SS: Tensor) -> Tensor:
        """What the tails read: (B, C, H, W)."""
        x_BCHW = F.relu6(self.trunk.conv1(face_B3SS - self.trunk.mean))
        for depthwise, pointwise in zip(self.trunk.dw, self.trunk.pw, strict=True):
            x_BCHW = F.relu6(pointwise(F.relu6(depthwise(x_BCHW))))
        return x_BCHW

    def forward(self, batch: Batch) -> Batch:
        """Faces to logits and embedding; see the class."""
        with torch.no_grad():
            maps_BCHW = self.maps(batch["face"])
            published_BK, embedding_BM = self.published(maps_BCHW)
        logits = [tail(maps_BCHW)[0] for tail in self.tails]
        if not self.training:
            return {"logits": self._mixture(published_BK, logits), "embedding": embedding_BM}
        outputs = {"logits": logits[0], "embedding": embedding_BM}
        if len(logits) > 1:
            outputs["aux_logits"] = torch.stack(logits[1:], 1)
        return outputs

    def _mixture(self, published_BK: Tensor, logits: list[Tensor]) -> Tensor:
        """log of s p + (1 - s) q: p the published tail's posterior, q the mean of the trained
        tails', s = share / (1 + exp((m - age) / width)) with m the median of p in years."""
        young = self.config.young
        published_BK = torch.softmax(published_BK.float(), -1)
        trained_BK = torch.stack([torch.softmax(each.float(), -1) for each in logits]).mean(0)
        median_B1 = median(published_BK, self.bins)
        share_B1 = young.share * torch.sigmoid((young.age - median_B1) / young.width)
        return (share_B1 * published_BK + (1 - share_B1) * trained_BK + _LEAST).log()

    def train(self, mode: bool = True) -> TwoTails:
        """As of any module; the shared blocks and the published tail take no gradient in either
        mode."""
        super().train(mode)
        for parameter in self.fixed_parameters():
            parameter.requires_grad_(False)
        return self

    def fixed_parameters(self) -> Iterator[nn.Parameter]:
        """Those of the shared blocks and of the published tail."""
        return chain(self.trunk.parameters(), self.published.parameters())

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """The trained tails' hidden layers and classifiers."""
        for tail in self.tails:
            assert isinstance(tail, Tail)
            yield from chain(tail.hidden.parameters(), tail.age.parameters())

    def get_backbone(self) -> nn.Module:
        """The trained tails, whose blocks take the body's rate."""
        return self.tails

    @property
    def least_side(self) -> int:
        """MobileNetV1's."""
        return self.least

    def load_backbone(self, state: dict[str, Tensor]) -> None:
        """Takes a published age network into the trunk and every tail. Raises KeyError or
        RuntimeError if it is another, or has no age layer."""
        whole = MobileNetV1()
        whole.load_backbone(state)
        head = whole.published_head(state)
        if head is None or head.hidden_weight.shape != self.published.hidden.weight.shape:
            raise KeyError("no age layer behind a hidden layer of this size, which two_tails starts from")
        self.trunk.conv1.load_state_dict(whole.conv1.state_dict())
        for own, published in ((self.trunk.dw, whole.dw), (self.trunk.pw, whole.pw)):
            for block, source in zip(own, published, strict=False):
                block.load_state_dict(source.state_dict())
        for tail in (self.published, *self.tails):
            assert isinstance(tail, Tail)
            tail.load_blocks(whole, self.first)
            tail.load_head(head, self.config.ages[0])
