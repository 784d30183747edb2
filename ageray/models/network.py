"""The interface of every network: a module from a batch of aligned faces to named tensors.

Shape letters: B faces, S side of the aligned face, K age bins, D features.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ageray.errors import UserError
from ageray.experiment.model import ClassifierBase, ClusterCnn

Batch = dict[str, Tensor]
REMEDY = "name another file, or none"
CLASSIFIER = "classifier:"
"""Prefix of the tensors of several classifiers in `AgeNetwork.detailed`."""
BIAS_GAP = 4.0
"""A bin that a published age layer lacks starts this far below the layer's lowest bias."""


class AgeNetwork(nn.Module):
    """A network that estimates ages.

    `forward` reads `face` (B, 3, S, S; RGB 0..255) and, if it needs them, `points` (B, 5, 2; pixels
    of the face). It returns named tensors: in training those of `outputs`, in eval mode `embedding`
    and those that an age is decoded from.
    """

    outputs: frozenset[str]
    whole_batch: frozenset[str] = frozenset()
    """Those of them that are not of this worker's faces but of the whole batch over all workers."""
    reads_points: bool = False
    """Whether `forward` needs `points`."""
    classifier_names: tuple[str, ...] = ()
    """Names of several classifiers, as `classifiers` gives them. The last one decides."""
    float32_layers: tuple[str, ...] = ()
    """Names of its convolutions and linear layers that compute in float32 under autocast too, or
    whose weights it changes before it uses them."""

    def forward(self, batch: Batch) -> Batch:
        """Named tensors of a batch."""
        raise NotImplementedError

    def classifiers(self, batch: Batch) -> dict[str, Tensor]:
        """The output of each of `classifier_names`, in any mode.

        Each is `logits` (B, K) or `ordinal_logits` (B, K - 1).
        """
        return {}

    def detailed(self, batch: Batch) -> Batch:
        """The tensors of `forward` and, from the same pass, the output of each of
        `classifier_names` under `CLASSIFIER` and its name."""
        outputs: Batch = self(batch)
        return outputs

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that start from random values and take the full learning rate.

        All others belong to the backbone.
        """
        raise NotImplementedError

    def get_backbone(self) -> nn.Module:
        """The part that `optimizer.body_lr: 0` freezes, with its batch statistics."""
        raise NotImplementedError

    def fixed_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that no stage trains, whatever its rates. Only a network with published
        parts that stay as they are has any."""
        return iter(())

    @property
    def num_init_faces(self) -> int:
        """Number of training faces, of all workers, that `init_from_features` needs before the
        first step; 0 if the network needs none.
        """
        return 0

    @property
    def least_side(self) -> int:
        """The smallest face in pixels: the backbone's, else 16, the least `align.size`."""
        backbone = self.get_backbone()
        if isinstance(backbone, Backbone):
            return backbone.least_side
        return 16

    def load_backbone(self, state: dict[str, Tensor]) -> None:
        """Loads published weights of the backbone.

        Raises KeyError or RuntimeError if they belong to another network.
        """
        raise NotImplementedError

    def init_features(self, batch: Batch) -> Tensor:
        """The features of these faces that `init_from_features` takes: (B, D)."""
        raise NotImplementedError

    def init_from_features(self, features_ND: Tensor, generator: torch.Generator) -> None:
        """Initialises from features of training faces; called once, before the first step.

        features_ND: the `init_features` of `num_init_faces` faces (or fewer), of all workers.
        """
        raise NotImplementedError


class Backbone(nn.Module):
    """A feature extractor.

    `forward` takes float RGB in 0..255, (B, 3, S, S), to pooled features (B, D). D is `features`.
    """

    name: str
    features: int
    least_side: int
    """The smallest face in pixels."""
    float32_layers: tuple[str, ...] = ()
    """As of `AgeNetwork`."""

    def load_backbone(self, state: dict[str, Tensor]) -> None:
        """Takes published weights.

        Raises KeyError or RuntimeError if they are another network's.
        """
        raise NotImplementedError

    def published_head(self, state: dict[str, Tensor]) -> PublishedHead | None:
        """The age layers that the same file brings; None where it has none."""
        return None

    def blocks(self) -> list[nn.Module]:
        """Its parts from the input on, for `optimizer.frozen_blocks`; empty if it cannot be frozen
        in part."""
        return []


