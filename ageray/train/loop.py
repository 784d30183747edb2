"""The training loop in plain torch: what a run carries from step to step, one epoch, one validation. Ray is not needed here.

Batches are dicts of numpy columns `canvas` (B, C, C, 3) uint8, `points`, `box`, `age`; see `ageray.data.batches`. For a network whose frozen
body was taken away (`ageray.train.frozen`), `features` (B, 2, D) of face and mirror image stand in the place of the first three.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ageray.data.batches import to_tensors
from ageray.experiment import Experiment
from ageray.faces.align import align_faces, standardize
from ageray.faces.augment import geometric_map, photometric
from ageray.losses.criterion import FIELDS, Criterion, check_finite
from ageray.models.decode import bins, decode
from ageray.models.gallery import Gallery
from ageray.models.model import build
from ageray.models.network import AgeNetwork
from ageray.models.posterior import gallery_rows, posterior
from ageray.train.optim import make_optimizer, make_schedule

_CHECK_EVERY = 20  # steps between looks at the losses: each look waits for the device

_TRAINED = ("canvas", "points", "box", "features", "age", "gender")
_JUDGED = ("canvas", "points", "box", "features", "subject")
_GALLERY = (*_JUDGED, "age", "gender")

Columns = dict[str, Any]


@dataclass
class EpochResult:
    """Means over an epoch's steps: the weighted `loss`, each unweighted term; images seen, seconds."""

    loss: float
    terms: dict[str, float]
    images: int
    seconds: float


@dataclass
class State:
    """All that a run carries from step to step. `state_dict` and `load_state_dict` make a resumed run equal an uninterrupted one."""

    config: Experiment
    device: torch.device
    network: AgeNetwork
    criterion: Criterion
    bins: Tensor
    generator: torch.Generator
    average: AgeNetwork | None = None
    optimizer: torch.optim.Optimizer | None = None
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None
    stage: int = -1
    epoch: int = 0  # finished epochs over all stages
    step: int = 0  # finished steps over all stages
    best: float = float("inf")
    log: list[dict[str, Any]] = field(default_factory=list)

    @property
    def judged(self) -> AgeNetwork:
        """The network that is validated and kept: the moving average where there is one."""
        return self.average or self.network

    def start_stage(self, index: int, steps: int) -> None:
        """A new optimiser and schedule for stage `index`, which will take `steps` steps, on the weights so far."""
        stage = self.config.train.stages[index]
        self.optimizer = make_optimizer(self.network, self.network.head_parameters(), stage.optimizer)
        self.schedule = make_schedule(self.optimizer, stage.schedule, steps)
        self.stage = index

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values, fit for `torch.load(weights_only=True)`."""
        assert self.optimizer is not None
        assert self.schedule is not None
        return {
            "network": self.network.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "generator": self.generator.get_state(),
            "torch": torch.get_rng_state(),
            "progress": {"stage": self.stage, "epoch": self.epoch, "step": self.step, "best": self.best},
            "log": self.log,
        }

    def load_state_dict(self, saved: dict[str, Any], steps: int) -> None:
        """Continues from `saved`; `steps` is the length of the stage it was in."""
        progress = saved["progress"]
        self.network.load_state_dict(saved["network"])
        if self.average is not None:
            self.average.load_state_dict(saved["average"])
        self.start_stage(progress["stage"], steps)
        assert self.optimizer is not None
        assert self.schedule is not None
        self.optimizer.load_state_dict(saved["optimizer"])
        self.schedule.load_state_dict(saved["schedule"])
        self.generator.set_state(saved["generator"].cpu())
        torch.set_rng_state(saved["torch"].cpu())
        self.epoch, self.step, self.best = progress["epoch"], progress["step"], progress["best"]
        self.log = saved["log"]


def new_state(config: Experiment, device: torch.device) -> State:
    """A run at its start: the network on the device, the criterion bound to it. Raises UserError for combinations that cannot work."""
    torch.manual_seed(config.train.seed)  # of dropout
    network = build(config.model, seed=config.train.seed)
    criterion = Criterion(config.loss, network.outputs, config.model.name)
    network = network.to(device)
    average = copy.deepcopy(network).requires_grad_(False) if config.train.ema else None
    generator = torch.Generator().manual_seed(config.train.seed)
    return State(config, device, network, criterion, bins(config.model).to(device), generator, average)


def train_one_epoch(state: State, batches: Iterable[Columns], on_step: Callable[[int, int], None] | None = None) -> EpochResult:
    """One pass over `batches`; `on_step(step, images)` is called after each, both counted in this epoch.

    Raises FloatingPointError naming term and step when a loss is not finite.
    """
    state.network.train()
    if not any(parameter.requires_grad for parameter in state.network.body().parameters()):
        state.network.body().eval()  # a frozen body keeps its batch statistics too
    started, images, steps = time.perf_counter(), 0, 0
    pending: list[dict[str, Tensor]] = []
    sums: dict[str, float] = {}
    for columns in batches:
        pending.append(_train_step(state, columns))
        steps, images = steps + 1, images + len(columns["age"])
        if len(pending) == _CHECK_EVERY:
            _collect(pending, sums, state.step)
        if on_step is not None:
            on_step(steps, images)
    _collect(pending, sums, state.step)
    means = {name: total / max(1, steps) for name, total in sums.items()}
    return EpochResult(means.pop("loss", float("nan")), means, images, time.perf_counter() - started)


@torch.no_grad()
def start(state: State, batches: Iterable[Columns]) -> None:
    """Shows a network that asks for it (`faces_to_start`) so many augmented training faces before its first step; else reads nothing."""
    wanted, network = state.network.faces_to_start, state.network
    if not wanted:
        return
    network.eval()
    cached: list[Tensor] = []
    for columns in batches:
        batch = to_tensors({name: columns[name] for name in _TRAINED if name in columns}, state.device)
        batch |= _augmented(state, batch)
        with torch.autocast(state.device.type, torch.bfloat16, enabled=state.config.train.precision == "bf16"):
            cached.append(network.cache(batch).float())
        if sum(map(len, cached)) >= wanted:
            break
    if not cached:  # the epoch that follows says why there is no face
        return
    network.start(torch.cat(cached)[:wanted], state.generator)
    if state.average is not None:
        state.average.load_state_dict(network.state_dict())


def _train_step(state: State, columns: Columns) -> dict[str, Tensor]:
    assert state.optimizer is not None
    assert state.schedule is not None
    config = state.config
    batch = to_tensors({name: columns[name] for name in _TRAINED if name in columns}, state.device)
    batch |= _augmented(state, batch)
    with torch.autocast(state.device.type, torch.bfloat16, enabled=config.train.precision == "bf16"):
        outputs = state.network(batch)
    fields = {name: batch[name] for name in FIELDS if name in batch}
    loss, terms = state.criterion({**outputs, **fields, "bins": state.bins})
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    if config.train.clip:
        nn.utils.clip_grad_norm_(state.network.parameters(), config.train.clip)
    state.optimizer.step()
    state.schedule.step()
    state.step += 1
    if state.average is not None:
        _update_average(state.average, state.network, min(config.train.ema, (1 + state.step) / (10 + state.step)))
    return {"loss": loss.detach(), **terms}


def _augmented(state: State, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the network trains on: `face` and `points`, or, of remembered features, those of the face or of its mirror image."""
    if "features" in batch:
        both_B2D = batch["features"]
        side_B = (torch.rand(len(both_B2D), generator=state.generator) < state.config.train.augment.flip).long().to(state.device)
        return {"face": both_B2D.take_along_dim(side_B[:, None, None], 1).squeeze(1)}
    face, points = augmented_faces(state, batch)
    return {"face": face, "points": points}


