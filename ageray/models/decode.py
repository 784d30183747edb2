"""From a posterior over age bins to an age in years, and to quantiles.

Shape letters: B faces, K bins, Q quantiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ageray.experiment.model import Level, ModelBase
from ageray.faces.constants import constant


def bins(config: ModelBase) -> Tensor:
    """The age in years that each bin stands for: (K,)."""
    return _years(*config.ages)


def _years(first: int, last: int) -> Tensor:
    return torch.arange(first, last + 1, dtype=torch.float32)


def classifier_posterior(outputs: dict[str, Tensor]) -> Tensor:
    """The posterior (B, K), float32, of a classifier's tensors.

    `logits` (B, K) go through softmax. For `ordinal_logits` (B, K - 1) it is the differences of
    p(older than bin k). Independent questions may contradict each other (Niu et al. 2016), so a
    running minimum makes p fall with k.
    """
    if "logits" in outputs:
        return torch.softmax(outputs["logits"].float(), -1)
    older_BQ = torch.sigmoid(outputs["ordinal_logits"].float()).cummin(-1).values
    ends = (torch.ones_like(older_BQ[:, :1]), torch.zeros_like(older_BQ[:, :1]))
    return torch.cat([ends[0], older_BQ], -1) - torch.cat([older_BQ, ends[1]], -1)


def decode(posterior_BK: Tensor, config: ModelBase) -> Tensor:
    """Age in years (B,), not rounded.

    `config.decode.method` chooses the posterior's expectation (DEX), median or mode. A gallery's
    posterior is the histogram of the neighbours' ages; its expectation is taken. With
    `config.decode.levels` the median is replaced by the quantile whose level belongs to it: the
    best guess where a year too many costs more, or less, than a year too few.
    """
    bins_K = constant(_years, *config.ages, like=posterior_BK)
    if config.decode.method in ("expectation", "gallery"):
        return posterior_BK @ bins_K
    if config.decode.method == "argmax":
        return bins_K[posterior_BK.argmax(-1)]
    age_B1 = median(posterior_BK, bins_K)
    if config.decode.levels:
        age_B1 = quantiles(posterior_BK, bins_K, _level(age_B1, config.decode.levels))
    return age_B1.squeeze(-1)


def _level(median_B1: Tensor, levels: Sequence[Level]) -> Tensor:
    """The share of the posterior below the age, interpolated at each median: (B, 1)."""
    points = tuple((level.age, level.share) for level in levels)
    start_R, slope_R, rise_R = constant(_ramps, points, like=median_B1).unbind(0)
    rises_BR = ((median_B1 - start_R) * slope_R).clamp(0, 1) * rise_R
    return rises_BR.sum(-1, keepdim=True) + levels[0].share


def _ramps(points: tuple[tuple[float, float], ...]) -> Tensor:
    """Start in years, slope a year and rise of the share of each ramp between levels: (3, R)."""
    rows = []
    for (age, share), (next_age, next_share) in pairwise(points):
        if next_share != share:
            rows.append((age, 1 / (next_age - age), next_share - share))
    return torch.tensor(rows).reshape(-1, 3).T


def median(posterior_BK: Tensor, bins_K: Tensor) -> Tensor:
    """The median of each posterior in years: (B, 1)."""
    return quantiles(posterior_BK, bins_K, constant(_half, like=posterior_BK))


def _half() -> Tensor:
    return torch.tensor([0.5])


def quantiles(posterior_BK: Tensor, bins_K: Tensor, levels_Q: Tensor) -> Tensor:
    """Ages below which the given shares of the posterior lie: (B, Q). levels_Q: the same for all
    faces, or (B, Q).

    A bin's probability is spread evenly over its year. Bin y reaches from y - 0.5 to y + 0.5.
    """
    cumulative_BK = posterior_BK.cumsum(-1)
    total_B1 = cumulative_BK[:, -1:]
    wanted_BQ = levels_Q * total_B1
    # as torch.searchsorted counts, but exportable to ONNX
    below_BKQ = cumulative_BK[:, :, None] < wanted_BQ[:, None]
    index_BQ = below_BKQ.sum(1).clamp_max(len(bins_K) - 1)
    mass_BQ = posterior_BK.gather(-1, index_BQ)
    below_BQ = cumulative_BK.gather(-1, index_BQ) - mass_BQ
    share_BQ = ((wanted_BQ - below_BQ) / mass_BQ.clamp_min(torch.finfo(mass_BQ.dtype).tiny)).clamp(0, 1)
    return bins_K[index_BQ] - 0.5 + share_BQ
