"""Spread within clusters over spread between them (Shang and Ai). Shape letters: B faces, D features, C clusters."""

from __future__ import annotations

import torch
from torch import Tensor

from ageray.losses.precision import at_least_float32

_LEAST_SPREAD = 1e-6


def cluster_scatter(features: Tensor, cluster: Tensor, centroids: Tensor) -> Tensor:
    """S_w / S_b (Eq. 1): S_w = mean over faces of ||x_i - u_ci||, S_b = mean over pairs i != j of centroids of ||u_i - u_j||.

    features: (B, D), x. cluster: (B,) int64, c_i, the cluster that each face was assigned to. centroids: (C, D), u. Both parts pass a
    gradient on to `centroids`: a network that gives those it has just moved towards the faces (Eq. 3) so has a gradient of S_b, which
    fixed centroids would not give. The paper's 1 / N_c is read as one over the number of pairs. A cluster without a face of the batch
    counts in S_b all the same. A single cluster has no S_b: its loss is S_w. Centroids that coincide count as 1e-6 apart.
    """
    features_BD, centroids_CD = at_least_float32(features), at_least_float32(centroids)
    within: Tensor = torch.linalg.vector_norm(features_BD - centroids_CD[cluster], dim=-1).mean()
    if len(centroids_CD) == 1:
        return within
    return within / torch.pdist(centroids_CD).mean().clamp_min(_LEAST_SPREAD)
