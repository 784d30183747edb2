"""How far a face's features lie from those of the faces of training: a Mahalanobis distance with a
low-rank covariance.

Lee, Lee, Lee and Shin (NeurIPS 2018) use such a distance, by class, to tell pictures of another
kind; here there is one Gaussian. Shape letters: N faces, D size of an embedding, R rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ageray.errors import UserError

RANK = 64


@dataclass(frozen=True)
class FeatureDistance:
    """`mean` (D,), `basis` (D, R) with orthonormal columns, `variance` (R,) along them, `rest` ():
    the mean variance of the other directions. All float32, on one device."""

    mean: Tensor
    basis: Tensor
    variance: Tensor
    rest: Tensor

    @classmethod
    def of(cls, embedding_ND: Tensor, rank: int = RANK) -> FeatureDistance:
        """Fits mean and covariance to the embeddings of N > 1 faces of training."""
        features_ND = embedding_ND.double()
        mean_D = features_ND.mean(0)
        centred_ND = features_ND - mean_D
        covariance_DD = centred_ND.T @ centred_ND / (len(features_ND) - 1)
        values_D, vectors_DD = torch.linalg.eigh(covariance_DD)
        rank = min(rank, len(mean_D) - 1, len(features_ND) - 1)
        variance_R = values_D[-rank:].clamp_min(1e-8)
        others = max(len(mean_D) - rank, 1)
        rest = ((values_D.sum() - values_D[-rank:].sum()) / others).clamp_min(1e-8)
        return cls(
            mean_D.float(), vectors_DD[:, -rank:].float().contiguous(), variance_R.float(), rest.float()
        )

    def __call__(self, embedding_BD: Tensor) -> Tensor:
        """Root of the mean squared distance a dimension, (B,): about 1 for faces like those of
        training."""
        centred_BD = embedding_BD.float() - self.mean
        along_BR = centred_BD @ self.basis
        beside_B = (centred_BD.square().sum(-1) - along_BR.square().sum(-1)).clamp_min(0)
        total_B = (along_BR.square() / self.variance).sum(-1) + beside_B / self.rest
        return (total_B / len(self.mean)).sqrt()

    def to(self, device: torch.device) -> FeatureDistance:
        """The same on another device."""
        return FeatureDistance(*(tensor.to(device) for tensor in self.tensors().values()))

    def tensors(self) -> dict[str, Tensor]:
        """For a file."""
        return {name: getattr(self, name) for name in ("mean", "basis", "variance", "rest")}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> FeatureDistance:
        """From a file. Raises UserError if a tensor is missing or of another shape."""
        try:
            parts = [tensors[name].float() for name in ("mean", "basis", "variance", "rest")]
        except KeyError as error:
            raise UserError(f"the file of feature distances lacks {error}; copy the bundle again") from None
        size, rank = len(parts[0]), parts[1].shape[-1]
        if [tuple(part.shape) for part in parts] != [(size,), (size, rank), (rank,), ()]:
            raise UserError(
                "the tensors of the feature distance do not fit each other; copy the bundle again"
            )
        return cls(*parts)
