"""Two workers over gloo against one with the whole batch, in plain torch, without Ray.

The first four losses of recipes, random changes, validation, batch statistics, collectives.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributed.nn import functional

from ageray import distributed
from ageray.experiment import Align, Experiment
from ageray.faces.augment import upcoming_maps
from ageray.faces.canvases import to_tensors
from ageray.train.loader import Aligner
from ageray.train.loop import Columns, augmented_faces, init_network, train_one_epoch
from ageray.train.state import new_state
from ageray.train.validation import build_gallery, validate
from tests.train.test_golden import BATCH, drawn_batches, scaled_down
from tests.train.test_loop import faces

CPU = torch.device("cpu")
STEPS = 4  # twice the two batches
SMALL = {  # what differs from the golden curves' settings: everything that draws is on
    "baseline": {
        "align": {"size": 32},
        "model": {"dropout": 0.3},
        "train": {
            "sync_batchnorm": True,
            "ema": 0.9,
            "clip": 5.0,
            "augment": dict.fromkeys(["blur", "noise", "jpeg", "erase", "downscale"], 0.3),
        },
    },
    "local": {"align": {"size": 32}, "train": {"mining": "local"}},
    "accumulated": {"align": {"size": 32}, "model": {"dropout": 0.0}, "train": {"accumulate": 2}},
    "cluster_cnn": {"align": {"size": 32}, "model": {"depth": "half"}},
    "dhaa": {"train": {"sync_batchnorm": True}},
    "siamese": {"align": {"size": 32}, "train": {"sync_batchnorm": True}},
}
SMALLER = Align(size=32)
EQUAL = ("baseline", "accumulated", "cluster_cnn", "dhaa", "siamese")


def settings(name: str) -> Experiment:
    if name in ("local", "accumulated"):
        base = scaled_down("deep_embedding" if name == "local" else "default")
        name_of_base = base.model_dump()
    else:
        name_of_base = scaled_down(name).model_dump()
    return Experiment.model_validate(merged(name_of_base, SMALL[name]))


def merged(base: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    return base | {
        key: merged(base[key], value) if isinstance(value, dict) else value for key, value in more.items()
    }


def part(columns: Columns, rank: int, world: int) -> Columns:
    size = len(columns["age"]) // world
    return {name: values[rank * size : (rank + 1) * size] for name, values in columns.items()}


def curve(name: str) -> list[list[float]]:
    """The loss and each of its terms, step by step."""
    experiment = settings(name)
    share = distributed.rank_and_world()
    batches = [part(batch, *share) for batch in drawn_batches(2 * BATCH, experiment.align)]
    state = new_state(experiment, CPU)
    init_network(state, batches)
    state.start_stage(0, STEPS)
    steps = 2 if name == "local" else STEPS  # its first loss is another already
    epochs = [train_one_epoch(state, [batches[step % len(batches)]]) for step in range(steps)]
    assert epochs[0].images == BATCH
    return [[epoch.loss, *epoch.terms.values()] for epoch in epochs]


def validated(name: str) -> list[float]:
    """Ages of five faces, of which worker 0 has one more than worker 1, by a gallery of nine."""
    experiment, (rank, world) = settings(name), distributed.rank_and_world()
    state = new_state(experiment, CPU)
    drawn = faces(9, experiment.align) | {
        "row": torch.arange(9).numpy(),
        "subject": torch.zeros(9, dtype=torch.int64).numpy(),
    }
    own = [
        {key: values[rank::world][:5] for key, values in drawn.items()},
        {key: values[rank::world][5:] for key, values in drawn.items()},
    ]
    gallery = build_gallery(state, [batch for batch in own if len(batch["age"])])
    true, predicted, _ = validate(
        state, [{key: values[rank:5:world] for key, values in drawn.items()}], gallery
    )
    assert true.tolist() == drawn["age"][:5].tolist()
    return [float(age) for age in predicted]


def augmented() -> Tensor:
    """The whole batch as the workers see it, with every change on."""
    experiment = merged(
        settings("baseline").model_dump(), {"train": {"augment": {"tint": 0.2, "gamma": 0.3, "gray": 0.5}}}
    )
    state = new_state(Experiment.model_validate(experiment), CPU)
    own = part(faces(8, state.config.align), *distributed.rank_and_world())
    return distributed.all_gather(augmented_faces(state, to_tensors(own, CPU))[0])


def normalised() -> dict[str, Tensor]:
    """A batch norm's gradients, statistics and outputs on half precision's and full inputs."""
    torch.manual_seed(3)
    norm, inputs = nn.Sequential(nn.BatchNorm2d(3)), torch.randn(6, 3, 4, 4) * 3 + 100
    distributed.prepare_for_distributed(norm, sync_batchnorm=True)
    rank, world = distributed.rank_and_world()
    own = inputs.chunk(world)[rank].requires_grad_()
    out = distributed.all_gather(norm(own))
    (out * torch.arange(out.numel()).view_as(out).cos()).sum().backward()  # type: ignore[no-untyped-call]
    distributed.average(parameter.grad for parameter in norm.parameters() if parameter.grad is not None)
    assert own.grad is not None
    tensors = {"out": out.detach(), "input": distributed.all_gather(own.grad / world), **norm.state_dict()}
    for name, parameter in norm.named_parameters():
        if parameter.grad is not None:
            tensors[f"{name} grad"] = parameter.grad
    return tensors


def staged() -> dict[str, Any]:
    """Two steps with a frozen backbone, two without; the branch for gender has no loss."""
    base = settings("siamese").model_dump()
    stage = base["train"]["stages"][0]
    decayed = merged(stage, {"optimizer": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.1}})
    stages = [merged(decayed, {"optimizer": {"body_lr": 0.0}}), decayed]
    experiment = merged(base, {"loss": {"gender_contrastive": None}, "train": {"stages": stages}})
    state = new_state(Experiment.model_validate(experiment), CPU)
    batches = [part(batch, *distributed.rank_and_world()) for batch in drawn_batches(2 * BATCH, SMALLER)]
    before = {name: tensor.clone() for name, tensor in state.network.state_dict().items()}
    losses = []
    for index in range(2):
        state.start_stage(index, 2)
        losses += [train_one_epoch(state, [batch]).loss for batch in batches]
    parameters = dict(state.network.named_parameters())
    without_gradient = [name for name, parameter in parameters.items() if parameter.grad is None]
    unmoved = [name for name, parameter in parameters.items() if torch.equal(parameter, before[name])]
    return {"losses": losses, "without_gradient": without_gradient, "unmoved": unmoved}


def collectives() -> dict[str, Tensor]:
    """Gradients through our collectives, and through torch's, which torch 2.14 deprecates."""
    rank, _ = distributed.rank_and_world()
    gradients = {}
    for name, gather, add in (
        ("ours", distributed.all_gather, distributed.all_reduce_sum),
        ("torch", lambda own: torch.cat(functional.all_gather(own)), functional.all_reduce),
    ):
        own = (torch.arange(6.0).view(3, 2) + rank).requires_grad_()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            loss = (gather(own).sin() * (rank + 1)).sum() + (add(own.sum(0)).cos() * (rank + 2)).sum()
        loss.backward()
        assert own.grad is not None
        gradients[name] = own.grad
    return gradients


