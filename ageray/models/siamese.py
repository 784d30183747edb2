"""`siamese`: a backbone and two linear layers, one embedding for age and one for gender (Jeong et al., Sensors 2018, section 2).

Shape letters: B faces, F features of the backbone, D size of the embedding for age (N_a), G of that for gender (N_g).
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
    """Yields `embedding` (B, D) and, unless `gender_features` is 0, `gender_embedding` (B, G), in training and in use, raw as the layers give
    them: Eq. 1 measures their L1 distance, and Q = 100 sets its scale, so they are not normalised.

    One network embeds every face of the batch; the loss then takes all pairs (section 2.2). Both layers compute in float32 whatever the
    autocast: neighbours lie close together, where bf16's three digits would shuffle them.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.backbone = backbones.make(config.backbone, imagenet=config.weights == "imagenet")
        self.dropout = nn.Dropout(config.dropout)
        self.embedding = _embedding(self.backbone.features, config.age_features)
        self.gender_embedding = (
            _embedding(self.backbone.features, config.gender_features) if config.gender_features else None
        )
        self.outputs = frozenset(
            {"embedding", "gender_embedding"} if self.gender_embedding else {"embedding"}
        )

    def forward(self, batch: Batch) -> Batch:
        """Faces to embeddings, float32."""
        features_BF = self.dropout(self.backbone(batch["face"]))
        with torch.autocast(features_BF.device.type, enabled=False):
            outputs = {"embedding": self.embedding(features_BF.float())}
            if self.gender_embedding is not None:
                outputs["gender_embedding"] = self.gender_embedding(features_BF.float())
        return outputs

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """Those of the two layers."""
        layers = (self.embedding, self.gender_embedding)
        return chain.from_iterable(layer.parameters() for layer in layers if layer is not None)

    def get_backbone(self) -> nn.Module:
        """The backbone."""
        return self.backbone

    def load_backbone(self, state: dict[str, Tensor]) -> None:
        """Published weights of the backbone."""
        self.backbone.load_backbone(state)


def _embedding(features: int, size: int) -> nn.Linear:
    """A layer that starts with weights of variance 1 / F and no bias (the paper does not say).

    Features that spread by s about their mean then come out sqrt(2) s apart in each of D numbers, on average 1.13 D s in L1: 40 to 80 for
    D = 70 and s of 0.5 to 1, which is what ImageNet networks' pooled features have behind dropout. Eq. 4 with Q = 100 pulls like pairs
    together as hard as it drives unlike ones apart (4 x / Q = 5.54 exp(-2.77 x / Q)) at x = 42, so both tasks of the loss have a gradient from
    the first step: far beyond Q the unlike pairs would have none. Below (10 numbers for gender start at 6 to 11) they have the most.
    """
    layer = nn.Linear(features, size)
    nn.init.normal_(layer.weight, std=1 / math.sqrt(features))
    nn.init.zeros_(layer.bias)
    return layer
