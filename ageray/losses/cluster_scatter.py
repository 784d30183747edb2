"""Spread within clusters over spread between them (Shang and Ai).

Shape letters: B faces, D features, C clusters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ageray.losses.precision import at_least_float32

_LEAST_SPREAD = 1e-6


def cluster_scatter(features: Tensor, cluster: Tensor, centroids: Tensor) -> Tensor:
    """S_w / S_b (Eq. 1).

    S_w is the mean over faces of ||x_i - u_ci||. S_b is the mean over pairs i != j of centroids of
    ||u_i - u_j||. We read the paper's 1 / N_c as one over the number of pairs.

    features: (B, D), x. cluster: (B,) int64, c_i, the cluster of each face. centroids: (C, D), u.
    Both parts pass a gradient to `centroids`. So S_b has a gradient if the network gives the
    centroids that it has just moved towards the faces (Eq. 3). Fixed centroids give none.
    S_b also counts clusters that have no face in the batch. With one cluster there is no S_b: the
    loss is S_w. Centroids that coincide count as 1e-6 apart.
    """
    features_BD, centroids_CD = at_least_float32(features), at_least_float32(centroids)
    within: Tensor = torch.linalg.vector_norm(features_BD - centroids_CD[cluster], dim=-1).mean()
    if len(centroids_CD) == 1:
        return within
    return within / torch.pdist(centroids_CD).mean().clamp_min(_LEAST_SPREAD)