@dataclass(frozen=True)
class PublishedHead:
    """The last layers of a published age network: hidden = relu(W_h x + b_h), logits of one bin a
    year = W_a hidden + b_a.

    hidden_weight (H, D), hidden_bias (H,), age_weight (K, H), age_bias (K,); first_age is the age
    of the first bin, in years.
    """

    hidden_weight: Tensor
    hidden_bias: Tensor
    age_weight: Tensor
    age_bias: Tensor
    first_age: int


class Coral(nn.Module):
    """The CORAL layer (Cao, Mirjalili and Raschka 2020): (B, D) to (B, K - 1).

    All questions 'older than bin k?' share one weight vector. Each has its own bias.
    """

    def __init__(self, features: int, questions: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, features))
        # Descending biases, so that the first posterior is uniform.
        share = torch.arange(questions, 0, -1) / (questions + 1)
        self.bias = nn.Parameter(torch.logit(share))
        nn.init.normal_(self.weight, std=0.01)

    def forward(self, features_BD: Tensor) -> Tensor:
        """One logit for each question."""
        return F.linear(features_BD, self.weight) + self.bias


class Number(nn.Module):
    """One regressed age in years: (B, D) to (B, 1).

    It is the middle of the bins plus a linear function of the features times half their range, so
    that it starts within them and one rate serves this layer and a classifier. The paper does not
    give its scale.
    """

    def __init__(self, features: int, first: int, last: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, 1)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)
        self._middle, self._half = (first + last) / 2, (last - first) / 2
        self._first, self._last = first, last

    def forward(self, features_BD: Tensor) -> Tensor:
        """Ages in years, not clipped."""
        age_B1: Tensor = self.linear(features_BD).float() * self._half + self._middle
        return age_B1

    def logits(self, number_B1: Tensor) -> Tensor:
        """Logits (B, K) of a posterior whose expectation is the age, clipped to the bins.

        The age is divided between the two bins around it.
        """
        bins_K = torch.arange(self._first, self._last + 1, dtype=torch.float32, device=number_B1.device)
        age_B1 = number_B1.float().clamp(self._first, self._last)
        share_BK = (1 - (age_B1 - bins_K).abs()).clamp_min(0)
        return share_BK.clamp_min(torch.finfo(torch.float32).tiny).log()


def age_head(config: ClassifierBase | ClusterCnn, features: int) -> nn.Module:
    """The last layer, by `config.classifier`: (B, features) to (B, K), (B, K - 1) or (B, 1)."""
    count = config.ages[1] - config.ages[0] + 1
    if config.classifier == "number":
        return Number(features, *config.ages)
    if config.classifier == "coral":
        return Coral(features, count - 1)
    outputs = count if config.classifier == "softmax" else count - 1
    layer = nn.Linear(features, outputs)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    return layer


def head_output(config: ClassifierBase | ClusterCnn) -> str:
    """The name of the last layer's output: `logits`, `ordinal_logits` for binary questions, or
    `number` for a regressed age.

    The output of auxiliary classifiers has the prefix `aux_`.
    """
    return _HEAD_OUTPUTS[config.classifier]


_HEAD_OUTPUTS = {
    "softmax": "logits",
    "or_cnn": "ordinal_logits",
    "coral": "ordinal_logits",
    "number": "number",
}


def eval_outputs(name: str, output: Tensor, head: nn.Module) -> Batch:
    """The last layer's output in eval mode, from which an age is decoded: `output` under `name`,
    or `logits` of a regressed `number`."""
    if isinstance(head, Number):
        return {"logits": head.logits(output)}
    return {name: output}


def scaled(channels: int, width: float) -> int:
    """The channel count of a network of another width: a multiple of 8, at least 16.

    With fewer than 16 channels, channels-last input and two threads on AVX-512, oneDNN 3.12 (torch
    2.14) writes beyond the weight gradient of a strided 1x1 convolution. The process aborts, or
    other memory changes.
    """
    return max(16, 8 * round(channels * width / 8))


def no_imagenet(name: str, remedy: str = REMEDY) -> UserError:
    """The error for `weights: imagenet` if no such weights are published."""
    return UserError(f"model.weights=imagenet: there are no published ImageNet weights for {name}; {remedy}")
