"""`baseline`: a backbone and one linear classifier over age bins (DHAA paper's Res18+EX), with a
hidden layer between them where asked for.

Shape letters: B faces, S side, K age bins, D features, H hidden features.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ageray.experiment.model import Baseline, ClusterCnn, DeepEmbedding, ResidualCnn
from ageray.models import backbones
from ageray.models.network import (
    BIAS_GAP,
    AgeNetwork,
    Backbone,
    Batch,
    PublishedHead,
    age_head,
    eval_outputs,
    head_output,
)


class Classifier(AgeNetwork):
    """`baseline`, `cluster_cnn` with its plain head, and what the other single classifiers build
    on.

    Yields `logits` (B, K) (or `ordinal_logits` (B, K - 1)) and `embedding` (B, D), the
    backbone's features.
    """

    def __init__(
        self, config: Baseline | ClusterCnn | DeepEmbedding | ResidualCnn, backbone: Backbone | None = None
    ) -> None:
        """backbone: None makes the one that `config.backbone` names."""
        super().__init__()
        if backbone is None:
            assert not isinstance(config, ResidualCnn)
            backbone = backbones.make(config.backbone, imagenet=config.weights == "imagenet")
        self._name = head_output(config)
        self.outputs = frozenset({self._name, "embedding"})
        self.backbone = backbone
        self.dropout = nn.Dropout(config.dropout)
        self.hidden: nn.Linear | None = None
        features = backbone.features
        self._first_age, self._published_head = config.ages[0], False
        if isinstance(config, Baseline) and config.hidden:
            self.hidden = nn.Linear(features, config.hidden)
            nn.init.kaiming_normal_(self.hidden.weight, nonlinearity="relu")
            nn.init.zeros_(self.hidden.bias)
            features = config.hidden
            self._published_head = config.weights_head
        self.head = age_head(config, features)

    def embed(self, face_B3SS: Tensor) -> Tensor:
        """What the classifier is linear in: the backbone's features (B, D), or the hidden ones
        (B, H)."""
        features_BD: Tensor = self.backbone(face_B3SS)
        return features_BD if self.hidden is None else F.relu(self.hidden(features_BD))

    def forward(self, batch: Batch) -> Batch:
        """Faces to logits and embedding."""
        embedding_BD = self.embed(batch["face"])
        output = self.head(self.dropout(embedding_BD))
        if self.training:
            return {self._name: output, "embedding": embedding_BD}
        return {**eval_outputs(self._name, output, self.head), "embedding": embedding_BD}

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """The classifier's and the hidden layer's."""
        if self.hidden is None:
            return self.head.parameters()
        return chain(self.hidden.parameters(), self.head.parameters())

    def get_backbone(self) -> nn.Module:
        """The backbone."""
        return self.backbone

    def load_backbone(self, state: dict[str, Tensor]) -> None:
        """Published weights of the backbone, and of its age layers where `weights_head` is set
        and they fit `hidden`."""
        self.backbone.load_backbone(state)
        published = self.backbone.published_head(state) if self._published_head else None
        if published is not None:
            self._load_head(published)

    @torch.no_grad()
    def _load_head(self, published: PublishedHead) -> None:
        """Takes the hidden layer and, for one logit a bin, the age layer: each bin's row is the
        published row of that age."""
        assert self.hidden is not None
        if self.hidden.weight.shape != published.hidden_weight.shape:
            return
        self.hidden.weight.copy_(published.hidden_weight)
        self.hidden.bias.copy_(published.hidden_bias)
        if self._name != "logits":
            return
        assert isinstance(self.head, nn.Linear)
        self.head.weight.zero_()
        self.head.bias.fill_(float(published.age_bias.min()) - BIAS_GAP)
        for row in range(self.head.out_features):
            source = self._first_age + row - published.first_age
            if 0 <= source < len(published.age_bias):
                self.head.weight[row] = published.age_weight[source]
                self.head.bias[row] = published.age_bias[source]