def everything() -> dict[str, Any]:
    torch.set_num_threads(1)
    results: dict[str, Any] = {name: curve(name) for name in SMALL}
    results |= {"validated": validated("siamese"), "augmented": augmented(), "normalised": normalised()}
    return results | {"staged": staged()}


def work(rank: int, folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    torch.save({**everything(), "collectives": collectives()}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def results(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The results of a single worker, and of each of two."""
    folder = tmp_path_factory.mktemp("two")
    torch.multiprocessing.spawn(work, args=(str(folder),), nprocs=2)  # type: ignore[no-untyped-call]
    first, second = (torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2))
    return everything(), first, second


@pytest.mark.parametrize("name", EQUAL)
def test_the_first_losses_are_those_of_one_worker(name: str, results: Any) -> None:
    single, first, second = results
    assert first[name] == second[name]
    torch.testing.assert_close(
        torch.tensor(first[name][0]), torch.tensor(single[name][0]), rtol=1e-5, atol=1e-5
    )
    # sums of other orders are rounded otherwise, which the steps enlarge
    torch.testing.assert_close(torch.tensor(first[name]), torch.tensor(single[name]), rtol=5e-3, atol=1e-5)
    assert single[name][0] != single[name][-1]


def test_local_mining_and_statistics_are_others(results: Any) -> None:
    single, first, second = results
    assert first["local"] == second["local"]
    assert first["local"][0] != pytest.approx(single["local"][0], rel=1e-3)


def test_every_face_is_validated_once_in_the_order_of_the_shards(results: Any) -> None:
    single, first, second = results
    assert first["validated"] == second["validated"] == pytest.approx(single["validated"], abs=1e-3)


def test_random_changes_are_drawn_for_the_whole_batch(results: Any) -> None:
    single, first, _ = results
    torch.testing.assert_close(first["augmented"], single["augmented"], atol=1e-2, rtol=0)
    assert float(first["augmented"].std()) > 1


def test_batch_statistics_of_the_whole_batch(results: Any) -> None:
    single, first, _ = results
    assert first["normalised"].keys() == single["normalised"].keys()
    for name, tensor in single["normalised"].items():
        torch.testing.assert_close(
            first["normalised"][name],
            tensor,
            rtol=1e-4,
            atol=2e-5,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def test_frozen_and_unused_parameters_are_those_of_one_worker(results: Any) -> None:
    """Weight decay would move a parameter whose gradient is 0 instead of none."""
    single, first, second = (each["staged"] for each in results)
    assert first == second
    assert first["losses"] == pytest.approx(single["losses"], rel=5e-3)
    assert first["without_gradient"] == single["without_gradient"] == first["unmoved"] == single["unmoved"]
    assert first["without_gradient"]
    assert all("gender" in name for name in first["without_gradient"])


def test_gradients_of_collectives_are_those_of_torch(results: Any) -> None:
    for worker in results[1:]:
        gradients = worker["collectives"]
        torch.testing.assert_close(gradients["ours"], gradients["torch"])


# --- aligned elsewhere --------------------------------------------------------------------------


def test_a_face_that_stands_in_brings_its_own_map() -> None:
    """Face 0 in the places 0 and 1 of the batch, the second time for one that cannot be decoded."""
    base = settings("baseline")
    still = dict.fromkeys(type(base.train.augment).model_fields, 0.0) | {"rotation": 20.0}
    experiment = Experiment.model_validate(merged(base.model_dump(), {"train": {"augment": still}}))
    drawn = {name: values[[0, 0]] for name, values in faces(2, experiment.align).items()}
    seen = [
        augmented_faces(new_state(experiment, CPU), to_tensors(drawn | extra, CPU))[1]
        for extra in ({}, {"slot": np.array([0, 0])})
    ]
    torch.testing.assert_close(seen[1], seen[0][[0, 0]], atol=1e-4, rtol=0)
    assert float((seen[0][0] - seen[0][1]).abs().max()) > 0.1


def test_faces_aligned_ahead_are_those_that_the_worker_aligns() -> None:
    """Two steps of four faces, one of which comes twice, with every random change between the draws
    of the maps.
    """
    experiment = settings("baseline")
    state, other = (new_state(experiment, CPU) for _ in range(2))
    drawn = faces(7, experiment.align)
    rows = np.array([[3, 0, 5, 1], [6, 3, 2, 4]])
    maps = upcoming_maps(2, 4, experiment.align.size, experiment.train.augment, other.generator)
    aligner = Aligner(experiment.align.model_dump(mode="json"), rows.reshape(-1), maps.flatten(0, 1).numpy())
    parts = [np.array([0, 1, 2, 3]), np.array([4, 5, 6])]
    blocks = [
        aligner({**{name: values[part] for name, values in drawn.items()}, "row": part}) for part in parts
    ]
    assert sum(len(block["row"]) for block in blocks) == 8
    assert not {"canvas", "box"} & blocks[0].keys()
    for step, batch in enumerate(rows):
        place = {int(row): (block, at) for block in blocks for at, row in enumerate(block["row"])}
        chosen = [place[4 * step + slot] for slot in range(4)]
        ready = {
            name: np.stack([block[name][at] for block, at in chosen]) for name in ("aligned", "points", "age")
        }
        assert ready["age"].tolist() == drawn["age"][batch].tolist()
        seen = augmented_faces(other, to_tensors(ready, CPU))
        expected = augmented_faces(
            state, to_tensors({name: values[batch] for name, values in drawn.items()}, CPU)
        )
        torch.testing.assert_close(seen[0], expected[0], atol=1e-3, rtol=0)
        torch.testing.assert_close(seen[1], expected[1], atol=1e-4, rtol=0)
    assert torch.equal(state.generator.get_state(), other.generator.get_state())
