"""Features of a frozen backbone, computed once a run: every epoch then reads them from memory.

If no stage trains the backbone, a face has the same features in every epoch. Each worker computes
those of its share of the faces; all workers get all of them, because an epoch's order spreads the
faces over the workers anew. The network stays whole: its backbone passes features on, so weights,
checkpoints and bundles are those of a run that reads pixels. Shape letters: N faces, D features, B
faces of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor

from ageray import distributed
from ageray.data.stream import UsableBatches
from ageray.experiment import Experiment
from ageray.models.network import AgeNetwork, Backbone
from ageray.train.in_memory import frozen
from ageray.train.state import Columns, State

MOST_BYTES = 2 * 2**30
"""Most memory, in bytes a worker, for the features of a run; a larger set is read as pixels."""

_LABELS = ("key", "age", "gender", "subject", "row", "set", "error")


class FeatureStore:
    """The columns `features` (N, 2, D), of face and mirror image, and the labels of the parts
    `train` and `val`, on every worker."""

    def __init__(self) -> None:
        self._parts: dict[str, Columns] = {}

    def add(self, part: str, state: State, batches: Iterator[Columns]) -> None:
        """Computes the features of this worker's share of a part and gathers those of all workers.

        batches: of `Streams.numbered`, those that cannot be used too.
        """
        own: list[Columns] = []
        backbone = state.network.get_backbone()
        assert isinstance(backbone, Backbone)
        training = backbone.training
        for batch in batches:
            columns = {name: batch[name] for name in _LABELS}
            usable = batch["error"] == ""
            features = np.zeros((len(usable), 2, backbone.features), np.float32)
            if usable.any():
                faces = {name: values[usable] for name, values in batch.items()}
                features[usable] = frozen.features(backbone, faces, state.config, state.device)
            own.append(columns | {"features": features})
        backbone.train(training)
        rows: list[Columns] = []
        for part_of_worker in distributed.all_gather_object(own):
            rows += part_of_worker
        whole = {}
        if rows:
            order = np.argsort(np.concatenate([columns["row"] for columns in rows]), kind="stable")
            for name in (*_LABELS, "features"):
                whole[name] = np.concatenate([columns[name] for columns in rows])[order]
        self._parts[part] = whole

    def blocks(self, part: str) -> Iterator[Columns]:
        """All faces of a part, those that cannot be used too, as one block."""
        if self._parts[part]:
            yield self._parts[part]

    def whole(self, part: str, rows: Any, size: int) -> UsableBatches:
        """The faces with these row numbers in batches of `size`."""
        return UsableBatches(self._batches(part, rows, size))

    def _batches(self, part: str, rows: Any, size: int) -> Iterator[Columns]:
        columns = self._parts[part]
        if not columns:
            return
        places = np.flatnonzero(np.isin(columns["row"], rows))
        for first in range(0, len(places), size):
            yield {name: values[places[first : first + size]] for name, values in columns.items()}


def applies(config: Experiment, network: AgeNetwork, faces: int) -> bool:
    """Whether a run of `faces` faces may train on features: see `frozen.applies`; and they fit into
    MOST_BYTES, no stage has shards of its own, and the worker aligns the faces."""
    backbone = network.get_backbone()
    if not frozen.applies(config, network) or not isinstance(backbone, Backbone):
        return False
    own_shards = any(stage.shards for stage in config.train.stages)
    plain = config.align.placement == "worker" and not config.train.compile and not own_shards
    return plain and faces * 2 * backbone.features * 4 <= MOST_BYTES


def pass_features_on(network: AgeNetwork) -> None:
    """Lets the backbone return features (B, D) as they are; faces (B, 3, S, S) as before."""
    backbone = network.get_backbone()
    pixels_forward = backbone.forward

    def forward(faces: Tensor) -> Tensor:
        if faces.ndim == 2:
            return faces
        features: Tensor = pixels_forward(faces)
        return features

    backbone.forward = forward
