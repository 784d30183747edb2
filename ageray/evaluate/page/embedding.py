"""Embeddings in the plane, for looking at. Shape letters: N faces, D size of an embedding, C components that are kept."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MOST_FACES = 2000
"""More are thinned evenly: the map takes seconds up to here and shows no more beyond."""

Values = NDArray[np.float64]

_COMPONENTS = 50
_FEWEST = 50  # faces; t-SNE of fewer shows its own parameters


def in_the_plane(embedding_ND: Values, seed: int = 0) -> tuple[Values, str]:
    """Places (N, 2), and a sentence on how they were found.

    t-SNE of the first 50 principal components by scikit-learn, which keeps what is near together and says nothing about what is far apart; or the
    first two components where scikit-learn is not installed or the faces are under 50. The same at each run on one machine.
    """
    component_NC, share_C = principal_components(embedding_ND)
    plane_N2 = np.zeros((len(component_NC), 2))
    plane_N2[:, : min(2, component_NC.shape[1])] = component_NC[:, :2]
    said = f"The first two principal components, which hold {share_C[:2].sum():.0%} of the variance"
    if len(component_NC) < _FEWEST or component_NC.shape[1] < 2:
        return plane_N2, f"{said}."
    try:
        return _tsne(component_NC, seed), (
            f"t-SNE of the first {component_NC.shape[1]} principal components ({share_C.sum():.0%} of the variance), seed {seed}: "
            "near means alike, far tells little."
        )
    except ImportError:
        return plane_N2, f"{said}; install scikit-learn for a t-SNE map."


def principal_components(embedding_ND: Values, most: int = _COMPONENTS) -> tuple[Values, Values]:
    """Coordinates (N, C) along the leading principal components, each with its largest entry positive, and their shares of the variance (C,).

    Directions without variance are left out.
    """
    centred_ND = embedding_ND - embedding_ND.mean(0)
    gram_NN = centred_ND @ centred_ND.T  # N is small, D may be thousands
    variance_N, axis_NN = np.linalg.eigh(gram_NN)
    total = max(float(np.trace(gram_NN)), 1e-12)
    kept = [k for k in np.argsort(-variance_N, kind="stable")[:most] if variance_N[k] > 1e-9 * total]
    component_NC = axis_NN[:, kept] * np.sqrt(variance_N[kept])
    if kept:
        largest_C = component_NC[np.abs(component_NC).argmax(0), np.arange(len(kept))]
        component_NC = component_NC * np.where(largest_C < 0, -1.0, 1.0)
    return component_NC, variance_N[kept] / total


def _tsne(component_NC: Values, seed: int) -> Values:
    from sklearn.manifold import TSNE  # takes seconds to load
    from threadpoolctl import threadpool_limits

    perplexity = min(30.0, (len(component_NC) - 1) / 3)
    method = TSNE(perplexity=perplexity, init="pca", learning_rate="auto", random_state=seed)
    with threadpool_limits(1):  # sums over threads come in any order, and t-SNE makes much of little
        return np.asarray(method.fit_transform(component_NC), np.float64)
