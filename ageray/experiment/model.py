"""`model`: the networks, one class each, chosen by `model.name`."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ageray.experiment.strict import Count, Positive, Strict

Backbone = Literal[
    "resnet18",
    "resnet34",
    "resnet50",
    "vgg16",
    "googlenet",
    "bvlc_googlenet",
    "inception_v3",
    "convnext_tiny",
    "efficientnet_b0",
    "mobilenet_v1",
    "edgeface_s",
    "mobilefacenet",
]
"""torchvision's networks; `bvlc_googlenet`, the original GoogLeNet (torchvision's is another
network); three small networks with published weights that were trained on faces."""


class Gallery(Strict):
    """Ages by the nearest training faces (siamese paper, section 2.5)."""

    neighbours: Count = 20
    """M: how many nearest training faces, by L1 distance of the embeddings, give the mean age
    (paper: 20).
    """
    exclude_subject: bool = True
    """Leave out training faces of the query's own subject, where both are known: with them the
    figure measures face recognition.
    """
    validation_faces: Count = 5000
    """Training faces in the gallery that judges an epoch; the finished model's gallery holds all of
    them.
    """


class View(Strict):
    """One look of the network at a face, by the same alignment."""

    zoom: Annotated[float, Field(ge=0.9, le=1.5)] = 1.0
    """Factor by which the crop is enlarged about its centre. 1.1 shows a tenth less of the head,
    0.9 a ninth more."""
    size: Annotated[int, Field(ge=0, le=1024)] = 0
    """Side of the network's input in pixels; 0 takes `align.size`. The photo's pixels are resampled
    once, to this side."""


class Level(Strict):
    """Where in the posterior the age of a face is read."""

    age: Annotated[float, Field(ge=0, le=150)]
    """Median of the posterior in years."""
    share: Annotated[float, Field(gt=0, lt=1)]
    """Share of the posterior that lies below the age. 0.5 is the median."""


class Decode(Strict):
    """From the network's outputs to a posterior over age bins and an age in years."""

    method: Literal["expectation", "median", "argmax", "gallery"] = "expectation"
    """`expectation` is sum of p_k y_k (DEX; DHAA and neighborhood papers), `median` the age where
    half of the posterior lies below, `gallery` the mean age of the nearest training faces (siamese
    paper); its posterior is the histogram of their ages."""
    levels: tuple[Level, ...] = ()
    """With `median`: another share of the posterior than half below the age, by the median. Between
    two levels the share is interpolated; before the first and after the last it stays. Networks
    take children for older and the old for younger than they are, as far as their ages are
    uncertain; `[{age: 20, share: 0.45}, {age: 30, share: 0.5}, {age: 50, share: 0.5}, {age: 60,
    share: 0.55}]` takes a part of that bias back. Empty is the median."""
    flip: bool = True
    """Average the posterior of the face and of its mirror image (DHAA, section 4.2)."""
    views: Annotated[tuple[View, ...], Field(min_length=1, max_length=8)] = (View(),)
    """The posteriors of these views are averaged, each with its mirror image if `flip` is set. A
    view costs one forward pass, two with `flip`. `[{}, {zoom: 1.1}, {size: 160}]` are three
    views."""
    gallery: Gallery = Gallery()
    """Settings of `gallery`."""

    @model_validator(mode="after")
    def _levels_ascend(self) -> Self:
        ages = [level.age for level in self.levels]
        if any(after <= before for before, after in pairwise(ages)):
            raise ValueError(f"the ages of levels must ascend; got {ages}")
        if self.levels and self.method != "median":
            raise ValueError(f"levels are of method median, not of {self.method}; set levels to []")
        return self


class NearestFaces(Decode):
    """`decode` of a model without a classifier: ages from the gallery, without the mirror image
    unless asked for.
    """

    method: Literal["expectation", "median", "argmax", "gallery"] = "gallery"
    """Only `gallery`."""
    flip: bool = False
    """Average the posterior of the face and of its mirror image (the paper does not)."""


