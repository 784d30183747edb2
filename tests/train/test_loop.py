"""The training loop without Ray: means of an epoch, resuming, freezing, the moving average."""

from __future__ import annotations

import copy
import io
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from ageray import metrics
from ageray.errors import UserError
from ageray.experiment import Align, Augment, Experiment
from ageray.faces.align import align_faces, standardize
from ageray.faces.canvases import face_canvases, to_tensors
from ageray.models.decode import decode
from ageray.models.inference import posterior
from ageray.synthetic import faces as synthetic_faces
from ageray.train import epochs
from ageray.train.loop import Columns, EpochResult, augmented_faces, train_one_epoch
from ageray.train.state import State, new_state
from ageray.train.validation import Validated, validate

CPU = torch.device("cpu")
SMALL = Align(size=32)
EVERYTHING = Augment(tint=0.1, gamma=0.3, gray=0.3, blur=0.5, downscale=0.5, jpeg=0.5, noise=0.5, erase=0.5)
NOTHING = Augment(flip=0, rotation=0, scale=0, translation=0, brightness=0, contrast=0, saturation=0)


@cache
def faces(count: int, align: Align, seed: int = 0, size: int = 96) -> Columns:
    """Drawn faces, each of another person, as the columns of one batch."""
    drawn = list(synthetic_faces.faces(count, seed, size=size))
    pieces = [face_canvases(face.jpeg(), face.points[None], face.box[None], align) for face in drawn]
    return {
        "canvas": np.concatenate([piece.pixels for piece in pieces]),
        "points": np.concatenate([piece.points for piece in pieces]),
        "box": np.concatenate([piece.box for piece in pieces]),
        "age": np.array([face.age for face in drawn], np.float32),
    }


def batches(columns: Columns, size: int) -> list[Columns]:
    """Whole batches in order."""
    count = len(columns["age"]) // size
    return [
        {name: values[size * k : size * (k + 1)] for name, values in columns.items()} for k in range(count)
    ]


def experiment(**parts: Any) -> Experiment:
    """A small experiment: the baseline at 32 pixels, float32, the normalised neighborhood term,
    SGD; parts given win.
    """
    stage = {"optimizer": {"name": "sgd", "lr": 0.01}, **parts.pop("stage", {})}
    train = {"precision": "float32", "stages": [stage], **parts.pop("train", {})}
    loss = parts.pop("loss", {"neighborhood": {"normalize": True}})
    model = {"name": "baseline", **parts.pop("model", {})}
    return Experiment.model_validate({"align": SMALL, "train": train, "loss": loss, "model": model, **parts})


def validated(true: float, predicted: np.ndarray[Any, Any]) -> Validated:
    """One face of the first set."""
    return Validated(np.array([true], np.float32), predicted, np.zeros(1, np.int64))


def started(settings: Experiment, steps: int) -> State:
    state = new_state(settings, CPU)
    state.start_stage(0, steps)
    return state


# --- what an epoch reports ----------------------------------------------------------------------


def test_an_epoch_reports_means_over_its_steps() -> None:
    both = {"cross_entropy": {"weight": 0.4}, "neighborhood": {"weight": 2, "normalize": True}}
    settings, cut = experiment(loss=both, train={"augment": NOTHING}), batches(faces(12, SMALL), 4)
    seen: list[tuple[int, int]] = []
    result = train_one_epoch(started(settings, 3), cut, lambda step, images: seen.append((step, images)))
    assert seen == [(1, 4), (2, 8), (3, 12)]
    assert result.images == 12
    assert result.seconds > 0
    state = started(settings, 3)
    single = [train_one_epoch(state, [batch]) for batch in cut]
    assert state.step == 3
    assert result.loss == pytest.approx(np.mean([step.loss for step in single]))
    for name in ("cross_entropy", "neighborhood"):
        assert result.terms[name] == pytest.approx(np.mean([step.terms[name] for step in single]))
    assert result.loss == pytest.approx(
        0.4 * result.terms["cross_entropy"] + 2 * result.terms["neighborhood"]
    )


