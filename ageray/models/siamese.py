"""`siamese`: a backbone with one embedding for age and one for gender.

Jeong et al., Sensors 2018, section 2. Each embedding is a linear layer.

Shape letters: B faces, F features of the backbone, D size of the embedding for age (N_a), G size of
the embedding for gender (N_g).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor, nn

from ageray.experiment.model import Siamese as Config
from ageray.models import backbones
from ageray.models.network import AgeNetwork, Batch


class Siamese(AgeNetwork):
    """Yields `embedding` (B, D) and, unless `gender_features` is 0, `gender_embedding` (B, G).

    Both come in training and in eval mode. They are not normalised, because Eq. 1 takes their L1
    distance and Q = 100 sets its scale. One network embeds every face of the batch; the loss then
    takes all pairs (section 2.2). Both layers compute in float32, also under autocast: the
    distances of neighbours differ little, and the three digits of bf16 would change their order.
    """

    float32_layers = ("embedding", "gender_embedding")

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.backbone = backbones.make(config.backbone, imagenet=config.weights == "imagenet")
        self.dropout = nn.Dropout(config.dropout)
        self.embedding = _embedding(self.backbone.features, config.age_features)
        self.gender_embedding: nn.Linear | None = None
        self.outputs = frozenset({"embedding"})
        if config.gender_features:
            self.gender_embedding = _embedding(self.backbone.features, config.gender_features)
            self.outputs |= {"gender_embedding"}

    def forward(self, batch: Batch) -> Batch:
        """Faces to embeddings, float32."""
        features_BF = self.dropout(self.backbone(batch["face"]))
        with torch.autocast(features_BF.device.type, enabled=False):
            outputs = {"embedding": self.embedding(features_BF.float())}
            if self.gender_embedding is not None:
                outputs["gender_embedding"] = self.gender_embedding(features_BF.float())
        return outputs

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of the two layers."""
        layers = (self.embedding, self.gender_embedding)
        return chain.from_iterable(layer.parameters() for layer in layers if layer is not None)

    def get_backbone(self) -> nn.Module:
        """The backbone."""
        return self.backbone

    def load_backbone(self, state: dict[str, Tensor]) -> None:
        """Published weights of the backbone."""
        self.backbone.load_backbone(state)


def _embedding(features: int, size: int) -> nn.Linear:
    """A linear layer that starts with weights of variance 1 / F and zero bias.

    The paper does not give its start. Reason for ours: the pooled features of ImageNet networks
    spread by s = 0.5 to 1 about their mean after dropout. Two embeddings then differ by sqrt(2) s
    in each number, on average by 1.13 D s in L1. That is 40 to 80 for D = 70. For Q = 100 the
    slopes of Eq. 4 for like and unlike pairs are equal at 42 (4 x / Q = 5.54 exp(-2.77 x / Q)). So
    both parts of the loss have a gradient from the first step. Far above Q the unlike pairs would
    have none. The 10 numbers for gender start at 6 to 11, where unlike pairs have the largest
    gradient.
    """
    layer = nn.Linear(features, size)
    nn.init.normal_(layer.weight, std=1 / math.sqrt(features))
    nn.init.zeros_(layer.bias)
    return layer
