"""`ageray.load().ages(...)`: every form of a photo, given faces, errors, and the ages of
`ageray score`."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

import ageray
from ageray import schema
from ageray.api.answers import CollectionAges, PhotoAges
from ageray.errors import UserError
from ageray.experiment import Scale
from ageray.score import run
from ageray.synthetic.demo import draw_demo

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn photos; one as PNG, where a decoder has no scales of its own."""
    folder = Path(draw_demo(str(tmp_path_factory.mktemp("photos"))))
    first = sorted(folder.glob("*.jpg"))[0]
    Image.open(first).save(folder / "lossless.png")
    return folder


@pytest.fixture(scope="module")
def model() -> ageray.Model:
    return ageray.load(threads=1)


def photos_of(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def test_importing_it_imports_nothing_slow() -> None:
    program = "import sys, ageray; ageray.UserError; print(*{'torch', 'ray', 'numpy'} & set(sys.modules))"
    words = [sys.executable, "-c", program]
    ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout.strip() == ""


def test_every_name_that_it_offers_is_there() -> None:
    for name in ageray.__all__:
        assert getattr(ageray, name) is not None
        assert name in dir(ageray)
    with pytest.raises(AttributeError, match="nothing"):
        _ = ageray.nothing


def test_a_photo_has_faces_with_ages(model: ageray.Model, folder: Path) -> None:
    ages = model.ages(folder / "lossless.png")
    assert isinstance(ages, PhotoAges)
    assert ages.error is None
    face = ages[0]
    assert face.image == str(folder / "lossless.png")
    assert face.box is not None
    assert face.box.shape == (4,)
    assert face.landmarks is not None
    assert face.landmarks.shape == (5, 2)
    assert face.posterior is not None
    assert face.posterior.shape == model.years.shape
    assert face.posterior.sum() == pytest.approx(1, abs=1e-3)
    if face.error is None:
        assert face.age is not None
        assert face.interval is not None
        assert face.interval[0] <= face.age <= face.interval[1]
        assert f"{face.age:.1f} years" in repr(face)
    else:
        assert (face.age, face.interval) == (None, None)
        assert face.error in repr(face)


def test_every_form_of_a_photo_gives_the_same_ages(model: ageray.Model, folder: Path) -> None:
    file = folder / "lossless.png"
    pixels = np.asarray(Image.open(file).convert("RGB"))
    forms = [
        file,
        str(file),
        file.read_bytes(),
        Image.open(file),
        pixels,
        np.dstack([pixels, pixels[..., :1]]),
    ]
    answers = model.ages(forms)
    assert isinstance(answers, CollectionAges)
    for answer in answers:
        assert answer[0].box == pytest.approx(answers[0][0].box, abs=0)
        assert answer[0].age == pytest.approx(answers[0][0].age, abs=1e-4)
    assert [answer.image for answer in answers][2] == "photo 2"


def test_a_picture_of_pillow_is_turned_upright(model: ageray.Model, folder: Path) -> None:
    upright = Image.open(folder / "lossless.png").convert("RGB")
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6  # to be turned clockwise
    content = io.BytesIO()
    turned.save(content, "PNG", exif=turned.getexif())
    ages = model.ages([upright, Image.open(content)])
    assert ages[0].to_arrow().column("age") == ages[1].to_arrow().column("age")


def test_a_list_has_the_ages_of_ageray_score_to_the_bit(
    model: ageray.Model, folder: Path, tmp_path: Path, ray_local: None
) -> None:
    scale = Scale(decode_batch=64, score_batch=64, threads=1, progress=False)
    run.score(str(folder), str(tmp_path / "out"), "zoo:default", scale, posterior=True)
    scores = ageray.score(str(folder), str(tmp_path / "out"), posterior=True)
    expected = scores.to_arrow().sort_by("key")
    ages = model.ages(photos_of(folder)).to_arrow()
    rows = ages.filter(pa.compute.is_valid(ages.column("age"))).sort_by("key")
    assert scores.summary["images"] == len(photos_of(folder))
    assert rows.num_rows == expected.num_rows > 0
    for name in ("key", "face", "box", "landmarks", "age", "age_low", "age_high", "over_18", "posterior"):
        assert rows.column(name).to_pylist() == expected.column(name).to_pylist(), name
    assert scores.errors().num_rows == ages.num_rows - rows.num_rows
    assert list(scores.to_pandas().columns) == expected.column_names


def test_given_faces_are_not_looked_for(model: ageray.Model, folder: Path) -> None:
    file = folder / "lossless.png"
    found = model.ages(file)
    again = model.ages(file, faces=found)
    assert again[0].detection is None
    assert again[0].age == found[0].age
    landmarks = found[0].landmarks
    assert landmarks is not None
    forms = [landmarks.tolist(), {"landmarks": landmarks, "box": found[0].box}, landmarks.ravel()]
    assert [face.age for face in model.ages(file, faces=forms)] == [found[0].age] * 3
    listed = model.ages([file, file], faces=[None, [landmarks + 4]])
    assert listed[0][0].age == found[0].age
    assert listed[1][0].age != found[0].age


def test_a_list_goes_on_past_what_cannot_be_read(model: ageray.Model, folder: Path) -> None:
    blank = np.zeros((200, 200, 3), np.uint8)
    answers = model.ages([folder / "missing.jpg", b"no photo", blank, folder / "lossless.png"])
    errors = [answer.error or "" for answer in answers]
    assert errors[0].startswith("cannot read: ")
    assert errors[1].startswith("cannot decode: ")
    assert errors[2:] == [schema.NO_FACE, ""]
    assert [len(answer) for answer in answers] == [0, 0, 0, len(answers[3])]
    assert len(list(answers.faces())) == len(answers[3])
    frame = answers.to_pandas()
    assert frame["error"].notna().sum() >= 3
    assert frame["image"].tolist()[:3] == [str(folder / "missing.jpg"), "photo 1", "photo 2"]


@pytest.mark.parametrize(
    ("photo", "message"),
    [
        ("missing.jpg", "missing.jpg: cannot read: "),
        (np.zeros((8, 8, 3)), r"an array of float64 \(8, 8, 3\); give uint8 pixels"),
        (np.zeros((8, 8, 5), np.uint8), r"an array of uint8 \(8, 8, 5\)"),
        (7, "photos: is of type int; give a path"),
        ([7], "photo 0: is of type int; give a path"),
    ],
)
def test_a_mistake_is_answered_in_one_line(model: ageray.Model, photo: object, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        model.ages(photo)  # type: ignore[call-overload]
    assert "\n" not in str(caught.value)


def test_mistakes_in_given_faces(model: ageray.Model, folder: Path) -> None:
    file = folder / "lossless.png"
    with pytest.raises(UserError, match="face 0: landmarks: give five points"):
        model.ages(file, faces=[[1, 2, 3]])
    with pytest.raises(UserError, match="faces: are 1 for 2 photos"):
        model.ages([file, file], faces=[None])
    boxed = model.ages(file, faces=[{"box": [0, 0, 9, 9]}])  # this model aligns by points
    assert (boxed.error or "").startswith("cannot crop: ")


def test_settings_of_the_detector(folder: Path) -> None:
    strict = ageray.load(threads=1, settings=["data.detect.threshold=0.999"])
    assert strict.ages(folder / "lossless.png").error == schema.NO_FACE
    with pytest.raises(UserError, match=r"only scale\.\*"):
        ageray.load(settings=["train.seed=1"])
    with pytest.raises(UserError, match="no such model in the zoo"):
        ageray.load("zoo:nothing")


def test_long_lists_are_computed_in_batches(model: ageray.Model, folder: Path) -> None:
    file = folder / "lossless.png"
    answers = model.ages([file] * 130)
    assert len(answers) == 130
    assert len({answer[0].age for answer in answers}) <= 2  # another batch size may round otherwise