def test_without_augmentation_training_sees_the_faces_that_the_predictor_sees() -> None:
    align = Align(size=40, standardize=True)
    state = new_state(experiment(align=align, train={"augment": NOTHING}), CPU)
    batch = to_tensors(faces(4, align), CPU)
    seen, points = augmented_faces(state, batch)
    served, served_points = align_faces(batch["canvas"], batch["points"], batch["box"], align)
    torch.testing.assert_close(seen, standardize(served.clamp(0, 255), align), atol=0.02, rtol=0)
    torch.testing.assert_close(points, served_points, atol=1e-3, rtol=0)


def test_a_step_trains_at_one_of_the_sizes() -> None:
    settings = experiment(align=Align(size=40), train={"augment": EVERYTHING, "sizes": [32, 32, 48]})
    state, batch = started(settings, 1), to_tensors(faces(4, settings.align), CPU)
    sides = []
    for _ in range(60):
        seen, points = augmented_faces(state, batch)
        assert seen.shape[-2] == seen.shape[-1]
        # points are in pixels of the face at that size: the middle of the eyes is near its own
        assert abs(float(points[:, :2, 0].mean()) / seen.shape[-1] - 0.5) < 0.15
        sides.append(seen.shape[-1])
    assert set(sides) == {32, 48}
    assert 25 < sides.count(32) < 55  # two thirds of 60
    # the same seed draws the same sizes, and without the setting nothing is drawn
    again = started(settings, 1)
    assert [augmented_faces(again, batch)[0].shape[-1] for _ in range(60)] == sides
    plain = started(experiment(align=Align(size=40), train={"augment": EVERYTHING}), 1)
    assert augmented_faces(plain, batch)[0].shape[-1] == 40
    result = train_one_epoch(state, batches(faces(4, settings.align), 4))
    assert np.isfinite(result.loss)


def test_validation_is_the_posterior_decoded_of_every_face() -> None:
    settings, columns = experiment(train={"augment": EVERYTHING}, model={"dropout": 0.5}), faces(7, SMALL)
    state = started(settings, 1)
    before = copy.deepcopy(state.network.state_dict())
    true, predicted, _ = validate(
        state, [*batches(columns, 4), {name: values[4:] for name, values in columns.items()}]
    )
    assert np.array_equal(true, columns["age"])
    with torch.inference_mode():
        expected = decode(
            posterior(state.network.eval(), to_tensors(columns, CPU), settings, False), settings.model
        )
    assert predicted == pytest.approx(expected.numpy(), abs=1e-3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.network.state_dict().items())
    assert [len(part) for part in validate(state, [])] == [0, 0, 0]


