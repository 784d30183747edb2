"""The embeddings of faces as places in the plane, for the page's map.

Shape letters: N faces, D size of an embedding, C principal components.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MOST_FACES = 2000
"""Upper bound on the faces of the map: so many take seconds, and more would not show."""

Values = NDArray[np.float64]

_COMPONENTS = 50
_FEWEST = 50  # faces; the t-SNE of fewer shows its parameters rather than the data


def in_the_plane(embedding_ND: Values, seed: int = 0) -> tuple[Values, str]:
    """Places (N, 2), and a sentence on how they are computed.

    t-SNE of the first 50 principal components by scikit-learn: it puts similar faces near each
    other, but far distances mean nothing. The first two components if scikit-learn is not installed
    or there are fewer than 50 faces. Equal at each run on one machine.
    """
    component_NC, share_C = principal_components(embedding_ND)
    plane_N2 = np.zeros((len(component_NC), 2))
    plane_N2[:, : min(2, component_NC.shape[1])] = component_NC[:, :2]
    caption = f"The first two principal components, which hold {share_C[:2].sum():.0%} of the variance"
    if len(component_NC) < _FEWEST or component_NC.shape[1] < 2:
        return plane_N2, f"{caption}."
    try:
        plane_N2 = _tsne(component_NC, seed)
    except ImportError:
        return plane_N2, f"{caption}; install scikit-learn for a t-SNE map."
    return plane_N2, (
        f"t-SNE of the first {component_NC.shape[1]} principal components ({share_C.sum():.0%} of the "
        f"variance), seed {seed}: near means similar, far means little."
    )


def principal_components(embedding_ND: Values, most: int = _COMPONENTS) -> tuple[Values, Values]:
    """Coordinates (N, C) along the leading components, and their shares of the variance (C,).

    Each component's largest entry is positive. Directions without variance are left out.
    """
    centred_ND = embedding_ND - embedding_ND.mean(0)
    gram_NN = centred_ND @ centred_ND.T  # N is small, D may be thousands
    variance_N, axis_NN = np.linalg.eigh(gram_NN)
    total = max(float(np.trace(gram_NN)), 1e-12)
    leading = np.argsort(-variance_N, kind="stable")[:most]
    leading = leading[variance_N[leading] > 1e-9 * total]
    component_NC = axis_NN[:, leading] * np.sqrt(variance_N[leading])
    if len(leading):
        largest_C = component_NC[np.abs(component_NC).argmax(0), np.arange(len(leading))]
        component_NC = component_NC * np.where(largest_C < 0, -1.0, 1.0)
    return component_NC, variance_N[leading] / total


def _tsne(component_NC: Values, seed: int) -> Values:
    from sklearn.manifold import TSNE  # takes seconds to load
    from threadpoolctl import threadpool_limits

    perplexity = min(30.0, (len(component_NC) - 1) / 3)
    method = TSNE(perplexity=perplexity, init="pca", learning_rate="auto", random_state=seed)
    # threads add numbers in any order, and t-SNE turns the rounding into visible differences
    with threadpool_limits(1):
        return np.asarray(method.fit_transform(component_NC), np.float64)
