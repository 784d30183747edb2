"""`baseline`: a backbone and one linear classifier over age bins (DHAA paper's Res18+EX). Shape letters: B faces, S side, K age bins, D features."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from ageray.experiment.model import Baseline, ClusterCnn, DeepEmbedding, ResidualCnn
from ageray.models import backbones
from ageray.models.network import AgeNetwork, Backbone, Batch, age_head, head_output


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
        self.head = age_head(config, backbone.features)

    def embed(self, face_B3SS: Tensor) -> Tensor:
        """What the classifier is linear in: (B, D)."""
        embedding_BD: Tensor = self.backbone(face_B3SS)
        return embedding_BD

    def forward(self, batch: Batch) -> Batch:
        """Faces to logits and embedding."""
        embedding_BD = self.embed(batch["face"])
        return {self._name: self.head(self.dropout(embedding_BD)), "embedding": embedding_BD}

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """The classifier's."""
        return self.head.parameters()

    def get_backbone(self) -> nn.Module:
        """The backbone."""
        return self.backbone

    def load_backbone(self, state: dict[str, Tensor]) -> None:
        """Published weights of the backbone."""
        self.backbone.load_backbone(state)
