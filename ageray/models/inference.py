"""The forward pass from canvases to a posterior over age bins, averaged with the mirror image.

Validation and the predictor both use it, so the selected model is served as it was measured.

Shape letters: B faces, K bins, M neighbours, D size of an embedding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ageray.experiment import Experiment
from ageray.experiment.model import ClassifierBase, ClusterCnn, ModelBase, View
from ageray.experiment.model import Gallery as Settings
from ageray.faces import geometry, quality
from ageray.faces.align import align_faces, standardize
from ageray.faces.constants import constant
from ageray.models.decode import bins, classifier_posterior
from ageray.models.gallery import Gallery, Neighbours, compact
from ageray.models.network import CLASSIFIER, AgeNetwork, head_output

Batch = dict[str, Tensor]
_LABELS = ("age", "gender", "subject")


@dataclass(frozen=True)
class Prediction:
    """`posterior` (B, K), float32, and with a gallery what its neighbours tell.

    `female` (B,) is the share of women among the neighbours; None if the gallery has no genders.
    `neighbours` (B,) is the number of averaged ages. `own` (B,) is the number of the M nearest that
    show the face's own subject. With the mirror image all are means over both. On request,
    `embedding` (B, D) of the face as it is, `measures` (B, M) of its picture
    (`ageray.faces.quality`), float32, and `classifiers`, the posterior (B, K) of each of the
    network's classifiers by name.
    """

    posterior: Tensor
    female: Tensor | None = None
    neighbours: Tensor | None = None
    own: Tensor | None = None
    embedding: Tensor | None = None
    measures: Tensor | None = None
    classifiers: dict[str, Tensor] | None = None


def predict(
    network: nn.Module,
    batch: Batch,
    config: Experiment,
    autocast: bool,
    gallery: Gallery | None = None,
    measured: bool = False,
    gender: bool = True,
    details: bool = False,
) -> Prediction:
    """The network's predictions for canvases `canvas` (B, 3, C, C), `points` (B, 5, 2), `box` (B,
    4) on its device.

    The posterior is the mean over `decode.views` and, with `decode.flip`, over their mirror images
    (DHAA, section 4.2). With `decode.method: gallery` it is the histogram of the ages of the
    nearest gallery faces; `subject` (B,) then tells which of them are of the same person. The
    network must be in eval mode. measured: adds `embedding` and `measures`, both of the first
    view. gender: whether to look for the gallery's nearest faces by gender too. details: adds
    `embedding` and, of a network with several, `classifiers`, from the same forward passes.
    """
    mirrored = config.model.decode.flip
    faces = views(batch, config, mirrored, measured)
    outputs: list[Batch] = []
    for first in range(0, len(faces), 1 + mirrored):
        outputs += _outputs_together(network, faces[first : first + 1 + mirrored], autocast, details)
    if config.model.decode.method != "gallery":
        prediction = Prediction(_mean([classifier_posterior(each) for each in outputs]))
    else:
        assert gallery is not None
        parts = []
        for each in outputs:
            parts.append(_of_neighbours(each, gallery, config.model, batch.get("subject"), gender))
        prediction = _both(parts)
    if measured:
        prediction = replace(prediction, measures=faces[0]["measures"])
    if (measured or details) and "embedding" in outputs[0]:
        prediction = replace(prediction, embedding=outputs[0]["embedding"].float())
    if details and isinstance(network, AgeNetwork) and network.classifier_names:
        prediction = replace(prediction, classifiers=_of_classifiers(network, outputs, config))
    return prediction


def _of_classifiers(network: AgeNetwork, outputs: list[Batch], config: Experiment) -> dict[str, Tensor]:
    """The posterior (B, K) of each classifier, the mean over the views."""
    tensor = "logits"
    if isinstance(config.model, ClassifierBase | ClusterCnn):
        tensor = head_output(config.model)
    posteriors = {}
    for name in network.classifier_names:
        parts = [classifier_posterior({tensor: each[CLASSIFIER + name]}) for each in outputs]
        posteriors[name] = _mean(parts)
    return posteriors


def posterior(
    network: nn.Module, batch: Batch, config: Experiment, autocast: bool, gallery: Gallery | None = None
) -> Tensor:
    """The posterior (B, K) of `predict` alone, without looking for neighbours by gender."""
    return predict(network, batch, config, autocast, gallery, gender=False).posterior


def classifier_posteriors(
    network: AgeNetwork, batch: Batch, config: Experiment, autocast: bool
) -> dict[str, Tensor]:
    """The posterior (B, K) of each of the network's classifiers, by name.

    The batch is that of `predict`. With `decode.flip` each is the mean over both images.
    """
    outputs = []
    for view in views(batch, config, config.model.decode.flip):
        outputs.append(_outputs(network, view, autocast, details=True))
    return _of_classifiers(network, outputs, config)


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
    rows["embedding"] = compact(outputs["embedding"])
    # without its loss the layer for gender stays as it began, so the embedding for age tells gender
    if "gender_embedding" in outputs and config.loss.gender_contrastive is not None:
        rows["gender_embedding"] = compact(outputs["gender_embedding"])
    return rows


def _view(batch: Batch, config: Experiment, view: View | None = None, measured: bool = False) -> Batch:
    """The faces as the network takes them, `face` (B, 3, S, S) and `points` (B, 5, 2); of `view`,
    enlarged and at its own side. measured: adds the `measures` (B, M) of their pictures."""
    if "features" in batch:
        return {"face": batch["features"][:, 0]}
    align, zoom = config.align, None
    if view is not None and view.size:
        align = align.model_copy(update={"size": view.size})
    if view is not None and view.zoom != 1:
        zoom = constant(geometry.zoom_map, align.size, view.zoom, like=batch["points"])
        zoom = zoom.expand(len(batch["points"]), 2, 3)
    aligned, points = align_faces(batch["canvas"], batch["points"], batch["box"], align, zoom)
    faces = standardize(aligned, align).contiguous(memory_format=torch.channels_last)
    inputs = {"face": faces, "points": points}
    if measured:
        inputs["measures"] = quality.measure(aligned, points, batch["points"], batch["box"], align)
    return inputs


def views(batch: Batch, config: Experiment, mirrored: bool, measured: bool = False) -> list[Batch]:
    """The faces of each of `decode.views` as the network takes them, each followed by its mirror
    images where asked for. measured: the first has the `measures` (B, M) of the pictures too.

    A batch may instead have `features` (B, 2, D) of the face and of its mirror image, for a network
    without its backbone (`ageray.train.in_memory.frozen`).
    """
    if "features" in batch:
        both = [{"face": features_BD} for features_BD in batch["features"].unbind(1)]
        return both if mirrored else both[:1]
    inputs: list[Batch] = []
    for each in config.model.decode.views:
        view = _view(batch, config, each, measured and not inputs)
        inputs.append(view)
        if mirrored:
            points = geometry.mirror_points(view["points"], view["face"].shape[-1])
            inputs.append({"face": view["face"].flip(-1), "points": points})
    return inputs


def _outputs(network: nn.Module, view: Batch, autocast: bool, details: bool = False) -> Batch:
    with torch.autocast(view["face"].device.type, torch.bfloat16, enabled=autocast):
        if details and isinstance(network, AgeNetwork):
            return network.detailed(view)
        outputs: Batch = network(view)
    return outputs


def _outputs_together(network: nn.Module, inputs: list[Batch], autocast: bool, details: bool) -> list[Batch]:
    """The outputs for a view and its mirror image, in one pass of both."""
    if len(inputs) == 1:
        return [_outputs(network, inputs[0], autocast, details)]
    together = {}
    for name, first in inputs[0].items():
        if all(name in each for each in inputs):
            # torch.cat keeps the memory format, in which the network's convolutions are fastest
            together[name] = torch.cat([first, *(each[name] for each in inputs[1:])])
    count = len(inputs[0]["face"])
    parts: list[Batch] = [{} for _ in inputs]
    for name, tensor in _outputs(network, together, autocast, details).items():
        for number, part in enumerate(parts):
            part[name] = tensor[number * count : (number + 1) * count]
    return parts


def _mean(parts: list[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total / len(parts)


def _both(predictions: list[Prediction]) -> Prediction:
    """The mean over a face's views and their mirror images."""

    def mean(parts: list[Tensor | None]) -> Tensor | None:
        tensors = [part for part in parts if part is not None]
        return _mean(tensors) if tensors else None

    return Prediction(
        _mean([each.posterior for each in predictions]),
        mean([each.female for each in predictions]),
        mean([each.neighbours for each in predictions]),
        mean([each.own for each in predictions]),
    )


def _of_neighbours(
    outputs: Batch, gallery: Gallery, config: ModelBase, subject_B: Tensor | None, gender: bool
) -> Prediction:
    """The prediction from the ages of the nearest faces of the gallery."""
    settings, query_BD = config.decode.gallery, outputs["embedding"].float()
    near = gallery.nearest(query_BD, settings.neighbours, subject_B, settings.exclude_subject)
    posterior_BK = gallery.posterior(near, bins(config).to(query_BD.device))
    # An embedding that is not finite has no meaningful distances.
    broken_B1 = ~torch.isfinite(query_BD).all(-1, keepdim=True)
    female_B = None
    if gender:
        female_B = _female(outputs, near, gallery, settings, subject_B)
    return Prediction(
        posterior_BK.masked_fill(broken_B1, torch.nan),
        female_B,
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
