"""The cluster module of Cluster-CNN (Shang and Ai, section 3.2).

It has k centroids of features, draws each face's cluster, and moves the centroids to its faces.

Shape letters: B faces of this worker, G faces of the whole batch (of all workers, in their order),
N cached faces, D features, k clusters.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, distributed, nn

from ageray.distributed import all_gather, rank_and_world
from ageray.errors import UserError

_ROUNDS = 100  # at most, of Lloyd's algorithm; no face changes its cluster after some tens


def distances(features_BD: Tensor, centroids_kD: Tensor) -> Tensor:
    """Euclidean distances (B, k), computed from differences.

    With the expanded square the error would be as large as the distance of a near face.
    """
    return torch.cdist(features_BD, centroids_kD, compute_mode="donot_use_mm_for_euclid_dist")


def probabilities(features_BD: Tensor, centroids_kD: Tensor) -> Tensor:
    """p(c_i | x) = ||x - u_i||^-2 / Z, with Z the sum over the clusters (Eq. 2): (B, k).

    A face on a centroid has the limit: probability 1 for it, or equal probabilities for several
    centroids that coincide.
    """
    distance_Bk = distances(features_BD, centroids_kD)
    # Relative to the nearest centroid, so that no distance overflows or underflows.
    tiny = torch.finfo(distance_Bk.dtype).tiny
    nearness_Bk = distance_Bk.amin(1, keepdim=True) / distance_Bk.clamp_min(tiny)
    share_Bk = torch.where(distance_Bk > 0, nearness_Bk.square(), 1.0)
    return share_Bk / share_Bk.sum(1, keepdim=True)


def draw(probability_Bk: Tensor, uniform_B: Tensor) -> Tensor:
    """Draws a cluster for each face by its probabilities: (B,) int64.

    uniform_B: float32 in [0, 1), a number for each face. A cluster of probability 0 is never drawn.
    """
    # In float32 the last cumulative probability could be rounded down to a drawn number.
    cumulative_Bk = probability_Bk.double().cumsum(1)
    return (cumulative_Bk <= uniform_B.double()[:, None] * cumulative_Bk[:, -1:]).sum(1)


def updated_centroids(
    centroids_kD: Tensor, features_GD: Tensor, cluster_G: Tensor, momentum: float
) -> Tensor:
    """Eq. 3, u* = alpha u + (1 - alpha) x, for each face of the batch in turn: (k, D).

    The closed form for a cluster's faces x_1 .. x_n, in the order of the batch, is
    u* = alpha^n u + (1 - alpha) sum_j alpha^(n-j) x_j. The result has a gradient to the features.
    The centroid of a cluster without a face does not change.
    """
    member_Gk = cluster_G[:, None] == torch.arange(len(centroids_kD), device=cluster_G.device)
    count_k = member_Gk.sum(0)
    later_Gk = count_k - member_Gk.cumsum(0)
    weight_Gk = member_Gk * ((1 - momentum) * momentum ** later_Gk.double())
    decay_k1 = (momentum ** count_k.double())[:, None]
    return decay_k1.to(centroids_kD) * centroids_kD + weight_Gk.to(features_GD).T @ features_GD


def seeds(features_ND: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """First centroids by k-means++ (Arthur and Vassilvitskii 2007): (k, D).

    Each is the features of a face, drawn with a probability proportional to the squared distance to
    the nearest centroid so far. generator: on CPU. Raises UserError if there are fewer different
    faces than clusters.
    """
    weight_N = torch.ones(len(features_ND), dtype=torch.float64, device=features_ND.device)
    nearest_N = torch.full_like(weight_N, torch.inf)
    centroids: list[Tensor] = []
    for number in range(clusters):
        if not bool(weight_N.sum() > 0):
            raise UserError(
                f"model.clusters={clusters}: the {len(features_ND)} faces that begin the training have "
                f"{number} different features, too few for so many clusters; lower model.clusters, "
                "or train on more faces"
            )
        uniform = torch.rand(1, generator=generator).to(weight_N.device)
        centroids.append(features_ND[draw(weight_N[None], uniform)])
        nearest_N = torch.minimum(nearest_N, distances(features_ND, centroids[-1]).squeeze(1))
        weight_N = nearest_N.square()
    return torch.cat(centroids)


def kmeans(features_ND: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """Centroids of cached features (section 3.3): (k, D).

    Starts from the seeds of k-means++ and repeats Lloyd's rounds until no face changes its cluster.
    A cluster that loses its last face keeps its centroid. Raises UserError if there are fewer
    different faces than clusters, FloatingPointError if a feature is not finite.
    """
    if not bool(torch.isfinite(features_ND).all()):
        raise FloatingPointError(
            "features of the faces that begin the training are not finite; "
            "are model.weights those of this network?"
        )
    centroids_kD = seeds(features_ND, clusters, generator)
    cluster_N = distances(features_ND, centroids_kD).argmin(1)
    for _ in range(_ROUNDS):
        member_Nk = (cluster_N[:, None] == torch.arange(clusters, device=cluster_N.device)).to(features_ND)
        count_k1 = member_Nk.sum(0)[:, None]
        mean_kD = member_Nk.T @ features_ND / count_k1.clamp_min(1)
        centroids_kD = torch.where(count_k1 > 0, mean_kD, centroids_kD)
        before_N, cluster_N = cluster_N, distances(features_ND, centroids_kD).argmin(1)
        if torch.equal(before_N, cluster_N):
            break
    return centroids_kD


class Assignment(NamedTuple):
    """A training batch with its clusters.

    Features and clusters are those of all workers' faces; `cluster_B` are those of this worker's.
    The centroids are the updated ones.
    """

    features_GD: Tensor
    cluster_G: Tensor
    centroids_kD: Tensor
    cluster_B: Tensor


class Clusters(nn.Module):
    """k centroids.

    They are random until k-means has set them. `started` tells whether it has. Both are saved with
    the network.

    Departure: Algorithm 1 takes one face after another: it draws the face's cluster (Eq. 2), moves
    that centroid (Eq. 3) and goes forward. Here a batch is one step. All clusters are drawn from
    the centroids at its start, Eq. 3 is applied for each face in turn, and all faces go forward
    with the centroids at its end. With alpha 0.999 and 128 faces a centroid moves at most an eighth
    of the way to its faces.

    All workers have the same centroids. Their step is that of the whole batch, with worker 0's
    faces first.
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
        """Sets the centroids by k-means of cached features; see `kmeans` for errors.

        All workers get the same centroids.
        """
        self.centroids.copy_(kmeans(features_ND.to(self.centroids), len(self.centroids), generator))
        if rank_and_world()[1] > 1:
            distributed.broadcast(self.centroids, 0)  # so that they are equal to the last bit
        self.started.fill_(True)

    def forward(self, features_BD: Tensor) -> Assignment:
        """One training step.

        The centroids in the result have a gradient to the features, (1 - alpha) alpha^(n-j). The
        saved centroids have none.
        """
        with torch.autocast(features_BD.device.type, enabled=False):
            features_BD = features_BD.to(self.centroids.dtype)
            cluster_B = self._draw(features_BD)
            features_GD, cluster_G = all_gather(features_BD), all_gather(cluster_B)
            centroids_kD = updated_centroids(self.centroids, features_GD, cluster_G, self.momentum)
            self.centroids.copy_(centroids_kD.detach())
        return Assignment(features_GD, cluster_G, centroids_kD, cluster_B)

    @torch.no_grad()
    def _draw(self, features_BD: Tensor) -> Tensor:
        """Draws the clusters of this worker's faces: (B,).

        Every worker draws the random numbers of the whole batch from torch's CPU generator. If all
        generators have the same state, N workers draw the same clusters as one.
        """
        rank, world = rank_and_world()
        own_B = torch.rand(world, len(features_BD))[rank].to(features_BD.device)
        return draw(probabilities(features_BD, self.centroids), own_B)

    def nearest(self, features_BD: Tensor) -> Tensor:
        """The cluster of the nearest centroid: (B,). Of equally near ones the first is taken."""
        return distances(features_BD, self.centroids).argmin(1)