class ModelBase(Strict):
    """What every model has: age bins, a starting point and a way of decoding."""

    ages: tuple[int, int] = (0, 100)
    """First and last age bin in years, one bin a year (papers: 0..100). A range that reaches beyond
    the data, such as [-15, 120], lets a Gaussian-shaped target keep its mean at both ends, which
    takes the expectation's bias from infants and the very old."""
    weights: str = "none"
    """`none` (random), `imagenet` (torchvision's IMAGENET1K_V1, downloaded once), a model
    (`zoo:NAME`, a bundle, a run folder), or a path or url of a safetensors file.
    """
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout before the classifier; share of activations set to 0."""
    decode: Decode = Decode()
    """How the outputs become an age."""

    @model_validator(mode="after")
    def _ages_ascend(self) -> Self:
        if self.ages[0] >= self.ages[1]:
            raise ValueError(f"ages must ascend, [first, last]; got {list(self.ages)}")
        return self


class ClassifierBase(ModelBase):
    """What every model with a classifier over ages has."""

    classifier: Literal["softmax", "or_cnn", "coral"] = "softmax"
    """`softmax`: a logit a bin (`logits`). `or_cnn`: a binary logit 'older than bin k' for each bin
    but the last (`ordinal_logits`; Niu et al. 2016). `coral`: the same with one weight vector for
    all and a bias each (Cao et al. 2020)."""


class Baseline(ClassifierBase):
    """'Res18+EX' of the DHAA paper: a backbone, softmax over ages, expectation."""

    name: Literal["baseline"] = "baseline"
    """Selects this model."""
    backbone: Backbone = "resnet18"
    """Feature extractor (paper: ResNet-18)."""
    hidden: Annotated[int, Field(ge=0)] = 0
    """Outputs of a linear layer with ReLU between the backbone's features and the classifier; 0
    leaves it out (paper). It trains at the head's rate. The published MobileNetV1 age network has
    256."""
    weights_head: bool = True
    """Start from the age layers of the file `weights` too, if it has them and `hidden` is their
    size. Bins that the file lacks start from weights of 0 and a low bias."""


class ClusterCnn(ModelBase):
    """Cluster-CNN (Shang and Ai, ICIP 2017): GoogLeNet features, a cluster module, one branch a
    cluster.
    """

    classifier: Literal["softmax", "or_cnn", "coral", "number"] = "softmax"
    """As in the other models, and `number`: one regressed age in years (`number`), for
    `loss.regression` alone (Table 2 without 'Cls'). Its posterior is that age, divided between the
    two bins around it."""
    name: Literal["cluster_cnn"]
    """Selects this model."""
    backbone: Backbone = "bvlc_googlenet"
    """Feature extractor (paper: GoogLeNet)."""
    head: Literal["cluster", "plain"] = "cluster"
    """`cluster`: the cluster module of section 3.2. `plain`: one linear classifier on the pooled
    features, the paper's strong baseline (section 4.1.1)."""
    depth: Literal["full", "half"] = "full"
    """`half` stops the original GoogLeNet after inception 4b, about half of its depth (FG-NET in
    section 4.2; 72x72 pixels there). Only for `bvlc_googlenet`."""
    clusters: Annotated[int, Field(ge=1, le=64)] = 5
    """k (paper: 3, 5, 7; 5 in its comparison)."""
    branch_features: Count = 256
    """Outputs of a branch, v (not given in the paper); one classifier reads those of all
    branches."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """alpha of Eq. 3, by which each face moves its cluster's centroid."""
    init_faces: Count = 5000
    """Training faces from whose features k-means++ makes the first centroids (paper: 5,000), over
    all workers.
    """
    assignment: Literal["nearest", "mixture"] = "nearest"
    """At test time: the branch of the nearest centroid, or all branches weighted by Eq. 2."""
    auxiliary: bool = False
    """GoogLeNet's two auxiliary classifiers (Szegedy et al., section 5), after inception 4a and 4d,
    in training only; with half the depth the first one. The terms on `logits` apply to them, times
    `loss.auxiliary` (GoogLeNet: 0.3). Only for `bvlc_googlenet`."""

    @model_validator(mode="after")
    def _half_of_the_original(self) -> Self:
        if self.depth == "half" and self.backbone != "bvlc_googlenet":
            raise ValueError(
                f"depth 'half' is cut from the original GoogLeNet; set backbone=bvlc_googlenet, not "
                f"'{self.backbone}'"
            )
        if self.auxiliary and self.backbone != "bvlc_googlenet":
            raise ValueError(
                f"auxiliary classifiers are those of the original GoogLeNet; set backbone=bvlc_googlenet, "
                f"not '{self.backbone}', or auxiliary=false"
            )
        return self


