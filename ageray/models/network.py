"""What every network of this package is: a module from a batch of aligned faces to named tensors.

Shape letters: B faces, S side of the aligned face, K age bins, D features.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ageray.errors import UserError
from ageray.experiment.model import ClassifierBase

Batch = dict[str, Tensor]
REMEDY = "name another file, or none"


class AgeNetwork(nn.Module):
    """forward reads `face` (B, 3, S, S; RGB 0..255) and, where it needs them, `points` (B, 5, 2; pixels of the face), and yields named tensors.

    `outputs` names the tensors it yields in training. In eval mode it yields those from which an age is decoded, and `embedding`.
    """

    outputs: frozenset[str]
    whole_batch: frozenset[str] = frozenset()
    """Those of them that are not of this worker's faces but of the whole batch over all workers."""
    reads_points: bool = False
    """Whether `forward` needs `points`."""
    classifier_names: tuple[str, ...] = ()
    """Of a network with several classifiers: what `classifiers` names them, the one that decides last."""

    def forward(self, batch: Batch) -> Batch:
        """Faces to named tensors."""
        raise NotImplementedError

    def classifiers(self, batch: Batch) -> dict[str, Tensor]:
        """What each of `classifier_names` says, in any mode: `logits` (B, K) or `ordinal_logits` (B, K - 1)."""
        return {}

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that start from nothing and take the full learning rate; the others are the backbone."""
        raise NotImplementedError

    def get_backbone(self) -> nn.Module:
        """The part that `optimizer.body_lr: 0` freezes, batch statistics included."""
        raise NotImplementedError

    def fixed_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that no stage trains, whatever its rates; none but in a network that keeps published parts."""
        return iter(())

    @property
    def num_init_faces(self) -> int:
        """How many training faces, of all workers, the network wants to see before its first step (see `init_from_features`); 0 for none."""
        return 0

    @property
    def least_side(self) -> int:
        """The smallest face it takes, in pixels: its backbone's, else 16, the least of `align.size`."""
        backbone = self.get_backbone()
        return backbone.least_side if isinstance(backbone, Backbone) else 16

    def load_backbone(self, state: dict[str, Tensor]) -> None:
        """Takes published weights of the backbone. Raises KeyError or RuntimeError if they are another network's."""
        raise NotImplementedError

    def init_features(self, batch: Batch) -> Tensor:
        """What `init_from_features` takes of these faces: (B, D)."""
        raise NotImplementedError

    def init_from_features(self, features_ND: Tensor, generator: torch.Generator) -> None:
        """Called once before the first step with what `init_features` gave for `num_init_faces` training faces (or fewer), of all workers."""
        raise NotImplementedError


class Backbone(nn.Module):
    """What a network builds on. forward: float RGB in 0..255, (B, 3, S, S), to pooled features (B, D), where D is `features`."""

    name: str
    features: int
    least_side: int
    """The smallest face it takes, in pixels."""

    def load_backbone(self, state: dict[str, Tensor]) -> None:
        """Takes published weights. Raises KeyError or RuntimeError if they are another network's."""
        raise NotImplementedError

    def published_head(self, state: dict[str, Tensor]) -> PublishedHead | None:
        """The age layers that the same file brings; None where it has none."""
        return None

    def blocks(self) -> list[nn.Module]:
        """Its parts from the input on, for `optimizer.frozen_blocks`; empty where it cannot be frozen in part."""
        return []


@dataclass(frozen=True)
class PublishedHead:
    """The last layers of a published age network: hidden = relu(W_h x + b_h), logits of one bin a year = W_a hidden + b_a.

    hidden_weight (H, D), hidden_bias (H,), age_weight (K, H), age_bias (K,); first_age is the age of the first bin, in years.
    """

    hidden_weight: Tensor
    hidden_bias: Tensor
    age_weight: Tensor
    age_bias: Tensor
    first_age: int


class Coral(nn.Module):
    """One weight vector for all questions 'older than bin k', and a bias each (Cao, Mirjalili and Raschka 2020): (B, D) to (B, K - 1)."""

    def __init__(self, features: int, questions: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, features))
        # descending, as the answers are, and spread so that the first posterior is even
        share = torch.arange(questions, 0, -1) / (questions + 1)
        self.bias = nn.Parameter(torch.logit(share))
        nn.init.normal_(self.weight, std=0.01)

    def forward(self, features_BD: Tensor) -> Tensor:
        """Features to one logit a question."""
        return F.linear(features_BD, self.weight) + self.bias


def age_head(config: ClassifierBase, features: int) -> nn.Module:
    """The last layer over age bins that `config.classifier` names: (B, features) to (B, K) or (B, K - 1)."""
    count = config.ages[1] - config.ages[0] + 1
    if config.classifier == "coral":
        return Coral(features, count - 1)
    layer = nn.Linear(features, count if config.classifier == "softmax" else count - 1)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    return layer


def head_output(config: ClassifierBase) -> str:
    """The name of that layer's tensor: `logits`, or `ordinal_logits` for binary questions. An auxiliary classifier's has `aux_` before it."""
    return "logits" if config.classifier == "softmax" else "ordinal_logits"


def scaled(channels: int, width: float) -> int:
    """A narrower (or wider) network's channel count: whole eights, 16 at least.

    Below 16 oneDNN 3.12 (torch 2.14) writes past the weight gradient of a strided 1x1 convolution of channels-last input, with two threads on
    AVX-512: the process aborts, or other memory changes.
    """
    return max(16, 8 * round(channels * width / 8))


def no_imagenet(name: str, remedy: str = REMEDY) -> UserError:
    """The answer to `weights: imagenet` where nobody has published any."""
    return UserError(f"model.weights=imagenet: there are no published ImageNet weights for {name}; {remedy}")
