"""Training on faces in memory, without Ray: the best epoch, calibration, precomputed features."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from ageray import metrics
from ageray.experiment import Align, Augment, Experiment
from ageray.faces.canvases import face_canvases, to_tensors
from ageray.models.build import build
from ageray.models.inference import posterior
from ageray.synthetic import faces as synthetic_faces
from ageray.train import loop
from ageray.train.in_memory import frozen
from ageray.train.in_memory import train as in_memory_train
from ageray.train.in_memory.train import Fold, Result
from ageray.train.loop import Columns

CPU = torch.device("cpu")
SMALL = Align(size=32)
NOTHING = dict.fromkeys(Augment.model_fields, 0)
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)


@cache
def faces(count: int = 64, subjects: int = 16, align: Align = SMALL) -> Columns:
    """Drawn faces of some people, as columns in memory; like Ray's, they cannot be written to."""
    drawn = list(synthetic_faces.faces(count, 0, subjects, size=72))
    pieces = [face_canvases(face.jpeg(), face.points[None], face.box[None], align) for face in drawn]
    numbers = np.array([int(face.subject.removeprefix("drawn-")) for face in drawn])
    columns = {
        "canvas": np.concatenate([piece.pixels for piece in pieces]),
        "points": np.concatenate([piece.points for piece in pieces]),
        "box": np.concatenate([piece.box for piece in pieces]),
        "age": np.array([face.age for face in drawn], np.float32),
        "gender": np.arange(count) % 16 % 2,
        "subject": 1 + numbers,
    }
    for values in columns.values():
        values.flags.writeable = False
    return columns


def fold(columns: Columns, val: int = 4, test: int = 2, name: str = "one") -> Fold:
    """The last people tested, those before them for validation."""
    people = sorted(set(columns["subject"].tolist()))
    parts = {
        "test": people[len(people) - test :],
        "val": people[len(people) - test - val : len(people) - test],
    }
    rows = {part: np.flatnonzero(np.isin(columns["subject"], chosen)) for part, chosen in parts.items()}
    train = np.setdiff1d(np.arange(len(columns["age"])), np.concatenate(list(rows.values())))
    return Fold(name, train, rows["val"], rows["test"])


def experiment(**parts: Any) -> Experiment:
    """The baseline at 32 pixels, three epochs; parts given win."""
    stage = {"epochs": 3, "optimizer": {"name": "sgd", "lr": 0.01}, **parts.pop("stage", {})}
    train = {"precision": "float32", "batch_size": 8, "stages": [stage], **parts.pop("train", {})}
    loss = parts.pop("loss", {"neighborhood": {"normalize": True}})
    model = {"name": "baseline", **parts.pop("model", {})}
    return Experiment.model_validate({"align": SMALL, "train": train, "loss": loss, "model": model, **parts})


def run(settings: Experiment, columns: Columns | None = None, chosen: Fold | None = None) -> Result:
    columns = faces() if columns is None else columns
    return in_memory_train.run(settings, columns, chosen or fold(columns), CPU, LEVELS)


# --- a fold -------------------------------------------------------------------------------------


def test_a_fold_gives_the_same_whatever_ran_before_it() -> None:
    parts: dict[str, Any] = {"model": {"dropout": 0.3}, "stage": {"epochs": 1}}
    settings = experiment(**parts, train={"ema": 0.5})
    first = run(settings)
    torch.manual_seed(99)
    torch.rand(7)
    np.random.default_rng().random(3)
    other = fold(faces(), val=3, test=5)
    assert len(run(settings, chosen=other).predicted) == len(other.test)
    again = run(settings)
    for name in ("predicted", "low", "high", "quantiles"):
        assert np.array_equal(getattr(first, name), getattr(again, name)), name
    assert [record["loss"] for record in first.log] == [record["loss"] for record in again.log]
    assert not np.array_equal(
        first.predicted, run(experiment(**parts, train={"ema": 0.5, "seed": 1})).predicted
    )


