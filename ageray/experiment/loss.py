"""`loss`: terms by name, each with its options. A term's name is its key, its file in
`ageray.losses` and its function.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ageray.experiment.strict import Count, Positive, Strict


class Term(Strict):
    """One term of the weighted sum."""

    weight: Positive = 1.0
    """Factor of this term in the sum (beta of the Deep Embedding paper is
    `loss.cross_entropy.weight`).
    """


class CrossEntropy(Term):
    """Softmax cross entropy on the age bin (DEX)."""

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the target spread evenly over all bins."""
    reduction: Literal["mean", "sum"] = "mean"
    """Over the faces of the batch (Deep Embedding paper, Eq. 4: sum)."""


class Neighborhood(Term):
    """Neighborhood loss: cross entropy against Gaussian-shaped targets exp(-(k - k_n)^2 / sigma^2)
    (Kwak et al., Eq. 5).
    """

    sigma: Positive = 5.0
    """Width of the target in years (paper: 5); the Gaussian's standard deviation is sigma /
    sqrt(2).
    """
    normalize: bool = False
    """Divide the targets by their sum: DLDL's cross entropy. The paper's Eq. 5 does not."""
    label_std: bool = False
    """Widen a face's target by the standard deviation of its label (`age_std` of the shards or of
    `data.sets`). The paper has no such width."""
    reduction: Literal["mean", "sum"] = "mean"
    """Over the faces of the batch (paper, Eq. 1: sum)."""


class Triplet(Term):
    """Triplet loss on the hardest triplets of the batch (He et al., Eq. 2)."""

    margin: Positive = 0.5
    """m (paper: 0.5), in squared Euclidean distance."""
    top_k: Count = 64
    """K: how many triplets of highest loss count (not given in the paper)."""
    normalize: bool = True
    """L2-normalise the embedding, without which a margin of 0.5 has no scale."""
    reduction: Literal["mean", "sum"] = "mean"
    """Over the K triplets, those without a loss included (paper, Eq. 4: sum)."""


class Contrastive(Term):
    """Revised contrastive loss on all pairs of the batch (Jeong et al., Eq. 1 to 4)."""

    margin: Positive = 4.0
    """Faces whose ages differ by less than this, in years, are of one class (paper: 4)."""
    q: Positive = 100.0
    """Q: upper limit of dissimilarity, of the L1 distance (paper: 100)."""
    inclusive: bool = False
    """A difference equal to the margin is of one class too (section 2.4 says so, section 3 does
    not).
    """


class GenderContrastive(Term):
    """The same loss on the embedding for gender, with margin 0 (Jeong et al., section 2.6)."""

    q: Positive = 100.0
    """Q (paper: 100)."""


class ClusterScatter(Term):
    """S_w / S_b, the spread within clusters over that between their centroids (Shang and Ai, Eq.
    1); with a single cluster, S_w.
    """

    weight: Positive = 0.1
    """Factor of this term in the sum (not given in the paper)."""


class Regression(Term):
    """Mean absolute error of the posterior's expectation: E_r of Shang and Ai, section 3.3; 1 -
    lambda is its weight.
    """

    norm: Literal["l1", "l2"] = "l1"
    """`l1`: absolute error in years (paper). `l2`: squared."""


class DldlV2(Term):
    """DLDL-v2 (Gao et al., IJCAI 2018): Kullback-Leibler divergence from a Gaussian label
    distribution, plus the expectation's L1 error.
    """

    sigma: Positive = 2.0
    """Standard deviation of the label distribution in years (paper: 2)."""
    expectation: Annotated[float, Field(ge=0)] = 1.0
    """lambda: factor of the L1 error (paper: 1)."""
    label_std: bool = False
    """Widen a face's target by the standard deviation of its label (`age_std` of the shards or of
    `data.sets`). The paper has one width for all faces."""


class Distillation(Term):
    """Cross entropy to the posterior of `train.teacher` (Hinton et al. 2015)."""

    below: Annotated[float, Field(gt=0)] | None = None
    """Only for faces whose true age is below this, in years, with a logistic transition; null takes
    all faces."""
    width: Positive = 2.0
    """Width of the transition in years."""


class Crps(Term):
    """Continuous ranked probability score of the posterior (Gneiting and Raftery 2007), in years;
    used beside a term that shapes the posterior.
    """


class MeanVariance(Term):
    """Mean-variance loss (Pan et al., CVPR 2018); used beside cross_entropy."""

    mean: Annotated[float, Field(ge=0)] = 0.2
    """lambda_1: factor of half the squared error of the posterior's mean (paper: 0.2)."""
    variance: Annotated[float, Field(ge=0)] = 0.05
    """lambda_2: factor of the posterior's variance (paper: 0.05)."""


class Sord(Term):
    """SORD (Diaz and Marathe, CVPR 2019): cross entropy against softmax(-phi)."""

    metric: Literal["l1", "l2"] = "l2"
    """phi: absolute or squared difference of ages."""
    alpha: Positive = 1.0
    """Factor of phi; larger makes the targets narrower."""


class OrCnn(Term):
    """Binary cross entropy over all 'older than k' questions (Niu et al., CVPR 2016; Cao et al.
    2020 for `classifier: coral`).
    """

    importance: Literal["uniform", "sqrt_count"] = "uniform"
    """Weight of each question k: all alike, or sqrt(M_k) / max sqrt(M_j), M_k being the larger of
    the two groups into which it divides the faces of the batch (Cao et al., section 3.5)."""


class Loss(Strict):
    """Terms by name, each with its options. A term that is not named is not used."""

    auxiliary: Annotated[float, Field(ge=0)] = 1.0
    """Factor of the same terms on a model's auxiliary classifiers, summed over them (DHAA, Eq. 4:
    1).
    """
    cross_entropy: CrossEntropy | None = None
    """Softmax cross entropy."""
    neighborhood: Neighborhood | None = None
    """Gaussian-shaped targets."""
    triplet: Triplet | None = None
    """Hardest triplets of the batch."""
    contrastive: Contrastive | None = None
    """All pairs of the batch, by age."""
    gender_contrastive: GenderContrastive | None = None
    """All pairs of the batch, by gender."""
    cluster_scatter: ClusterScatter | None = None
    """Spread within over spread between clusters."""
    regression: Regression | None = None
    """Error of the expectation."""
    dldl_v2: DldlV2 | None = None
    """Label distribution and expectation."""
    distillation: Distillation | None = None
    """Cross entropy to a teacher."""
    crps: Crps | None = None
    """Squared difference of the distribution functions."""
    mean_variance: MeanVariance | None = None
    """Mean and variance of the posterior."""
    sord: Sord | None = None
    """Soft ordinal labels."""
    or_cnn: OrCnn | None = None
    """Binary questions 'older than k'."""
