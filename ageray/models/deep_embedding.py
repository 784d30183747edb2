"""`deep_embedding`: the Deep Embedding Network of He et al.

The last features of VGG-16 go to the classifier and to the triplet loss.

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
    """A backbone, an embedding f, and a linear classifier on it (Fig. 1).

    W_T are the weights up to f, W_S those of the classifier. Yields `logits` (B, K) (or
    `ordinal_logits` (B, K - 1)) and `embedding` (B, D), f of Eq. 1. Both pass a gradient to the
    same weights, so classification and triplet loss (Eq. 4) act together.

    If `config.embedding` is 0, f is the backbone's features. For VGG-16 they are fc7 after its ReLU
    and, in training, its dropout of one half. The triplets see the dropout too, as with Caffe's
    in-place dropout. Otherwise f is a further linear layer of size `config.embedding`. f is not
    normalised here; the triplet term has an option for that.
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
        """The embedding f: (B, D)."""
        embedding_BD: Tensor = self.embedding(self.backbone(face_B3SS))
        return embedding_BD

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of the embedding layer, if there is one, and of the classifier."""
        return chain(self.embedding.parameters(), self.head.parameters())