class ResidualCnn(ClassifierBase):
    """The residual network of the neighborhood paper (Kwak et al., Table 1): a 3x3 stride-1 first
    convolution, then pooling.
    """

    name: Literal["residual_cnn"]
    """Selects this model."""
    depth: Literal[18, 34] = 18
    """Layers (paper: 18 and 34)."""
    width: Positive = 1.0
    """Factor of all channel counts, in whole eights, 16 at least (paper: 1); smaller for small
    machines.
    """
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Dropout before the classifier (paper: keep probability 0.8)."""


class DeepEmbedding(ClassifierBase):
    """Deep Embedding Network (He et al.): VGG-16 whose last features feed the classifier and the
    triplets.
    """

    name: Literal["deep_embedding"]
    """Selects this model."""
    backbone: Backbone = "vgg16"
    """Feature extractor (paper: VGG-16; its fc7 is the embedding)."""
    embedding: Annotated[int, Field(ge=0)] = 0
    """Size of a further linear layer that makes the shared embedding; 0 takes the backbone's
    features as they are (VGG-16: 4096).
    """


class Siamese(ModelBase):
    """Multi-task Siamese network (Jeong et al. 2018): embeddings for age and gender, ages by
    nearest neighbours.
    """

    name: Literal["siamese"]
    """Selects this model."""
    backbone: Backbone = "inception_v3"
    """Feature extractor (paper: Inception V3)."""
    age_features: Count = 70
    """N_a: size of the embedding for age (paper: 70)."""
    gender_features: Annotated[int, Field(ge=0)] = 10
    """N_g: size of the embedding for gender (paper: 10); 0 leaves the gender task out."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Dropout before the embeddings (paper: 0.5)."""
    decode: NearestFaces = NearestFaces()
    """How the outputs become an age: only `gallery`."""

    @model_validator(mode="after")
    def _by_neighbours(self) -> Self:
        if self.decode.method != "gallery":
            raise ValueError(
                f"decode.method '{self.decode.method}' needs a classifier, which 'siamese' has not; "
                f"set decode.method=gallery"
            )
        return self


class Young(Strict):
    """The weight of the published tail in `two_tails`: share / (1 + exp((m - age) / width)), where
    m is the median in years of that tail's posterior."""

    age: float = 20.0
    """Where the published tail has half of `share`, in years of its own estimate."""
    width: Positive = 3.0
    """How softly the one passes into the other, in years."""
    share: Annotated[float, Field(ge=0, le=1)] = 1.0
    """The published tail's share of the posterior of the youngest; 0 leaves it out."""


class TwoTails(ModelBase):
    """A published age network whose last blocks exist twice: as published, for the young, and
    trained.

    Learning without Forgetting (Li and Hoiem, ECCV 2016) preserves the old head by a loss; here the
    old blocks themselves stay."""

    name: Literal["two_tails"]
    """Selects this model."""
    backbone: Literal["mobilenet_v1"] = "mobilenet_v1"
    """Feature extractor; `weights` must name a file that has its age layers too."""
    shared_blocks: Annotated[int, Field(ge=1, le=13)] = 10
    """Blocks, from the input on, that stay as published and that all tails share. The first
    convolution is one; the others are separable blocks, of which there are 13."""
    tails: Annotated[int, Field(ge=1, le=8)] = 1
    """Trained tails, whose posteriors are averaged."""
    hidden: Count = 256
    """Outputs of the linear layer before each classifier (published: 256)."""
    young: Young = Young()
    """Where the published tail counts."""


