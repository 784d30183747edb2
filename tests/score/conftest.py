"""A small model and nine photos, for the tests that score them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from ageray import bundle
from ageray.experiment import Experiment
from ageray.experiment.model import ResidualCnn
from ageray.models.build import build
from ageray.synthetic import faces as synthetic_faces
from tests.score.small import ALIGN


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A bundle of an untrained network that answers differently for different faces."""
    folder = str(tmp_path_factory.mktemp("model") / "tiny")
    experiment = Experiment(model=ResidualCnn(name="residual_cnn", width=0.25), align=ALIGN)
    network = build(experiment.model, seed=0)
    with torch.no_grad():
        network.head.weight.mul_(30)
    bundle.save(
        folder, network, experiment, {"name": "tiny", "not_good_for": ["anything: its weights are random"]}
    )
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine photos: five with faces, of which two share a file name and one is stored on its side;
    four without.
    """
    folder = tmp_path_factory.mktemp("photos")
    synthetic_faces.write_photos(folder, 3)
    (folder / "more").mkdir()
    synthetic_faces.write_photos(folder / "more", 1, seed=7)
    upright = Image.open(folder / "photo-00000.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(folder / "more" / "turned.jpeg", quality=98, exif=exif)
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("no photo")
    Image.new("RGB", (320, 240), (70, 120, 70)).save(folder / "nobody.png")
    (folder / "more" / "cut.JPG").write_bytes((folder / "photo-00001.jpg").read_bytes()[:20_000])
    (folder / "notes.txt").write_text("not taken for a photo")
    return folder
