"""Cluster-CNN (Shang and Ai, ICIP 2017).

Each face's features belong to one of k clusters. The cluster's branch leads to the ages.

Shape letters: B faces of this worker, G faces of the whole batch of all workers, D features, V
outputs of a branch, K age bins (or K - 1 binary questions), k clusters.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ageray import experiment
from ageray.models import backbones
from ageray.models.baseline import Classifier
from ageray.models.clusters import Clusters, probabilities
from ageray.models.googlenet import GoogLeNet
from ageray.models.network import AgeNetwork, Backbone, Batch, Number, age_head, eval_outputs, head_output

Config = experiment.model.ClusterCnn


def make(config: Config) -> AgeNetwork:
    """The network of `model.name: cluster_cnn`.

    `head: plain` is the paper's strong baseline, a plain `Classifier` without clusters.
    """
    if config.head == "plain" and not config.auxiliary:
        return Classifier(config, _backbone(config))
    if config.head == "plain":
        return AuxiliaryClassifier(config, _backbone(config))
    return ClusterCnn(config)


def _backbone(config: Config) -> Backbone:
    if config.depth == "half" and config.weights != "imagenet":  # `make` raises an error for imagenet
        return GoogLeNet("half")
    return backbones.make(config.backbone, imagenet=config.weights == "imagenet")


class AuxiliaryHeads(nn.Module):
    """GoogLeNet's auxiliary classifiers (Szegedy et al., section 5): A heads on inner feature maps.

    Each pools to 4 x 4, has a 1x1 convolution to 128 channels, a fully connected layer of 1024,
    dropout of 70 % and a classifier over the age bins. GoogLeNet pools 5x5 windows with stride 3,
    which gives 4 x 4 at its 224 pixels; the adaptive pooling gives 4 x 4 at any side.
    """

    def __init__(self, config: Config, channels: list[int]) -> None:
        super().__init__()
        self.heads = nn.ModuleList()
        for count in channels:
            layers = [
                nn.AdaptiveAvgPool2d(4),
                nn.Conv2d(count, 128, 1),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(128 * 16, 1024),
                nn.ReLU(),
                nn.Dropout(0.7),
                age_head(config, 1024),
            ]
            for layer in (layers[1], layers[4]):
                assert isinstance(layer, nn.Conv2d | nn.Linear)
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)
            self.heads.append(nn.Sequential(*layers))

    def forward(self, maps: list[Tensor]) -> Tensor:
        """The feature maps, (B, C, H, W) each, to the outputs of all heads: (B, A, K)."""
        outputs = [head(map_BCHW) for head, map_BCHW in zip(self.heads, maps, strict=True)]
        return torch.stack(outputs, 1)


class AuxiliaryClassifier(Classifier):
    """The plain head with GoogLeNet's auxiliary classifiers: in training it also yields
    `aux_logits` (B, A, K), or `aux_` and the name of another last layer's output."""

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        assert isinstance(backbone, GoogLeNet)
        self.auxiliary = AuxiliaryHeads(config, backbone.tap())
        self.outputs = self.outputs | {f"aux_{self._name}"}

    def forward(self, batch: Batch) -> Batch:
        """Faces to logits and embedding, and in training those of the auxiliary classifiers."""
        outputs = super().forward(batch)
        return outputs | _auxiliary(self)

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """The classifiers' parameters."""
        return chain(super().head_parameters(), self.auxiliary.parameters())


def _auxiliary(network: ClusterCnn | AuxiliaryClassifier) -> Batch:
    """In training, the outputs of the auxiliary classifiers of the forward pass just done."""
    backbone, heads = network.backbone, network.auxiliary
    if not network.training or heads is None:
        return {}
    assert isinstance(backbone, GoogLeNet)
    maps, backbone.auxiliary_maps = backbone.auxiliary_maps, []
    return {f"aux_{network._name}": heads(maps)}


