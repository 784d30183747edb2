"""The cluster module of Cluster-CNN (Shang and Ai, section 3.2): k centroids of features, drawn assignments, moving means.

Shape letters: B faces of this worker, G faces of the whole batch (over all workers, in their order), N cached faces, D features, k clusters.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, distributed, nn

from ageray.distributed import all_gather, rank_and_world
from ageray.errors import UserError

_ROUNDS = 100  # of Lloyd's algorithm; it is done when no face changes its cluster, which takes some tens


def distances(features_BD: Tensor, centroids_kD: Tensor) -> Tensor:
    """Euclidean distances (B, k), from differences: the expanded square is off by as much as a near face is away."""
    return torch.cdist(features_BD, centroids_kD, compute_mode="donot_use_mm_for_euclid_dist")


def probabilities(features_BD: Tensor, centroids_kD: Tensor) -> Tensor:
    """p(c_i | x) = ||x - u_i||^-2 / Z, Z the sum over the clusters (Eq. 2): (B, k).

    Its limit at a centroid: a face on one belongs to it for certain, a face on several that coincide to each of them alike.
    """
    distance_Bk = distances(features_BD, centroids_kD)
    # relative to the nearest, so that neither a small nor a large distance leaves the range of numbers
    nearness_Bk = distance_Bk.amin(1, keepdim=True) / distance_Bk.clamp_min(
        torch.finfo(distance_Bk.dtype).tiny
    )
    share_Bk = torch.where(distance_Bk > 0, nearness_Bk.square(), 1.0)
    return share_Bk / share_Bk.sum(1, keepdim=True)


def draw(probability_Bk: Tensor, uniform_B: Tensor) -> Tensor:
    """One cluster a face, by its probabilities: (B,) int64. uniform: float32 in [0, 1), one a face. Never one of probability 0."""
    cumulative_Bk = probability_Bk.double().cumsum(
        1
    )  # in float32 the last one could be rounded down to a draw
    return (cumulative_Bk <= uniform_B.double()[:, None] * cumulative_Bk[:, -1:]).sum(1)


def moved(centroids_kD: Tensor, features_GD: Tensor, cluster_G: Tensor, momentum: float) -> Tensor:
    """Eq. 3, u* = alpha u + (1 - alpha) x, applied to face after face of the batch: (k, D), with gradient to the features.

    In closed form: a cluster's faces x_1 .. x_n, in the order of the batch, give u* = alpha^n u + (1 - alpha) sum_j alpha^(n-j) x_j.
    A cluster without a face stays where it is.
    """
    chosen_Gk = cluster_G[:, None] == torch.arange(len(centroids_kD), device=cluster_G.device)
    count_k = chosen_Gk.sum(0)
    later_Gk = count_k - chosen_Gk.cumsum(0)
    weight_Gk = chosen_Gk * ((1 - momentum) * momentum ** later_Gk.double())
    kept_k1 = (momentum ** count_k.double())[:, None]
    return kept_k1.to(centroids_kD) * centroids_kD + weight_Gk.to(features_GD).T @ features_GD


def seeds(features_ND: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """First centroids by k-means++ (Arthur and Vassilvitskii 2007): faces, each drawn with the squared distance to those before: (k, D).

    generator: on CPU. Raises UserError if there are fewer different faces than clusters.
    """
    weight_N = torch.ones(len(features_ND), dtype=torch.float64, device=features_ND.device)
    nearest_N = torch.full_like(weight_N, torch.inf)
    chosen: list[Tensor] = []
    for number in range(clusters):
        if not bool(weight_N.sum() > 0):
            raise UserError(
                f"model.clusters={clusters}: the {len(features_ND)} faces that begin the training have {number} different features, too few "
                f"for so many clusters; lower model.clusters, or train on more faces"
            )
        uniform = torch.rand(1, generator=generator).to(weight_N.device)
        chosen.append(features_ND[draw(weight_N[None], uniform)])
        nearest_N = torch.minimum(nearest_N, distances(features_ND, chosen[-1]).squeeze(1))
        weight_N = nearest_N.square()
    return torch.cat(chosen)


def kmeans(features_ND: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """Centroids of cached features (section 3.3): k-means++ seeds, then Lloyd's rounds until no face changes its cluster: (k, D).

    A cluster that loses its last face keeps its centroid. Raises UserError if there are fewer different faces than clusters,
    FloatingPointError if a feature is not finite.
    """
    if not bool(torch.isfinite(features_ND).all()):
        raise FloatingPointError(
            "features of the faces that begin the training are not finite; are model.weights those of this network?"
        )
    centroids_kD = seeds(features_ND, clusters, generator)
    cluster_N = distances(features_ND, centroids_kD).argmin(1)
    for _ in range(_ROUNDS):
        chosen_Nk = (cluster_N[:, None] == torch.arange(clusters, device=cluster_N.device)).to(features_ND)
        count_k1 = chosen_Nk.sum(0)[:, None]
        centroids_kD = torch.where(
            count_k1 > 0, chosen_Nk.T @ features_ND / count_k1.clamp_min(1), centroids_kD
        )
        before_N, cluster_N = cluster_N, distances(features_ND, centroids_kD).argmin(1)
        if torch.equal(before_N, cluster_N):
            break
    return centroids_kD


class Assignment(NamedTuple):
    """A training batch in its clusters: features and cluster of every worker's faces, the moved centroids, clusters of the own faces."""

    features_GD: Tensor
    cluster_G: Tensor
    centroids_kD: Tensor
    cluster_B: Tensor