def test_each_face_learns_what_the_teacher_says_of_it_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = list[Columns]()
    original = loop.train_one_epoch

    def train_one_epoch(state: Any, columns: Any) -> Any:
        shown = list(columns)
        batches.extend(shown)
        return original(state, shown)

    monkeypatch.setattr(in_memory_train, "train_one_epoch", train_one_epoch)
    settings = experiment(
        stage={"epochs": 2},
        train={"teacher": "start", "teacher_faces": "aligned"},
        loss={"neighborhood": {"normalize": True}, "distillation": {}},
    )
    result = run(settings)
    assert result.log[-1]["loss.distillation"] > 0
    assert len(batches) == 2 * (len(fold(faces()).train) // 8)
    network = build(settings.model, seed=settings.train.seed).eval().requires_grad_(False)
    for batch in batches:
        pixels = to_tensors({name: batch[name] for name in ("canvas", "points", "box")}, CPU)
        expected = posterior(network, pixels, settings, autocast=False)
        np.testing.assert_allclose(batch["teacher"], expected.numpy(), atol=1e-3)


def test_it_learns_from_its_training_faces_alone() -> None:
    settings, columns = experiment(stage={"epochs": 2, "optimizer": {"lr": 1e-3}}), faces()
    chosen = fold(columns)
    result = run(settings)
    assert result.log[-1]["loss"] < result.log[0]["loss"]
    spoilt = {**columns, "age": columns["age"].copy(), "canvas": columns["canvas"].copy()}
    spoilt["age"][chosen.test] = 7
    unknown = in_memory_train.run(settings, spoilt, chosen, CPU, LEVELS)
    assert np.array_equal(unknown.predicted, result.predicted)
    spoilt["age"][chosen.train] = 7
    assert not np.array_equal(
        in_memory_train.run(settings, spoilt, chosen, CPU, LEVELS).predicted, result.predicted
    )


def test_the_best_epoch_by_validation_is_the_one_that_predicts() -> None:
    """The last stage spoils the weights; the test faces are the validation faces."""
    stages = [
        {"epochs": 2, "optimizer": {"name": "sgd", "lr": 0.05}},
        {"epochs": 1, "optimizer": {"name": "sgd", "lr": 3.0}},
    ]
    settings, columns = experiment(train={"calibrate": False, "stages": stages, "clip": 5}), faces()
    chosen = fold(columns)
    result = run(settings, chosen=Fold("again", chosen.train, chosen.val, chosen.val))
    maes = [record["val_mae"] for record in result.log]
    assert maes[-1] != min(maes)
    assert [record["best"] for record in result.log] == [
        mae == min(maes[: k + 1]) for k, mae in enumerate(maes)
    ]
    assert metrics.mean_absolute_error(columns["age"][chosen.val], result.predicted) == pytest.approx(
        min(maes), abs=1e-3
    )


def test_without_validation_faces_the_last_epoch_counts_uncalibrated() -> None:
    chosen = fold(faces(), val=0)
    result = run(experiment(), chosen=chosen)
    assert [record["best"] for record in result.log] == [True, True, True]
    assert all(np.isnan(record["val_mae"]) for record in result.log)
    assert result.calibration.faces == 0
    assert (result.calibration.scale, result.calibration.shift, result.calibration.margin) == (1, 0, 0)


def test_calibration_comes_from_the_validation_part() -> None:
    columns = faces(96, 16)
    settings, chosen = experiment(model={"ages": [-15, 120]}, stage={"epochs": 1}), fold(columns, val=6)
    result, bare = (
        run(settings, columns, chosen),
        run(settings.model_copy(update=without_calibration(settings)), columns, chosen),
    )
    assert result.calibration.faces == len(chosen.val) >= 30
    assert result.calibration.margin != 0
    line = result.calibration.scale * bare.quantiles + result.calibration.shift
    assert result.quantiles == pytest.approx(line, abs=1e-3)
    expected = result.calibration.apply(bare.predicted, bare.quantiles[:, 0], bare.quantiles[:, -1])
    for name, ages in zip(("predicted", "low", "high"), expected, strict=True):
        assert getattr(result, name) == pytest.approx(ages, abs=1e-3), name
    assert (np.diff(result.quantiles, axis=1) > 0).all()


def without_calibration(settings: Experiment) -> dict[str, Any]:
    return {"train": settings.train.model_copy(update={"calibrate": False})}


def test_stages_follow_one_another() -> None:
    stages = [
        {"name": "head", "epochs": 1, "optimizer": {"body_lr": 0}},
        {"name": "all", "epochs": 2, "optimizer": {"lr": 1e-3}},
    ]
    result = run(experiment(train={"stages": stages}))
    assert [(record["stage"], record["epoch"], record["epochs"]) for record in result.log] == [
        ("head", 1, 3),
        ("all", 2, 3),
        ("all", 3, 3),
    ]
    assert [record["step"] for record in result.log] == [5, 10, 15]  # 40 training faces, 8 a step


def test_a_loss_that_is_not_finite_stops_the_fold() -> None:
    with pytest.raises(FloatingPointError, match=r"step \d+: loss term .* not finite"):
        run(experiment(stage={"optimizer": {"name": "sgd", "lr": 1e30}}))


def test_a_gallery_holds_the_training_faces() -> None:
    """No test person trains, so none of the nearest faces shows the same person."""
    gallery = {"neighbours": 5, "exclude_subject": False, "validation_faces": 20}
    model = {"name": "siamese", "backbone": "resnet18", "decode": {"gallery": gallery}}
    settings = experiment(
        model=model,
        loss={"contrastive": {}, "gender_contrastive": {}},
        stage={"epochs": 1},
        train={"calibrate": False},
    )
    result, columns = run(settings), faces()
    chosen = fold(columns)
    assert result.besides.keys() == {"female", "neighbours", "own"}
    assert result.besides["neighbours"].tolist() == [5] * len(chosen.test)
    assert result.besides["own"].tolist() == [0] * len(chosen.test)
    ages = columns["age"][chosen.train]
    assert ((result.predicted > ages.min()) & (result.predicted < ages.max())).all()
    seen = run(settings, chosen=Fold("seen", chosen.train, chosen.val, chosen.train[:6]))
    assert (seen.besides["own"] >= 1).all()


def test_every_classifier_of_dhaa_says_an_age() -> None:
    columns = faces(24, 8, Align(size=64))
    model = {"name": "dhaa", "width": 0.125, "features": 16, "branches": ["global", "local"]}
    settings = experiment(model=model, align=Align(size=64), stage={"epochs": 1}, train={"calibrate": False})
    chosen = fold(columns, val=0)
    result = run(settings, columns, chosen)
    names = build(settings.model).classifier_names
    assert result.besides["classifiers"].shape == (len(chosen.test), len(names))
    assert result.besides["classifiers"][:, -1] == pytest.approx(result.predicted, abs=0.02)


# --- a frozen backbone -----------------------------------------------------------------------


def precomputed(settings: Experiment, columns: Columns) -> Columns:
    backbone = frozen.detach_backbone(build(settings.model, seed=settings.train.seed))
    features = frozen.features(backbone, columns, settings, CPU)
    assert features.shape == (len(columns["age"]), 2, 512)
    assert features.dtype == np.float32
    return {"features": features, **{name: columns[name] for name in ("age", "gender", "subject")}}


@pytest.mark.parametrize("flip", [0, 1])
@pytest.mark.parametrize(
    ("model", "loss"),
    [
        ({"name": "baseline"}, {"neighborhood": {"normalize": True}}),
        (
            {
                "name": "siamese",
                "backbone": "resnet18",
                "decode": {"flip": True, "gallery": {"neighbours": 5}},
            },
            {"contrastive": {}},
        ),
    ],
    ids=["baseline", "siamese"],
)
def test_precomputed_features_train_what_pixels_train(
    model: dict[str, Any], loss: dict[str, Any], flip: int
) -> None:
    train = {"augment": {**NOTHING, "flip": flip}, "ema": 0.5}
    settings = experiment(
        model=model,
        loss=loss,
        stage={"optimizer": {"lr": 3e-3, "body_lr": 0}},
        train=train,
        align=Align(size=32),
    )
    assert frozen.applies(settings, build(settings.model))
    slow, quick = run(settings), run(settings, precomputed(settings, faces()), fold(faces()))
    assert [record["loss"] for record in quick.log] == pytest.approx(
        [record["loss"] for record in slow.log], rel=1e-3
    )
    assert [record["val_mae"] for record in quick.log] == pytest.approx(
        [record["val_mae"] for record in slow.log], abs=0.02
    )
    assert quick.predicted == pytest.approx(slow.predicted, abs=0.02)
    assert slow.log[-1]["loss"] != slow.log[0]["loss"]


def test_faces_are_mirrored_as_often_as_asked_for() -> None:
    """Features of face and mirror image differ: the head taught by both lies between."""
    settings = experiment(
        stage={"epochs": 1, "optimizer": {"body_lr": 0}}, train={"augment": {**NOTHING, "flip": 0.5}}
    )
    columns = precomputed(settings, faces())
    losses = []
    for flip in (0, 0.5, 1):
        train = settings.train.model_copy(
            update={"augment": Augment.model_validate({**NOTHING, "flip": flip})}
        )
        losses.append(
            run(settings.model_copy(update={"train": train}), columns, fold(faces())).log[0]["loss"]
        )
    assert len(set(losses)) == 3


def test_the_cluster_module_starts_from_precomputed_features() -> None:
    model = {
        "name": "cluster_cnn",
        "backbone": "resnet18",
        "clusters": 2,
        "init_faces": 16,
        "branch_features": 16,
    }
    settings = experiment(
        model=model, stage={"epochs": 1, "optimizer": {"body_lr": 0}}, train={"augment": NOTHING}
    )
    result = run(settings, precomputed(settings, faces()), fold(faces()))
    assert np.isfinite(result.predicted).all()


def test_the_body_is_taken_out_whole() -> None:
    network = build(experiment().model, seed=0)
    count = len(list(network.get_backbone().parameters()))
    backbone = frozen.detach_backbone(network)
    assert len(list(backbone.parameters())) == count > 0
    assert [name for name, _ in network.named_parameters()] == ["head.weight", "head.bias"]
    features = torch.randn(3, 512)
    assert torch.equal(network({"face": features})["embedding"], features)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"model": {"name": "residual_cnn", "width": 0.25}}, True),
        ({"train": {"augment": NOTHING}}, True),
        ({"train": {"augment": {**NOTHING, "rotation": 1}}}, False),
        ({"train": {"augment": NOTHING, "sizes": [32, 48]}}, False),
        ({"train": {}}, False),
        ({"stage": {"optimizer": {"body_lr": None}}}, False),
        ({"stage": {"optimizer": {"body_lr": 1e-6}}}, False),
        ({"model": {"name": "dhaa", "width": 0.125}}, False),
    ],
)
def test_when_features_may_be_precomputed(changes: dict[str, Any], expected: bool) -> None:
    """`body_lr` is 0 in every stage, only mirroring is on; a missing `augment` is the default."""
    parts = {
        "stage": {"optimizer": {"body_lr": 0}},
        "train": {"augment": {**NOTHING, "flip": 0.5}},
        **changes,
    }
    settings = experiment(**parts)
    assert frozen.applies(settings, build(settings.model)) is expected


def test_one_stage_that_moves_the_body_is_enough() -> None:
    stages = [{"optimizer": {"body_lr": 0}}, {"optimizer": {"body_lr": 1e-4}}]
    settings = experiment(train={"stages": stages, "augment": NOTHING})
    assert not frozen.applies(settings, build(settings.model))