def test_bf16_trains_close_to_float32() -> None:
    cut = batches(faces(8, SMALL), 8)
    losses = [
        train_one_epoch(started(experiment(train={"precision": name}), 1), cut).loss
        for name in ("float32", "bf16")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert losses[1] != losses[0]


def test_pieces_of_a_batch_are_the_whole_batch() -> None:
    """Without batch statistics the weights after three steps are the same."""
    cut, outcomes = batches(faces(24, SMALL), 8), []
    for pieces in (1, 2, 4):
        settings = experiment(
            model={"name": "cluster_cnn", "head": "plain", "depth": "half", "dropout": 0},
            train={"accumulate": pieces},
        )
        state = started(settings, 3)
        result = train_one_epoch(state, cut)
        outcomes.append(
            (result.loss, state.step, torch.cat([weight.flatten() for weight in state.network.parameters()]))
        )
    before = torch.cat([weight.flatten() for weight in started(settings, 3).network.parameters()])
    moved = (outcomes[0][2] - before).norm()
    assert moved > 0
    for loss, steps, weights in outcomes[1:]:
        assert loss == pytest.approx(outcomes[0][0], rel=1e-5)
        assert steps == 3
        # for a weight with hardly any gradient the optimiser may turn the last bits into a step
        assert (weights - outcomes[0][2]).norm() < 1e-3 * moved


def test_fp16_scales_its_loss_and_trains_close_to_float32() -> None:
    cut, losses = batches(faces(8, SMALL), 4), []
    for name in ("float32", "fp16"):
        state = started(experiment(train={"precision": name}), 2)
        losses.append(train_one_epoch(state, cut).loss)
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert losses[1] != losses[0]
    assert state.scaler.get_scale() > 1


def test_training_ends_when_the_last_stage_gets_no_better() -> None:
    stages = [{"name": "first", "epochs": 3}, {"name": "last", "epochs": 9}]
    state, seen = new_state(experiment(train={"stages": stages, "patience": 2}), CPU), list[str]()
    errors = iter([5.0, 6.0, 7.0, 8.0, 4.0, 4.5, 4.1, 3.0])
    for stage in epochs.remaining(state, [1, 1]):
        seen.append(stage.name)
        predicted = np.array([next(errors)], np.float32)
        epochs.close(state, EpochResult(1.0, {}, 4, 1.0), validated(0, predicted), 1.0, waited=0.25)
    assert seen == ["first"] * 3 + ["last"] * 4
    assert [record["best"] for record in state.log] == [True, False, False, False, True, False, False]
    assert state.log[0]["stall"] == 0.25


def test_a_stage_may_be_given_in_steps() -> None:
    """7 steps are two whole epochs of 3 and a last one of a single step."""
    stages = [{"name": "first", "epochs": 1}, {"name": "last", "steps": 7}]
    state, steps = new_state(experiment(train={"stages": stages}), CPU), list[Any]()
    for stage in epochs.remaining(state, [2, 3]):
        steps.append((stage.name, state.epoch_steps))
        epochs.close(state, EpochResult(1.0, {}, 4, 1.0), validated(0, np.array([5.0], np.float32)), 1.0)
    assert steps == [("first", 2), ("last", 3), ("last", 3), ("last", 1)]
    assert state.log[-1]["epochs"] == 4
    assert epochs.length(state.config.train.stages[1], 3) == (3, 7)


@pytest.mark.parametrize("patience", [1, 2, 3])
def test_a_last_stage_that_never_improves_trains_as_many_epochs_as_patience_says(patience: int) -> None:
    stages = [{"name": "first", "epochs": 1}, {"name": "last", "epochs": 9}]
    state = new_state(experiment(train={"stages": stages, "patience": patience}), CPU)
    for _ in epochs.remaining(state, [1, 1]):
        error = np.array([5.0 + state.epoch], np.float32)
        epochs.close(state, EpochResult(1.0, {}, 4, 1.0), validated(0, error), 1.0)
    assert state.epoch == 1 + patience


def test_a_teacher_stays_as_the_network_started_and_is_followed() -> None:
    cut = batches(faces(8, SMALL), 8)
    ends = []
    for weight in (1e-6, 4.0):
        loss = {"neighborhood": {"normalize": True}, "distillation": {"weight": weight}}
        state = started(experiment(loss=loss, train={"teacher": "start", "augment": NOTHING}), 8)
        assert state.teacher is not None
        before = copy.deepcopy(state.teacher.state_dict())
        assert all(torch.equal(tensor, before[name]) for name, tensor in state.network.state_dict().items())
        for _ in range(8):
            result = train_one_epoch(state, cut)
        assert result.terms.keys() == {"neighborhood", "distillation"}
        assert all(torch.equal(tensor, before[name]) for name, tensor in state.teacher.state_dict().items())
        ends.append(result.terms["distillation"])
    assert ends[1] < ends[0] - 0.01


def test_a_teacher_and_its_loss_need_each_other() -> None:
    with pytest.raises(UserError, match=r"loss\.distillation: has no teacher; set train\.teacher"):
        new_state(experiment(loss={"distillation": {}}), CPU)
    with pytest.raises(UserError, match=r"train\.teacher=start: no loss listens to it"):
        new_state(experiment(train={"teacher": "start"}), CPU)
    loss = {"neighborhood": {}, "distillation": {}}
    with pytest.raises(UserError, match=r"has model\.ages=\[-15, 120\], this model \[0, 90\]"):
        new_state(experiment(loss=loss, train={"teacher": "zoo:default@1"}, model={"ages": [0, 90]}), CPU)


def test_an_epoch_can_be_chosen_by_decades_and_sets() -> None:
    true = np.array([5, 25, 25, 25, 85, 95, 35], np.float32)
    error = np.array([1, 3, 3, 3, 9, 5, 10], np.float32)
    of_set = np.array([0, 0, 0, 0, 0, 0, 1])
    assert epochs.by_decades(Validated(true, true + error, of_set)) == pytest.approx(
        ((1 + 3 + 7) / 3 + 10) / 2
    )
    state = new_state(experiment(train={"select": "decades", "stages": [{"epochs": 2}]}), CPU)
    records = []
    # the second epoch has the smaller MAE, but is worse on the only child
    for child, adults in ((1, 4), (6, 2)):
        errors = np.array([child, adults, adults, adults, adults], np.float32)
        ages = np.array([5, 25, 25, 25, 25], np.float32)
        next(epochs.remaining(state, [1]))
        validated = Validated(ages, ages + errors, np.zeros(5, np.int64))
        records.append(epochs.close(state, EpochResult(1.0, {}, 5, 1.0), validated, 1.0))
    assert [record["val_decades"] for record in records] == [2.5, 4.0]
    assert [record["best"] for record in records] == [True, False]


@pytest.mark.slow
def test_a_compiled_network_trains_like_the_other() -> None:
    cut = batches(faces(8, SMALL), 4)
    losses = [
        train_one_epoch(started(experiment(train={"compile": compiled}), 2), cut).loss
        for compiled in (False, True)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


# --- what moves and what stays ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cluster_cnn", "baseline"])
def test_a_frozen_backbone_stays(name: str) -> None:
    """Its weights and its batch statistics."""
    state = started(experiment(model={"name": name}, stage={"optimizer": {"lr": 0.1, "body_lr": 0}}), 3)
    before = copy.deepcopy(state.network.state_dict())
    train_one_epoch(state, batches(faces(12, SMALL), 4))
    changed = {
        key for key, tensor in state.network.state_dict().items() if not torch.equal(tensor, before[key])
    }
    assert changed >= {"head.weight", "head.bias"}
    assert not [key for key in changed if key.startswith("backbone.")]


def test_the_moving_average_follows_its_recurrence_and_is_what_is_validated() -> None:
    state = started(experiment(train={"ema": 0.2}, stage={"optimizer": {"name": "sgd", "lr": 0.5}}), 4)
    assert state.ema_network is not None
    expected = state.network.head.weight.detach().clone()
    for step, batch in enumerate(batches(faces(16, SMALL), 4), 1):
        train_one_epoch(state, [batch])
        decay = min(0.2, (1 + step) / (10 + step))  # 2/11, then 0.2
        expected = decay * expected + (1 - decay) * state.network.head.weight.detach()
        torch.testing.assert_close(state.ema_network.head.weight, expected)
    assert not torch.equal(state.ema_network.head.weight, state.network.head.weight)
    assert state.eval_network is state.ema_network
    buffers = zip(state.ema_network.buffers(), state.network.buffers(), strict=True)
    assert all(torch.equal(average, current) for average, current in buffers)
    assert new_state(experiment(), CPU).eval_network is not None


def test_clipping_limits_the_length_of_a_step() -> None:
    lengths = []
    for clip in (0, 0.01):
        optimizer = {"name": "sgd", "lr": 1.0, "momentum": 0, "weight_decay": 0}
        stage = {"optimizer": optimizer, "schedule": {"name": "constant", "warmup": 0}}
        state = started(experiment(train={"clip": clip}, stage=stage), 1)
        before = [parameter.detach().clone() for parameter in state.network.parameters()]
        train_one_epoch(state, batches(faces(4, SMALL), 4))
        moved = zip(state.network.parameters(), before, strict=True)
        lengths.append(float(torch.stack([(now - then).norm() for now, then in moved]).norm()))
    assert lengths[1] == pytest.approx(0.01, rel=1e-3)
    assert lengths[0] > 0.05


# --- losses that are not finite -----------------------------------------------------------------


@pytest.mark.parametrize("spoilt", [1, 3])
def test_a_loss_that_is_not_finite_stops_the_run_with_term_and_step(spoilt: int) -> None:
    cut = [dict(batch) for batch in batches(faces(12, SMALL), 4)]
    cut[spoilt - 1]["age"] = np.full(4, np.nan, np.float32)
    with pytest.raises(
        FloatingPointError, match=rf"^step {spoilt}: loss term loss, neighborhood is not finite"
    ):
        train_one_epoch(started(experiment(), 3), cut)


def test_predictions_that_are_not_finite_stop_the_run_before_they_are_taken_for_the_best() -> None:
    """No loss follows the last step of an epoch, so validation must notice broken weights."""
    optimizer = {"name": "sgd", "lr": 1e30}
    state = started(
        experiment(stage={"optimizer": optimizer, "schedule": {"name": "constant", "warmup": 0}}), 1
    )
    assert np.isfinite(train_one_epoch(state, batches(faces(4, SMALL), 4)).loss)
    with pytest.raises(FloatingPointError, match=r"^step 1: predicted ages are not finite"):
        validate(state, batches(faces(4, SMALL), 4))


def test_the_step_is_counted_over_the_whole_run_and_noticed_within_twenty() -> None:
    cut, done = batches(faces(8, SMALL), 2), list[int]()
    state = started(experiment(model={"name": "cluster_cnn"}), 60)
    train_one_epoch(state, cut)
    with torch.no_grad():
        state.network.head.bias[3] = float("inf")
    with pytest.raises(FloatingPointError, match=r"^step 5: "):
        train_one_epoch(state, cut * 10, lambda step, _images: done.append(step))
    assert done[-1] < 20


# --- resuming -----------------------------------------------------------------------------------


def differences(first: Any, second: Any, path: str = "") -> list[str]:
    """Where two nested states differ, in any bit."""
    if isinstance(first, torch.Tensor):
        return [] if first.dtype == second.dtype and torch.equal(first, second) else [path]
    if isinstance(first, dict):
        assert first.keys() == second.keys(), path
        paths = []
        for key in first:
            paths += differences(first[key], second[key], f"{path}.{key}")
        return paths
    if isinstance(first, list | tuple):
        assert len(first) == len(second), path
        paths = []
        for index, pair in enumerate(zip(first, second, strict=True)):
            paths += differences(*pair, f"{path}.{index}")
        return paths
    return [] if first == second else [path]


@pytest.mark.parametrize(
    ("name", "optimizer"), [("baseline", "sgd"), ("baseline", "adamw"), ("cluster_cnn", "adam")]
)
def test_a_resumed_run_equals_the_uninterrupted_one_in_every_bit(name: str, optimizer: str) -> None:
    stage = {"optimizer": {"name": optimizer, "lr": 1e-3, "body_lr": 5e-4}, "epochs": 2}
    train = {"augment": EVERYTHING, "ema": 0.9, "clip": 1.0, "stages": [stage, {**stage, "name": "second"}]}
    settings = experiment(model={"name": name, "dropout": 0.3}, train=train)
    cut = batches(faces(12, SMALL), 4)

    def epoch(state: State) -> float:
        loss = train_one_epoch(state, cut).loss
        state.epoch += 1
        state.log.append({"loss": loss, "best": True})
        return loss

    whole = started(settings, 6)
    losses = [epoch(whole)]
    file = io.BytesIO()
    torch.save(whole.state_dict(), file)
    losses.append(epoch(whole))
    whole.start_stage(1, 6)
    losses.append(epoch(whole))

    file.seek(0)
    torch.manual_seed(99)
    resumed = new_state(settings, CPU)
    torch.rand(7)
    resumed.load_state_dict(torch.load(file, weights_only=True), 6)
    assert (resumed.stage, resumed.epoch, resumed.step) == (0, 1, 3)
    again = [epoch(resumed)]
    resumed.start_stage(1, 6)
    again.append(epoch(resumed))
    assert again == losses[1:]
    assert differences(whole.state_dict(), resumed.state_dict()) == []


def test_a_run_resumed_within_an_epoch_equals_the_uninterrupted_one_in_every_bit() -> None:
    settings = experiment(
        train={"augment": EVERYTHING, "ema": 0.9, "precision": "fp16"}, model={"dropout": 0.3}
    )
    cut, checkpoints = batches(faces(20, SMALL), 4), list[bytes]()
    whole, seen = started(settings, 10), list[tuple[int, int]]()

    def keep() -> None:
        file = io.BytesIO()
        torch.save(whole.state_dict(), file)
        checkpoints.append(file.getvalue())

    result = train_one_epoch(whole, cut, save_checkpoint=keep, checkpoint_steps=2)
    assert len(checkpoints) == 2
    assert vars(whole.epoch_progress) == {"steps": 0, "images": 0, "seconds": 0.0, "sums": {}}
    torch.manual_seed(99)
    resumed = new_state(settings, CPU)
    resumed.load_state_dict(torch.load(io.BytesIO(checkpoints[0]), weights_only=True), 10)
    assert (resumed.step, resumed.epoch_progress.steps, resumed.epoch_progress.images) == (2, 2, 8)
    again = train_one_epoch(
        resumed,
        cut[resumed.epoch_progress.steps :],
        lambda step, images: seen.append((step, images)),
        lambda: None,
        2,
    )
    assert seen == [(3, 12), (4, 16), (5, 20)]
    assert (again.loss, again.terms, again.images) == (result.loss, result.terms, result.images)
    assert again.seconds > resumed.epoch_progress.seconds
    assert differences(whole.state_dict(), resumed.state_dict()) == []


def test_the_keys_of_a_checkpoint_are_those_of_files_on_disk() -> None:
    """Older run folders have these keys, and must resume."""
    saved = started(experiment(train={"ema": 0.5}), 1).state_dict()
    assert set(saved) == {
        *("network", "average", "optimizer", "schedule", "generator", "scaler"),
        *("torch", "cuda", "progress", "partial", "log"),
    }
    assert set(saved["progress"]) == {"stage", "epoch", "step", "best"}
    assert set(saved["partial"]) == {"steps", "images", "seconds", "sums"}


def test_the_seed_fixes_the_whole_run() -> None:
    cut, states = batches(faces(8, SMALL), 4), []
    for seed in (3, 3, 4):
        settings = experiment(train={"seed": seed, "augment": EVERYTHING}, model={"dropout": 0.3})
        states.append(started(settings, 2))
        train_one_epoch(states[-1], cut)
    assert differences(states[0].state_dict(), states[1].state_dict()) == []
    assert differences(states[0].state_dict()["network"], states[2].state_dict()["network"])


# --- learning -----------------------------------------------------------------------------------


def test_it_learns_ages_of_people_it_has_not_seen() -> None:
    """On other people the error is far below that of always predicting the median."""
    align, passes, size = Align(size=32), 6, 20
    stage = {"epochs": passes, "optimizer": {"name": "adamw", "lr": 3e-3}, "schedule": {"warmup": 0.1}}
    model = {"name": "residual_cnn", "width": 0.25, "ages": [-15, 120]}
    settings = experiment(align=align, model=model, train={"stages": [stage], "ema": 0.9})
    people, strangers = faces(400, align), faces(100, align, seed=1)
    rng = np.random.default_rng(0)
    state = started(settings, passes * (400 // size))
    for _ in range(passes):
        order = rng.permutation(400)
        train_one_epoch(state, batches({name: values[order] for name, values in people.items()}, size))
    true, predicted, _ = validate(state, batches(strangers, 50))
    constant = metrics.mean_absolute_error(true, np.full_like(true, np.median(true)))
    assert metrics.mean_absolute_error(true, predicted) < 0.4 * constant  # 0.27 here
