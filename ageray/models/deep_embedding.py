"""`deep_embedding`: the Deep Embedding Network of He et al., VGG-16 whose last features feed classifier and triplets alike.

Shape letters: B faces, S side of the face, K age bins, D size of the embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from torch import Tensor, nn

from ageray import experiment
from ageray.models.baseline import Classifier
from ageray.models.network import age_head


class DeepEmbedding(Classifier):
    """A backbone, one embedding f, and a linear classifier on it (Fig. 1): W_T are the weights up to f, W_S the classifier's.

    Yields `logits` (B, K) (or `ordinal_logits` (B, K - 1)) and `embedding` (B, D), f of Eq. 1, both with a gradient into the same weights, so that
    classification and triplet loss (Eq. 4) act together. f is the backbone's own features where `config.embedding` is 0 (VGG-16: fc7 after its
    ReLU and, in training, its dropout of one half, which the triplets see too, as they do where Caffe drops in place), else a further linear
    layer of that size. It is not normalised here: the triplet term does that where it is told to.
    """

    def __init__(self, config: experiment.model.DeepEmbedding) -> None:
        super().__init__(config)
        self.embedding: nn.Module = nn.Identity()
        if config.embedding:
            layer = nn.Linear(self.backbone.features, config.embedding)
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
            nn.init.zeros_(layer.bias)
            self.embedding = layer
            self.head = age_head(config, config.embedding)

    def embed(self, face_B3SS: Tensor) -> Tensor:
        """f: (B, D)."""
        embedding_BD: Tensor = self.embedding(self.backbone(face_B3SS))
        return embedding_BD

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """The further embedding layer's, if there is one, and the classifier's."""
        return chain(self.embedding.parameters(), self.head.parameters())