class Clusters(nn.Module):
    """k centroids. Their place and whether k-means has made them (`started`) are saved with the network; before that they are random.

    Algorithm 1 takes one face after another: draw its cluster (Eq. 2), move that centroid (Eq. 3), go forward. Here a batch is one step: its
    assignments are drawn from the centroids as they were at its start, Eq. 3 is applied face after face, and every face then goes forward
    with the centroids at the batch's end. With alpha 0.999 and 128 faces a centroid goes at most an eighth of the way to its faces.

    With several workers each holds the same centroids: the step is that of the whole batch, worker 0's faces first.
    """

    def __init__(self, clusters: int, features: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("centroids", torch.randn(clusters, features))
        self.register_buffer("started", torch.tensor(False))
        self.centroids: Tensor
        self.started: Tensor

    @torch.no_grad()
    def start(self, features_ND: Tensor, generator: torch.Generator) -> None:
        """Centroids by k-means++ of cached features, the same on every worker; see `kmeans` for errors."""
        self.centroids.copy_(kmeans(features_ND.to(self.centroids), len(self.centroids), generator))
        if rank_and_world()[1] > 1:
            distributed.broadcast(self.centroids, 0)  # equal in the last bit too
        self.started.fill_(True)

    def forward(self, features_BD: Tensor) -> Assignment:
        """One training step. The moved centroids carry a gradient to the features, (1 - alpha) alpha^(n-j); those that are kept do not."""
        with torch.autocast(features_BD.device.type, enabled=False):
            features_BD = features_BD.to(self.centroids.dtype)
            cluster_B = self._drawn(features_BD)
            features_GD, cluster_G = all_gather(features_BD), all_gather(cluster_B)
            centroids_kD = moved(self.centroids, features_GD, cluster_G, self.momentum)
            self.centroids.copy_(centroids_kD.detach())
        return Assignment(features_GD, cluster_G, centroids_kD, cluster_B)

    @torch.no_grad()
    def _drawn(self, features_BD: Tensor) -> Tensor:
        """Clusters of the own faces. Random numbers come from torch's CPU generator, on every worker those of the whole batch: where all are
        in one state, two workers draw what one would."""
        rank, world = rank_and_world()
        own_B = torch.rand(world, len(features_BD))[rank].to(features_BD.device)
        return draw(probabilities(features_BD, self.centroids), own_B)

    def nearest(self, features_BD: Tensor) -> Tensor:
        """The cluster of the nearest centroid (of equally near ones the first): (B,)."""
        return distances(features_BD, self.centroids).argmin(1)