def augmented_faces(state: State, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Training faces (B, 3, S, S; channels last) and their points: alignment and random map in one warp, then random
    colours, then the same standardisation as in use."""
    align, augment = state.config.align, state.config.train.augment
    random_map = geometric_map(len(batch["canvas"]), align.size, augment, state.generator).to(state.device)
    faces, points = align_faces(batch["canvas"], batch["points"], batch["box"], align, random_map)
    faces = standardize(photometric(faces, augment, state.generator), align)
    return faces.contiguous(memory_format=torch.channels_last), points


@torch.no_grad()
def _update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """The decay climbs with the first steps, so that the random start is forgotten."""
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)
    for kept, current in zip(average.buffers(), network.buffers(), strict=True):
        kept.copy_(current)


def _collect(pending: list[dict[str, Tensor]], sums: dict[str, float], last_step: int) -> None:
    """Adds the waiting losses to the sums, in one transfer, and empties the list."""
    if not pending:
        return
    table = torch.stack([torch.stack([value.float() for value in terms.values()]) for terms in pending]).cpu()
    for row, terms in enumerate(pending):
        check_finite(dict(zip(terms, table[row], strict=True)), last_step - len(pending) + 1 + row)
    for name, total in zip(pending[0], table.double().sum(0).tolist(), strict=True):
        sums[name] = sums.get(name, 0.0) + total
    pending.clear()


@torch.no_grad()
def make_gallery(state: State, batches: Iterable[Columns], most: int | None = None) -> Gallery | None:
    """The gallery (`decode.method: gallery`) of the faces of `batches`, or of the first `most`, as the judged network embeds them without
    augmentation; None if there is no face. Raises FloatingPointError if an embedding is not finite."""
    network, autocast = state.judged.eval(), state.config.train.precision == "bf16"
    rows: list[dict[str, Tensor]] = []
    for columns in _first(batches, most):
        batch = to_tensors({name: columns[name] for name in _GALLERY if name in columns}, state.device)
        rows.append(gallery_rows(network, batch, state.config, autocast))
    if not rows:
        return None
    made = Gallery.of(rows)
    if not made.finite:
        raise FloatingPointError(f"step {state.step}: embeddings are not finite; lower the learning rate, or set train.clip")
    return made


def _first(batches: Iterable[Columns], most: int | None) -> Iterator[Columns]:
    """The batches up to the face number `most`; no further one is read."""
    left = most
    for columns in batches:
        yield {name: values[:left] for name, values in columns.items()}
        if left is not None:
            left -= len(columns["age"])
            if left <= 0:
                return


@torch.inference_mode()
def validate(state: State, batches: Iterable[Columns], gallery: Gallery | None = None) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """True and predicted age (N,) of every face of `batches`, without augmentation or calibration, as the predictor would decode them.

    gallery: for `decode.method: gallery`. With a column `subject`, neighbours of a face's own subject are left out where the settings say so.
    """
    network, config = state.judged.eval(), state.config
    true, predicted = [np.zeros(0, np.float32)], [np.zeros(0, np.float32)]
    for columns in batches:
        batch = to_tensors({name: columns[name] for name in _JUDGED if name in columns}, state.device)
        ages = decode(posterior(network, batch, config, config.train.precision == "bf16", gallery), config.model)
        predicted.append(ages.cpu().numpy())
        true.append(np.asarray(columns["age"], np.float32))
    if not all(np.isfinite(ages).all() for ages in predicted):
        raise FloatingPointError(f"step {state.step}: predicted ages are not finite; lower the learning rate, or set train.clip")
    return np.concatenate(true), np.concatenate(predicted)
