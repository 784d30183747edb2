"""The forward pass from canvases to a posterior over age bins, averaged with the mirror image.

Validation and the predictor both use it, so the selected model is served as it was measured.

Shape letters: B faces, K bins, M neighbours, D size of an embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ageray.experiment import Experiment
from ageray.experiment.model import ClassifierBase, ModelBase
from ageray.experiment.model import Gallery as Settings
from ageray.faces import geometry
from ageray.faces.align import align_faces, standardize
from ageray.models.decode import bins, classifier_posterior
from ageray.models.gallery import Gallery, Neighbours, compact
from ageray.models.network import AgeNetwork, head_output

Batch = dict[str, Tensor]
_LABELS = ("age", "gender", "subject")


@dataclass(frozen=True)
class Prediction:
    """`posterior` (B, K), float32, and with a gallery what its neighbours tell.

    `female` (B,) is the share of women among the neighbours; None if the gallery has no genders.
    `neighbours` (B,) is the number of averaged ages. `own` (B,) is the number of the M nearest that
    show the face's own subject. With the mirror image all are means over both.
    """

    posterior: Tensor
    female: Tensor | None = None
    neighbours: Tensor | None = None
    own: Tensor | None = None


def predict(
    network: nn.Module, batch: Batch, config: Experiment, autocast: bool, gallery: Gallery | None = None
) -> Prediction:
    """What the network says of canvases `canvas` (B, 3, C, C), `points` (B, 5, 2), `box` (B, 4) on its device.

    With `decode.flip` the mean of the face's posterior and its mirror image's (DHAA, section 4.2). With `decode.method: gallery` the posterior
    is the histogram of the nearest gallery faces' ages; `subject` (B,) then tells which of them are the face's own. The network must be in
    eval mode.
    """
    outputs = [_outputs(network, each, autocast) for each in views(batch, config, config.model.decode.flip)]
    if config.model.decode.method != "gallery":
        return Prediction(_mean([classifier_posterior(each) for each in outputs]))
    assert gallery is not None
    return _both([_of_neighbours(each, gallery, config.model, batch.get("subject")) for each in outputs])


def posterior(
    network: nn.Module, batch: Batch, config: Experiment, autocast: bool, gallery: Gallery | None = None
) -> Tensor:
    """The posterior (B, K) of `predict` alone."""
    return predict(network, batch, config, autocast, gallery).posterior


def classifier_posteriors(
    network: AgeNetwork, batch: Batch, config: Experiment, autocast: bool
) -> dict[str, Tensor]:
    """The posterior (B, K) of each of the network's classifiers, by name.

    The batch is that of `predict`. With `decode.flip` each is the mean over both images.
    """
    tensor = "logits"
    if isinstance(config.model, ClassifierBase):
        tensor = head_output(config.model)
    posteriors: dict[str, list[Tensor]] = {}
    for view in views(batch, config, config.model.decode.flip):
        with torch.autocast(view["face"].device.type, torch.bfloat16, enabled=autocast):
            outputs = network.classifiers(view)
        for name, logits in outputs.items():
            posteriors.setdefault(name, []).append(classifier_posterior({tensor: logits}))
    return {name: _mean(parts) for name, parts in posteriors.items()}


def embeddings(network: nn.Module, batch: Batch, config: Experiment, autocast: bool) -> Tensor:
    """The network's `embedding` (B, D), float32, without the mirror image.

    The batch is that of `predict`.
    """
    return _outputs(network, _view(batch, config), autocast)["embedding"].float()


def gallery_rows(network: nn.Module, batch: Batch, config: Experiment, autocast: bool) -> Batch:
    """Rows for `Gallery.of`, without the mirror image.

    The batch is that of `predict` with `age` (B,), `gender` (B,) and `subject` (B,).
    """
    outputs = _outputs(network, _view(batch, config), autocast)
    rows = {name: batch[name] for name in _LABELS if name in batch}
    for name in ("embedding", "gender_embedding"):
        if name in outputs:
            rows[name] = compact(outputs[name])
    return rows


def _view(batch: Batch, config: Experiment) -> Batch:
    if "features" in batch:
        return {"face": batch["features"][:, 0]}
    faces, points = align_faces(batch["canvas"], batch["points"], batch["box"], config.align)
    faces = standardize(faces, config.align).contiguous(memory_format=torch.channels_last)
    return {"face": faces, "points": points}


def views(batch: Batch, config: Experiment, mirrored: bool) -> list[Batch]:
    """The faces as the network takes them and, where asked for, their mirror images. A batch may instead hold `features` (B, 2, D) of both, for a
    network whose backbone was taken out (`ageray.train.in_memory.frozen`)."""
    view = _view(batch, config)
    if not mirrored:
        return [view]
    if "features" in batch:
        return [view, {"face": batch["features"][:, 1]}]
    return [
        view,
        {"face": view["face"].flip(-1), "points": geometry.mirror_points(view["points"], config.align.size)},
    ]


def _outputs(network: nn.Module, view: Batch, autocast: bool) -> Batch:
    with torch.autocast(view["face"].device.type, torch.bfloat16, enabled=autocast):
        outputs: Batch = network(view)
    return outputs


def _mean(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else (parts[0] + parts[1]) / 2


def _both(found: list[Prediction]) -> Prediction:
    """The mean of a face's and its mirror image's."""

    def mean(parts: list[Tensor | None]) -> Tensor | None:
        there = [part for part in parts if part is not None]
        return _mean(there) if there else None

    about = (mean([getattr(each, name) for each in found]) for name in ("female", "neighbours", "own"))
    return Prediction(_mean([each.posterior for each in found]), *about)


def _of_neighbours(
    outputs: Batch, gallery: Gallery, config: ModelBase, subject_B: Tensor | None
) -> Prediction:
    """The prediction from the ages of the nearest faces of the gallery."""
    settings, query_BD = config.decode.gallery, outputs["embedding"].float()
    near = gallery.nearest(query_BD, settings.neighbours, subject_B, settings.exclude_subject)
    posterior_BK = gallery.posterior(near, bins(config).to(query_BD.device))
    # An embedding that is not finite has no meaningful distances.
    broken_B1 = ~torch.isfinite(query_BD).all(-1, keepdim=True)
    return Prediction(
        posterior_BK.masked_fill(broken_B1, torch.nan),
        _female(outputs, near, gallery, settings, subject_B),
        near.present.sum(-1),
        near.own,
    )


def _female(
    outputs: Batch, near: Neighbours, gallery: Gallery, settings: Settings, subject_B: Tensor | None
) -> Tensor | None:
    """The share of women among the nearest faces of known gender: (B,); None if there are none."""
    by = gallery.gender_by
    if by is None:
        return None
    if by != "embedding" or not gallery.all_genders_known:  # otherwise the neighbours are the same
        near = gallery.nearest(
            outputs[by].float(), settings.neighbours, subject_B, settings.exclude_subject, by=by, gender=True
        )
    return gallery.female(near)
