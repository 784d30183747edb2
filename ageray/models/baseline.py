"""`baseline`: a backbone and one linear classifier over age bins (DHAA paper's Res18+EX). Shape letters: B faces, K age bins, D features."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from ageray.experiment.model import Baseline, ClusterCnn
from ageray.models import backbones
from ageray.models.network import AgeNetwork, Batch, age_head, head_output


class Classifier(AgeNetwork):
    """`baseline`, and `cluster_cnn` with its plain head. Yields `logits` (B, K) (or `ordinal_logits` (B, K - 1)) and `embedding` (B, D)."""

    def __init__(self, config: Baseline | ClusterCnn) -> None:
        super().__init__()
        self._name = head_output(config)
        self.outputs = frozenset({self._name, "embedding"})
        self.backbone = backbones.make(config.backbone, imagenet=config.weights == "imagenet")
        self.dropout = nn.Dropout(config.dropout)
        self.head = age_head(config, self.backbone.features)

    def forward(self, batch: Batch) -> Batch:
        """Faces to logits and embedding."""
        embedding_BD = self.backbone(batch["face"])
        return {self._name: self.head(self.dropout(embedding_BD)), "embedding": embedding_BD}

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """The classifier's."""
        return self.head.parameters()

    def body(self) -> nn.Module:
        """The backbone."""
        return self.backbone

    def load_backbone(self, state: dict[str, Tensor]) -> None:
        """Published weights of the backbone."""
        self.backbone.load_backbone(state)
