"""Mean-variance loss (Pan et al., CVPR 2018), used together with cross_entropy.

Shape letters: B faces, K bins.
"""

from __future__ import annotations

from torch import Tensor

from ageray.losses.posterior import expectation, log_posterior


def mean_variance(
    logits: Tensor, age: Tensor, bins: Tensor, *, mean: float = 0.2, variance: float = 0.05
) -> Tensor:
    """lambda_1 L_m + lambda_2 L_v, each a mean over the batch.

    L_m = (m - y)^2 / 2 with m = sum_k p_k y_k. L_v = sum_k p_k (y_k - m)^2. lambda_1 is `mean`,
    lambda_2 is `variance`. The paper adds a softmax loss: that is the term `cross_entropy`.

    logits: (B, K). age: (B,) years, y, not rounded. bins: (K,) years, y_k.
    """
    log_posterior_BK = log_posterior(logits)
    mean_B = expectation(log_posterior_BK, bins)
    variance_B = (log_posterior_BK.exp() * (bins - mean_B[:, None]).square()).sum(-1)
    return (mean * (mean_B - age).square() / 2 + variance * variance_B).mean()