class ClusterCnn(AgeNetwork):
    """v = relu(W_i (x - u_ci) + b_i) of features x in cluster c_i, and a classifier on v.

    The branch of a cluster is its W_i and b_i (section 3.2.1). The paper calls only them distinct
    and does not describe the classifier, so one classifier serves all branches.

    Yields `logits` (B, K) or `ordinal_logits` (B, K - 1), and `embedding` (B, D), the features x,
    because v of different branches are not comparable. In training it also yields what S_w / S_b
    (Eq. 1) needs, for the whole batch of all workers: `features` (G, D) and `centroids` (k, D),
    float32, and `cluster` (G,).

    In training the cluster is drawn by Eq. 2. As in Algorithm 1 the centroids are updated before
    the forward pass, and x - u uses the updated ones. They carry the gradient of (1 - alpha) x. In
    eval mode nothing is drawn and no centroid moves. The nearest centroid's branch is used; with
    `assignment: mixture` all branches are, and their posteriors are averaged with the weights of
    Eq. 2.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self._name = head_output(config)
        self._mixture = config.assignment == "mixture"
        self._init_faces = config.init_faces
        self.whole_batch = frozenset({"features", "cluster", "centroids"})
        self.outputs = self.whole_batch | {self._name, "embedding"}
        self.backbone = _backbone(config)
        self.clusters = Clusters(config.clusters, self.backbone.features, config.momentum)
        # The rows of W_1, then those of W_2 and so on.
        self.branches = nn.Linear(self.backbone.features, config.clusters * config.branch_features)
        nn.init.kaiming_normal_(self.branches.weight, nonlinearity="relu")
        nn.init.zeros_(self.branches.bias)
        self.dropout = nn.Dropout(config.dropout)
        self.head = age_head(config, config.branch_features)
        self.auxiliary: AuxiliaryHeads | None = None
        if config.auxiliary:
            assert isinstance(self.backbone, GoogLeNet)
            self.auxiliary = AuxiliaryHeads(config, self.backbone.tap())
            self.outputs = self.outputs | {f"aux_{self._name}"}

    @property
    def num_init_faces(self) -> int:
        """Number of faces for k-means++; 0 once there are centroids, as in a trained network."""
        if bool(self.clusters.started):
            return 0
        return self._init_faces

    def forward(self, batch: Batch) -> Batch:
        """Faces to the tensors named above."""
        embedding_BD = self.backbone(batch["face"])
        if self.training:
            return {"embedding": embedding_BD, **self._train(embedding_BD), **_auxiliary(self)}
        features_BD = embedding_BD.to(self.clusters.centroids.dtype)
        if self._mixture:
            mixed_BK = self._mixed(features_BD)
            return {"embedding": embedding_BD, **eval_outputs(self._name, mixed_BK, self.head)}
        with torch.autocast(features_BD.device.type, enabled=False):
            cluster_B = self.clusters.nearest(features_BD)
        logits_BK = self._classified(features_BD - self.clusters.centroids[cluster_B], cluster_B)
        return {"embedding": embedding_BD, **eval_outputs(self._name, logits_BK, self.head)}

    def _train(self, embedding_BD: Tensor) -> Batch:
        features_GD, cluster_G, centroids_kD, cluster_B = self.clusters(embedding_BD)
        difference_BD = embedding_BD.to(centroids_kD.dtype) - centroids_kD[cluster_B]
        logits_BK = self._classified(difference_BD, cluster_B)
        return {
            self._name: logits_BK,
            "features": features_GD,
            "cluster": cluster_G,
            "centroids": centroids_kD,
        }

    def _classified(self, difference_BD: Tensor, cluster_B: Tensor) -> Tensor:
        """x - u through the branch of each face's cluster, then the classifier: (B, K).

        Every face goes through all branches in one product, and its own branch is selected. A
        branch costs less than a thousandth of the backbone, and the CPU need not wait for the
        number of faces in each cluster.
        """
        all_BkV = self.branches(difference_BD).unflatten(1, (len(self.clusters.centroids), -1))
        v_BV = F.relu(all_BkV.take_along_dim(cluster_B[:, None, None], 1).squeeze(1))
        logits_BK: Tensor = self.head(self.dropout(v_BV))
        return logits_BK

    def _mixed(self, features_BD: Tensor) -> Tensor:
        """Logits of the mixture of all branches.

        For a regressed number the weighted mean, (B, 1).
        For a softmax the logarithm of sum_i p(c_i | x) p(age | branch i), (B, K). For binary
        questions the log odds of sum_i p(c_i | x) p(older | branch i), (B, K - 1); within each
        branch a running minimum makes p(older) fall, as in decoding.
        """
        centroids_kD = self.clusters.centroids
        count, features = centroids_kD.shape
        with torch.autocast(features_BD.device.type, enabled=False):
            log_weight_Bk1 = probabilities(features_BD, centroids_kD).log()[..., None]
        weights_kDV = self.branches.weight.view(count, -1, features).transpose(1, 2)
        bias_k1V = self.branches.bias.view(count, 1, -1)
        v_kBV = F.relu(torch.baddbmm(bias_k1V, features_BD - centroids_kD[:, None], weights_kDV))
        logits_BkK = self.head(self.dropout(v_kBV)).transpose(0, 1).to(log_weight_Bk1.dtype)
        if isinstance(self.head, Number):
            number_B1: Tensor = (log_weight_Bk1.exp() * logits_BkK).sum(1)
            return number_B1
        if self._name == "logits":
            return torch.logsumexp(log_weight_Bk1 + F.log_softmax(logits_BkK, -1), 1)
        older_BkK = logits_BkK.cummin(-1).values
        log_older_BK = torch.logsumexp(log_weight_Bk1 + F.logsigmoid(older_BkK), 1)
        log_younger_BK = torch.logsumexp(log_weight_Bk1 + F.logsigmoid(-older_BkK), 1)
        return log_older_BK - log_younger_BK

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of the branches and the classifier."""
        parts: list[nn.Module] = [self.branches, self.head]
        if self.auxiliary is not None:
            parts.append(self.auxiliary)
        return chain.from_iterable(part.parameters() for part in parts)

    def get_backbone(self) -> nn.Module:
        """The backbone."""
        return self.backbone

    def load_backbone(self, state: dict[str, Tensor]) -> None:
        """Published weights of the backbone."""
        self.backbone.load_backbone(state)

    def init_features(self, batch: Batch) -> Tensor:
        """The backbone's features, for k-means++: (B, D)."""
        features_BD: Tensor = self.backbone(batch["face"])
        return features_BD

    def init_from_features(self, features_ND: Tensor, generator: torch.Generator) -> None:
        """Sets the first centroids by k-means++; see `clusters.kmeans` for errors."""
        self.clusters.start(features_ND, generator)
