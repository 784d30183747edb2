"""Ensembles against the mean by hand, their bundle and predictor; views of one face by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from ageray import bundle
from ageray.errors import UserError
from ageray.experiment import Align, Experiment
from ageray.experiment.model import Ensemble as Settings
from ageray.faces.align import align_faces, standardize
from ageray.faces.canvases import Canvases, face_canvases
from ageray.models.build import build
from ageray.models.ensemble import member_input, resize_matrix
from ageray.models.inference import posterior, views
from ageray.predictor import Predictor
from ageray.synthetic import faces as synthetic_faces
from ageray.train.plan import check_model

SMALL = {"name": "baseline", "backbone": "mobilenet_v1", "hidden": 8}
MEMBERS: list[dict[str, Any]] = [
    {"model": SMALL | {"ages": [0, 60]}, "size": 32, "weight": 1},
    {"model": SMALL | {"ages": [-5, 70], "classifier": "or_cnn"}, "standardize": True, "weight": 3},
]


def experiment_of(**model: Any) -> Experiment:
    return Experiment.model_validate(
        {"model": model, "align": {"size": 48}, "train": {"precision": "float32"}}
    )


def ensemble(**settings: Any) -> Experiment:
    return experiment_of(name="ensemble", ages=[-5, 80], members=MEMBERS, **settings)


def faces_of(align: Align, count: int = 5) -> Canvases:
    parts = []
    for face in synthetic_faces.faces(count, seed=3, size=110):
        parts.append(face_canvases(face.jpeg(), face.points[None], face.box[None], align))
    return Canvases(
        np.concatenate([part.pixels for part in parts]),
        np.concatenate([part.points for part in parts]),
        np.concatenate([part.box for part in parts]),
    )


def batch_of(faces: Canvases) -> dict[str, Tensor]:
    canvas = torch.from_numpy(faces.pixels.transpose(0, 3, 1, 2).copy())
    return {"canvas": canvas, "points": torch.from_numpy(faces.points), "box": torch.from_numpy(faces.box)}


def test_the_mean_of_the_members_posteriors() -> None:
    network = build(ensemble().model, seed=4, pretrained=False).eval()
    face_B3SS = torch.rand(3, 3, 48, 48) * 255
    with torch.inference_mode():
        outputs = network({"face": face_B3SS})
        smaller = F.interpolate(face_B3SS, (32, 32), mode="bilinear", antialias=True)
        first = network.members[0]({"face": smaller})["logits"].softmax(-1)
        plain = standardize(face_B3SS, Align(size=48, standardize=True))
        older = network.members[1]({"face": plain})["ordinal_logits"].sigmoid().cummin(-1).values
        second = torch.cat([torch.ones(3, 1), older], 1) - torch.cat([older, torch.zeros(3, 1)], 1)
    expected = 0.25 * F.pad(first, (5, 20)) + 0.75 * F.pad(second, (0, 10))
    torch.testing.assert_close(outputs["logits"].softmax(-1), expected, atol=1e-5, rtol=1e-3)
    assert outputs["embedding"].shape == (3, 8)


@pytest.mark.parametrize(("side", "size"), [(48, 32), (128, 112), (32, 48)])
def test_resizing_is_torchs_smoothed_interpolation(side: int, size: int) -> None:
    picture = torch.rand(2, 3, side, side)
    matrix = resize_matrix(side, size)
    expected = F.interpolate(picture, (size, size), mode="bilinear", antialias=True)
    torch.testing.assert_close(matrix @ picture @ matrix.T, expected, atol=1e-5, rtol=1e-4)


def test_pixels_are_resized_in_full_precision() -> None:
    """Under bf16 autocast a product of pixels would be off by whole gray values."""
    settings = Settings.model_validate({"name": "ensemble", "ages": [-5, 80], "members": MEMBERS})
    face_B3SS = torch.rand(2, 3, 48, 48) * 255
    expected = member_input({"face": face_B3SS}, settings.members[0])["face"]
    with torch.autocast("cpu", torch.bfloat16):
        resized = member_input({"face": face_B3SS}, settings.members[0])["face"]
    torch.testing.assert_close(resized, expected)


def test_points_move_with_the_pixels() -> None:
    """A bright pixel's place, in the centre convention of points, halves with the picture."""
    settings = Settings.model_validate({"name": "ensemble", "ages": [-5, 80], "members": MEMBERS})
    face_B3SS = torch.zeros(1, 3, 64, 64)
    face_B3SS[:, :, 20:22, 40:42] = 255  # about the point (40.5, 20.5)
    points = torch.tensor([[40.5, 20.5]]).expand(1, 5, 2)
    inputs = member_input({"face": face_B3SS, "points": points}, settings.members[0])
    place = inputs["face"][0, 0].flatten().argmax()
    assert inputs["face"].shape[-1] == 32
    assert inputs["points"][0, 0].tolist() == [float(place % 32), float(place // 32)]


def test_an_ensembles_bundle_predicts_like_any_other(tmp_path: Path) -> None:
    settings = ensemble(decode={"method": "median"})
    network = build(settings.model, seed=4, pretrained=False).eval()
    bundle.save(str(tmp_path / "b"), network, settings, {})
    loaded, faces = bundle.load(str(tmp_path / "b")), faces_of(settings.align)
    ages = Predictor(loaded, "cpu", 1).predict(faces.pixels, faces.points, faces.box)
    with torch.inference_mode():
        expected = posterior(network, batch_of(faces), settings, autocast=False)
    np.testing.assert_allclose(ages.posterior, expected.numpy(), atol=2e-3)
    assert ages.posterior.shape == (5, 86)
    assert (ages.low <= ages.age).all()
    assert {file.name for file in (tmp_path / "b").iterdir()} == {
        "model.safetensors",
        "config.yaml",
        "card.json",
    }


def test_an_ensemble_is_not_trained() -> None:
    with pytest.raises(UserError, match="an ensemble is put together from trained models"):
        build(ensemble().model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ages": [0, 80]}, r"members\[1\].model.ages \[-5, 70\] lie beyond ages \[0, 80\]"),
        ({"weights": "imagenet"}, "an ensemble has no weights to start from"),
        ({"members": [{"model": {"name": "siamese", "ages": [0, 80]}}]}, "takes ages from a gallery"),
        ({"members": []}, "at least 1 item"),
    ],
)
def test_what_is_no_ensemble(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Settings.model_validate({"name": "ensemble", "ages": [-5, 80], "members": MEMBERS} | change)


# --- views ----------------------------------------------------------------------------------------


def test_views_are_averaged_each_with_its_mirror_image() -> None:
    """Three views by hand: one zoomed in the photo, one larger with the same framing."""
    looks = [{}, {"zoom": 1.2}, {"size": 64}]
    settings = experiment_of(**SMALL, decode={"views": looks})
    settings = settings.model_copy(update={"align": Align(size=50)})
    batch = batch_of(faces_of(settings.align))
    network = build(settings.model, seed=1).eval()
    with torch.no_grad():
        network.head.weight.mul_(30)
    inputs = views(batch, settings, mirrored=True)
    assert [tuple(view["face"].shape[-2:]) for view in inputs] == [(50, 50)] * 4 + [(64, 64)] * 2
    # zoomed by 1.2, the crop is the middle 50 pixels of the crop of 60
    larger, _ = align_faces(batch["canvas"], batch["points"], batch["box"], Align(size=60))
    torch.testing.assert_close(inputs[2]["face"], larger[:, :, 5:55, 5:55], atol=0.5, rtol=0)
    whole, _ = align_faces(batch["canvas"], batch["points"], batch["box"], Align(size=64))
    torch.testing.assert_close(inputs[4]["face"], whole)
    torch.testing.assert_close(inputs[3]["face"], inputs[2]["face"].flip(-1))
    centre = (50 - 1) / 2
    torch.testing.assert_close(
        inputs[2]["points"], (inputs[0]["points"] - centre) * 1.2 + centre, atol=1e-2, rtol=1e-3
    )
    with torch.inference_mode():
        each = torch.stack([network(view)["logits"].softmax(-1) for view in inputs])
        mean = posterior(network, batch, settings, autocast=False)
    torch.testing.assert_close(mean, each.mean(0), atol=1e-6, rtol=1e-4)
    assert float(each.std(0).max()) > 1e-4  # the views differ


def test_a_view_too_small_for_the_network_is_refused() -> None:
    values = {"model": SMALL | {"decode": {"views": [{}, {"size": 16}]}}, "loss": {"cross_entropy": {}}}
    settings = Experiment.model_validate(values)
    with pytest.raises(
        UserError, match=r"^model.decode.views.1.size=16: model 'baseline' needs faces of at least 32"
    ):
        check_model(settings)
