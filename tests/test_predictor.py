"""Bundle to ages: against the network by hand, for any batch, with mirror image and calibration."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from ageray import bundle
from ageray.bundle import Bundle
from ageray.calibration import Calibration
from ageray.experiment import Align, Experiment
from ageray.faces import geometry
from ageray.faces.align import align_faces, standardize
from ageray.faces.canvases import Canvases, canvas_side, face_canvases
from ageray.models.build import Classifier, build
from ageray.models.gallery import Gallery
from ageray.predictor import Predictor, _fast_bf16
from ageray.synthetic import faces as synthetic_faces
from ageray.train.state import new_state
from ageray.train.validation import build_gallery, validate

ALIGN = Align(size=48, standardize=True)
LINE = Calibration(1.1, -6.0, 1.5, 200)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """A predictor sets the process's threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@cache
def canvases(count: int = 7) -> Canvases:
    drawn = list(synthetic_faces.faces(count, seed=3, size=110))
    pieces = [face_canvases(face.jpeg(), face.points[None], face.box[None], ALIGN) for face in drawn]
    parts = [(piece.pixels, piece.points, piece.box) for piece in pieces]
    return Canvases(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def talkative(experiment: Experiment) -> Classifier:
    """An untrained network whose answers differ from face to face.

    Its classifier is scaled to its features, around a prior at 40 years.
    """
    network, faces = build(experiment.model, seed=1).eval(), canvases()
    canvas = torch.from_numpy(faces.pixels.transpose(0, 3, 1, 2).copy())
    aligned, _ = align_faces(
        canvas, torch.from_numpy(faces.points), torch.from_numpy(faces.box), experiment.align
    )
    with torch.no_grad():
        embedding = network.backbone(standardize(aligned, experiment.align))
        network.head.weight.div_((embedding @ network.head.weight.T).std(0).mean() / 1.5)
        prior = -((torch.arange(-15.0, 121) - 40) / 25).square()
        network.head.bias.copy_(prior - network.head.weight @ embedding.mean(0))
    return network


def make(
    folder: Path,
    flip: bool = True,
    method: str = "expectation",
    calibration: Calibration | None = LINE,
    name: str = "baseline",
) -> str:
    """A bundle of such a network."""
    model = {"name": name, "ages": [-15, 120], "decode": {"flip": flip, "method": method}}
    if name == "cluster_cnn":
        model["head"] = "plain"
    experiment = Experiment.model_validate(
        {"model": model, "align": ALIGN, "train": {"precision": "float32"}}
    )
    card = {} if calibration is None else {"calibration": calibration.to_card()}
    bundle.save(str(folder), talkative(experiment), experiment, card)
    return str(folder)


def by_hand(loaded: Bundle, faces: Canvases) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Posteriors (N, K): align, two forward passes, the mean of two softmaxes."""
    network, config = loaded.network(), loaded.experiment
    canvas = torch.from_numpy(faces.pixels.transpose(0, 3, 1, 2).copy())
    aligned, points = align_faces(
        canvas, torch.from_numpy(faces.points), torch.from_numpy(faces.box), config.align
    )
    aligned = standardize(aligned, config.align)
    views = [(aligned, points)]
    if config.model.decode.flip:
        views.append((aligned.flip(3), geometry.mirror_points(points, ALIGN.size)))
    with torch.inference_mode():
        shares = [
            torch.softmax(network({"face": face, "points": point})["logits"], 1) for face, point in views
        ]
    return torch.stack(shares).double().mean(0).numpy()


def naive_quantile(shares: np.ndarray[tuple[int], np.dtype[np.float64]], level: float) -> float:
    return float(np.interp(level, np.concatenate([[0], shares.cumsum()]), np.arange(-15.5, 121)))


# --- by hand --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("flip", "method"), [(True, "expectation"), (False, "median"), (True, "argmax")])
def test_ages_equal_the_network_decoded_by_hand(flip: bool, method: str, tmp_path: Path) -> None:
    loaded, faces = bundle.load(make(tmp_path / "b", flip, method)), canvases()
    ages = Predictor(loaded, "cpu", 1).predict(faces.pixels, faces.points, faces.box)
    posterior = by_hand(loaded, faces)
    assert ages.posterior == pytest.approx(posterior, abs=1e-5)
    years = np.arange(-15, 121)
    age = {
        "expectation": posterior @ years,
        "median": np.array([naive_quantile(row, 0.5) for row in posterior]),
        "argmax": years[posterior.argmax(1)],
    }[method]
    low, high = (np.array([naive_quantile(row, level) for row in posterior]) for level in (0.05, 0.95))
    assert ages.decoded == pytest.approx(np.stack([age, low, high], 1), abs=2e-3)
    line = [np.maximum(1.1 * ends - 6, 0) for ends in (age, low, high)]
    assert ages.age == pytest.approx(line[0], abs=3e-3)
    assert ages.low == pytest.approx(np.minimum(np.maximum(line[1] - 1.5, 0), line[0]), abs=5e-3)
    assert ages.high == pytest.approx(np.maximum(line[2] + 1.5, line[0]), abs=5e-3)
    assert float(ages.age.std()) > 0.5  # else nothing here would tell one face from another
    assert (ages.low < ages.age).any()


def test_types_and_shapes_for_faces_and_for_none(tmp_path: Path) -> None:
    predictor, faces = Predictor(bundle.load(make(tmp_path / "b")), "cpu", 1), canvases()
    for count in (0, 1, 3):
        ages = predictor.predict(faces.pixels[:count], faces.points[:count], faces.box[:count])
        shapes = {
            "age": (count,),
            "low": (count,),
            "high": (count,),
            "posterior": (count, 136),
            "decoded": (count, 3),
        }
        for name, shape in shapes.items():
            column = getattr(ages, name)
            assert (column.shape, column.dtype) == (shape, np.float32), name
    side = canvas_side(ALIGN)
    empty = (np.zeros((0, side, side, 3), np.uint8), np.zeros((0, 5, 2)), np.zeros((0, 4)))
    assert len(predictor.predict(*empty).age) == 0  # type: ignore[arg-type]


def test_memory_that_may_not_be_written_is_taken(tmp_path: Path) -> None:
    predictor, faces = Predictor(bundle.load(make(tmp_path / "b")), "cpu", 1), canvases()
    read_only = [part.copy() for part in (faces.pixels, faces.points, faces.box)]
    for part in read_only:
        part.setflags(write=False)
    expected = predictor.predict(faces.pixels, faces.points, faces.box).age
    assert np.array_equal(predictor.predict(*read_only).age, expected)  # type: ignore[arg-type]


# --- the batch does not matter --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["baseline", "cluster_cnn"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_other_faces_in_the_batch_do_not_change_an_age(name: str, precision: str, tmp_path: Path) -> None:
    if precision == "bf16" and not _fast_bf16(torch.device("cpu")):
        pytest.skip("bf16 is emulated here")
    predictor = Predictor(bundle.load(make(tmp_path / "b", name=name)), "cpu", 1, precision)
    faces = canvases()
    together = predictor.predict(faces.pixels, faces.points, faces.box)
    alone = [predictor.predict(faces.pixels[[k]], faces.points[[k]], faces.box[[k]]) for k in range(7)]
    backwards = predictor.predict(faces.pixels[::-1], faces.points[::-1], faces.box[::-1])
    for column in ("age", "low", "high"):
        expected = getattr(together, column)
        assert np.concatenate([getattr(ages, column) for ages in alone]) == pytest.approx(expected, abs=1e-3)
        assert getattr(backwards, column)[::-1] == pytest.approx(expected, abs=1e-3)


# --- mirror image ---------------------------------------------------------------------------------


def mirrored(faces: Canvases) -> Canvases:
    last = canvas_side(ALIGN) - 1
    points = faces.points[:, [1, 0, 2, 4, 3]].copy()
    points[..., 0] = last - points[..., 0]
    box = faces.box[:, [2, 1, 0, 3]].copy()
    box[:, [0, 2]] = last - box[:, [0, 2]]
    return Canvases(faces.pixels[:, :, ::-1].copy(), points, box)


def test_flip_averaging_gives_a_face_and_its_mirror_image_one_age(tmp_path: Path) -> None:
    faces, ages = canvases(), {}
    for flip in (True, False):
        predictor = Predictor(bundle.load(make(tmp_path / str(flip), flip, calibration=None)), "cpu", 1)
        ages[flip] = [
            predictor.predict(each.pixels, each.points, each.box) for each in (faces, mirrored(faces))
        ]
    averaged, single = ages[True], ages[False]
    assert averaged[0].age == pytest.approx(averaged[1].age, abs=0.02)
    assert float(np.abs(single[0].age - single[1].age).max()) > 0.1
    assert averaged[0].posterior == pytest.approx((single[0].posterior + single[1].posterior) / 2, abs=1e-3)


# --- calibration and precision --------------------------------------------------------------------


def test_a_bundle_without_calibration_gives_what_it_decodes(tmp_path: Path) -> None:
    faces = canvases()
    ages = Predictor(bundle.load(make(tmp_path / "b", calibration=None)), "cpu", 1).predict(
        faces.pixels, faces.points, faces.box
    )
    expected = np.maximum(ages.decoded, 0)
    assert np.array_equal(ages.age, expected[:, 0])
    assert np.array_equal(ages.low, np.minimum(expected[:, 1], expected[:, 0]))
    assert np.array_equal(ages.high, np.maximum(expected[:, 2], expected[:, 0]))


def test_validation_in_training_equals_the_predictor(tmp_path: Path) -> None:
    model = {"name": "cluster_cnn", "head": "plain", "ages": [-15, 120], "dropout": 0.4}
    experiment = Experiment.model_validate(
        {"model": model, "align": ALIGN, "train": {"precision": "float32"}, "loss": {"neighborhood": {}}}
    )
    bundle.save(str(tmp_path / "b"), talkative(experiment), experiment, {})
    loaded, faces = bundle.load(str(tmp_path / "b")), canvases()
    state = new_state(experiment, torch.device("cpu"))
    state.network.load_state_dict(loaded.network().state_dict())
    columns = {
        "canvas": faces.pixels,
        "points": faces.points,
        "box": faces.box,
        "age": np.zeros(7, np.float32),
    }
    validated = validate(state, [columns]).predicted
    ages = Predictor(loaded, "cpu", 1).predict(faces.pixels, faces.points, faces.box)
    assert ages.decoded[:, 0] == pytest.approx(validated, abs=1e-3)
    assert float(validated.std()) > 0.5


def test_bf16_differs_from_float32_by_little(tmp_path: Path) -> None:
    loaded, faces = bundle.load(make(tmp_path / "b")), canvases()
    exact, rough = (
        Predictor(loaded, "cpu", 1, precision).predict(faces.pixels, faces.points, faces.box).age
        for precision in ("float32", "bf16")
    )
    assert not np.array_equal(exact, rough)
    assert rough == pytest.approx(exact, abs=0.5)


def test_a_model_trained_in_float32_answers_in_float32(tmp_path: Path) -> None:
    loaded, faces = bundle.load(make(tmp_path / "b")), canvases()
    auto, exact = (
        Predictor(loaded, "cpu", 1, name).predict(faces.pixels, faces.points, faces.box).age
        for name in ("auto", "float32")
    )
    assert np.array_equal(auto, exact)


def test_threads_are_those_asked_for(tmp_path: Path) -> None:
    Predictor(bundle.load(make(tmp_path / "b")), "cpu", threads=1)
    assert torch.get_num_threads() == 1


# --- with a gallery -------------------------------------------------------------------------------


def nearest(
    folder: Path, exclude: bool = True, gender: bool = True, flip: bool = False
) -> tuple[Predictor, Gallery]:
    """A predictor whose gallery consists of the seven faces themselves, at ages 10, 20 to 70.

    Their subjects are 1, 1, 2, 2, 3, 3 and an unknown one.
    """
    decoding = {"method": "gallery", "flip": flip, "gallery": {"neighbours": 2, "exclude_subject": exclude}}
    model = {"name": "baseline", "ages": [-15, 120], "decode": decoding}
    experiment = Experiment.model_validate(
        {"model": model, "align": ALIGN, "train": {"precision": "float32"}}
    )
    loss = Experiment.model_validate({"loss": {"cross_entropy": {}}}).loss
    state = new_state(experiment.model_copy(update={"loss": loss}), torch.device("cpu"))
    faces = canvases()
    columns = {
        "canvas": faces.pixels,
        "points": faces.points,
        "box": faces.box,
        "age": np.arange(10, 80, 10, dtype=np.float32),
    }
    columns["subject"] = SUBJECTS
    columns["gender"] = np.array([1, 1, 0, 0, 1, 0, 1]) if gender else np.full(7, -1)
    gallery = build_gallery(state, [columns])
    assert gallery is not None
    bundle.save(str(folder), state.network, experiment, {}, gallery)
    return Predictor(bundle.load(str(folder)), "cpu", 1), gallery


SUBJECTS = np.array([1, 1, 2, 2, 3, 3, 0])


def test_ages_are_the_mean_of_the_nearest_faces(tmp_path: Path) -> None:
    predictor, gallery = nearest(tmp_path / "b")
    faces = canvases()
    ages = predictor.predict(faces.pixels, faces.points, faces.box, SUBJECTS)
    distance = torch.cdist(gallery.embedding.double(), gallery.embedding.double(), p=1)
    for k, subject in enumerate(SUBJECTS.tolist()):
        order = distance[k].argsort().tolist()
        others = [row for row in order if subject == 0 or SUBJECTS[row] != subject][:2]
        assert ages.age[k] == pytest.approx(np.mean([10 + 10 * row for row in others]), abs=0.01)
        assert ages.female is not None
        assert ages.female[k] == gallery.gender[others].float().mean()
    assert ages.neighbours is not None
    assert ages.neighbours.tolist() == [2] * 7
    assert ages.own is not None
    assert (ages.own[:6] >= 1).all()  # at least itself
    assert ages.own[6] == 0  # unknown is nobody's own
    assert ages.posterior.sum(1) == pytest.approx(1, abs=1e-5)


def test_own_faces_are_used_for_an_unknown_subject_or_if_the_settings_allow_it(tmp_path: Path) -> None:
    faces = canvases()
    strict, _ = nearest(tmp_path / "strict")
    lenient, _ = nearest(tmp_path / "lenient", exclude=False)
    unknown = strict.predict(faces.pixels, faces.points, faces.box)
    used = lenient.predict(faces.pixels, faces.points, faces.box, SUBJECTS)
    assert used.age == pytest.approx(unknown.age, abs=1e-3)
    assert unknown.own is not None
    assert unknown.own.tolist() == [0] * 7
    assert used.own is not None
    assert (used.own[:6] >= 1).all()
    excluded = strict.predict(faces.pixels, faces.points, faces.box, SUBJECTS)
    assert float(np.abs(excluded.age - unknown.age)[:6].min()) > 1


def test_gender_is_not_guessed_where_the_gallery_knows_none(tmp_path: Path) -> None:
    predictor, _ = nearest(tmp_path / "b", gender=False)
    faces = canvases()
    assert predictor.predict(faces.pixels, faces.points, faces.box, SUBJECTS).female is None


def test_a_gallery_with_mirror_images_and_for_no_face(tmp_path: Path) -> None:
    predictor, _ = nearest(tmp_path / "b", flip=True)
    faces = canvases()
    ages = [predictor.predict(each.pixels, each.points, each.box).age for each in (faces, mirrored(faces))]
    assert ages[0] == pytest.approx(ages[1], abs=0.02)
    assert len(predictor.predict(faces.pixels[:0], faces.points[:0], faces.box[:0], SUBJECTS[:0]).age) == 0


def test_a_classifier_says_nothing_of_neighbours(tmp_path: Path) -> None:
    predictor, faces = Predictor(bundle.load(make(tmp_path / "b")), "cpu", 1), canvases()
    ages = predictor.predict(faces.pixels, faces.points, faces.box, SUBJECTS)
    assert (ages.female, ages.neighbours, ages.own) == (None, None, None)
    assert np.array_equal(ages.age, predictor.predict(faces.pixels, faces.points, faces.box).age)