class Dhaa(ClassifierBase):
    """Deep Hybrid-Aligned Architecture (Tan et al., IJCAI 2019). Every row of its Table 1 and
    Figure 5 is a setting.
    """

    name: Literal["dhaa"]
    """Selects this model."""
    branches: Annotated[
        tuple[Literal["global", "local", "global_local"], ...], Field(min_length=1, max_length=3)
    ] = (
        "global",
        "local",
        "global_local",
    )
    """Which branches there are (Table 1: G, L, G-L)."""
    pooling: Literal["arp", "roi"] = "arp"
    """`arp`: aligned region pooling (Eq. 1). `roi`: upright squares about region centres (Figure
    5).
    """
    fusion: Literal["lstm", "fc"] = "lstm"
    """`lstm`: recurrent fusion, hidden states summed (Eq. 2, 3). `fc`: a fully connected layer a
    branch (Figure 5).
    """
    subnetwork_losses: bool = True
    """Nine further classifiers, one a sub-network, each with the losses of the last (Eq. 4); in
    training only.
    """
    width: Positive = 1.0
    """Factor of the residual blocks' channel counts, in whole eights, 16 at least (paper: 1,
    ResNet-18's); smaller for small machines.
    """
    features: Count = 128
    """Size of a sub-network's features and of the hidden state (paper: 128)."""
    region_size: Annotated[int, Field(ge=0)] = 0
    """Side of an aligned region's feature map (paper: 56 for a 256x256 face); 0 takes the same
    share, 7/32 of the face's side.
    """

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        if len(set(self.branches)) != len(self.branches):
            raise ValueError(f"branches must differ; got {list(self.branches)}")
        return self


Single = Annotated[
    Baseline | ClusterCnn | ResidualCnn | DeepEmbedding | Siamese | Dhaa | TwoTails,
    Field(discriminator="name"),
]
"""The models that are one network."""


class Member(Strict):
    """One network of an ensemble."""

    model: Single
    """The network, as in its own bundle. Its ages lie within the ensemble's. The ensemble's
    `decode` applies, not its own."""
    size: Annotated[int, Field(ge=0, le=1024)] = 0
    """Side of its input in pixels, to which the aligned face is resized; 0 takes the face as it
    is."""
    standardize: bool = False
    """Its `align.standardize`: the ensemble's own must then be false."""
    weight: Positive = 1.0
    """Its share of the mean, relative to the others'."""


class Ensemble(ModelBase):
    """Several trained networks whose posteriors are averaged. It is not trained:
    `python -m ageray.zoo.combine` makes its bundle from the bundles of its members."""

    name: Literal["ensemble"]
    """Selects this model."""
    members: Annotated[tuple[Member, ...], Field(min_length=1, max_length=16)]
    """The networks."""

    @model_validator(mode="after")
    def _members_fit(self) -> Self:
        if self.weights != "none":
            raise ValueError("an ensemble has no weights to start from; leave model.weights at none")
        for place, member in enumerate(self.members):
            first, last = member.model.ages
            if first < self.ages[0] or last > self.ages[1]:
                raise ValueError(
                    f"members[{place}].model.ages {[first, last]} lie beyond ages {list(self.ages)}"
                )
            if member.model.decode.method == "gallery":
                raise ValueError(f"members[{place}] takes ages from a gallery, which an ensemble has not")
        return self


Model = Annotated[
    Baseline | ClusterCnn | ResidualCnn | DeepEmbedding | Siamese | Dhaa | TwoTails | Ensemble,
    Field(discriminator="name"),
]
"""Every model by its name."""
