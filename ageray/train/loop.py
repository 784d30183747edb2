"""The training loop in plain torch: what a run carries from step to step, one epoch, one validation. Ray is not needed here.

Batches are dicts of numpy columns `canvas` (B, C, C, 3) uint8, `points`, `box`, `age`; see `ageray.data.batches`. For a network whose frozen
body was taken away (`ageray.train.frozen`), `features` (B, 2, D) of face and mirror image stand in the place of the first three.

With a column `slot` (B,), a face takes the random map of that place of the batch (`ageray.data.order.Ordered`).

Where faces come aligned already (`align.placement: actors`), `aligned` (B, S, S, 3) float32 and their `points` stand there.

Where torch.distributed runs, each of N workers brings its part of every batch, worker 0's faces first, all equally many; together they do what
one worker does with the whole batch: the same random changes and dropout, the loss of the whole batch, the mean of the gradients.
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

from ageray import parallel
from ageray.data.batches import to_tensors
from ageray.experiment import Experiment
from ageray.faces.align import align_faces, standardize
from ageray.faces.augment import Draws, geometric_map, photometric
from ageray.losses.criterion import FIELDS, Criterion, check_finite
from ageray.models.decode import bins, decode
from ageray.models.gallery import Gallery
from ageray.models.model import build
from ageray.models.network import AgeNetwork
from ageray.models.posterior import gallery_rows, posterior
from ageray.train.optim import frozen_parameters, make_optimizer, make_schedule

_CHECK_EVERY = 20  # steps between looks at the losses: each look waits for the device

_TRAINED = ("canvas", "aligned", "points", "box", "slot", "features", "age", "gender", "weight")
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
class Partial:
    """An epoch under way: finished `steps`, `images` seen by all workers, seconds, and the sums of the losses over the steps."""

    steps: int = 0
    images: int = 0
    seconds: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)


@dataclass
class State:
    """All that a run carries from step to step. `state_dict` and `load_state_dict` make a resumed run equal an uninterrupted one."""

    config: Experiment
    device: torch.device
    network: AgeNetwork
    criterion: Criterion
    bins: Tensor
    generator: torch.Generator
    scaler: torch.amp.GradScaler
    forward: Callable[[dict[str, Tensor]], dict[str, Tensor]]
    average: AgeNetwork | None = None
    optimizer: torch.optim.Optimizer | None = None
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None
    stage: int = -1
    epoch: int = 0  # finished epochs over all stages
    step: int = 0  # finished steps over all stages
    best: float = float("inf")
    log: list[dict[str, Any]] = field(default_factory=list)
    partial: Partial = field(default_factory=Partial)

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
            "scaler": self.scaler.state_dict(),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "progress": {"stage": self.stage, "epoch": self.epoch, "step": self.step, "best": self.best},
            "partial": vars(self.partial) | {"sums": dict(self.partial.sums)},
            "log": list(self.log),
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
        self.scaler.load_state_dict(saved["scaler"])
        torch.set_rng_state(saved["torch"].cpu())
        if saved["cuda"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(saved["cuda"].cpu(), self.device)
        self.epoch, self.step, self.best = progress["epoch"], progress["step"], progress["best"]
        self.log, self.partial = saved["log"], Partial(**saved["partial"])


def new_state(config: Experiment, device: torch.device) -> State:
    """A run at its start: the network on the device, the criterion bound to it. Raises UserError for combinations that cannot work."""
    torch.manual_seed(config.train.seed)  # of dropout
    network = build(config.model, seed=config.train.seed)
    criterion = Criterion(config.loss, network.outputs, config.model.name)
    for stage in config.train.stages:
        frozen_parameters(network, stage.optimizer.frozen_blocks)  # a later stage's mistake is told now
    network = network.to(device)
    average = copy.deepcopy(network).requires_grad_(False) if config.train.ema else None
    parallel.spread(network, config.train.sync_batchnorm)
    generator = torch.Generator().manual_seed(config.train.seed)
    scaler = torch.amp.GradScaler(device.type, enabled=config.train.precision == "fp16")
    forward = torch.compile(network) if config.train.compile else network
    return State(config, device, network, criterion, bins(config.model).to(device), generator, scaler, forward, average)


def autocast(config: Experiment, device: torch.device) -> torch.autocast:
    """The number format of a training step's forward pass."""
    kind = torch.float16 if config.train.precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, kind, enabled=config.train.precision != "float32")


def train_one_epoch(
    state: State,
    batches: Iterable[Columns],
    on_step: Callable[[int, int], None] | None = None,
    keep: Callable[[], None] | None = None,
    keep_every: int = 0,
) -> EpochResult:
    """What is left of an epoch (`state.partial`), one pass over `batches`; `on_step(step, images)` is called after each step, both counted in this
    epoch. `keep()` is called every `keep_every` steps of the run, when `state` can be kept.

    Raises FloatingPointError naming term and step when a loss is not finite.
    """
    _set_mode(state)
    partial, world = state.partial, parallel.rank_and_world()[1]
    started = time.perf_counter() - partial.seconds
    pending: list[dict[str, Tensor]] = []
    for columns in batches:
        pending.append(_train_step(state, columns))
        partial.steps, partial.images = partial.steps + 1, partial.images + len(columns["age"]) * world
        due = keep is not None and keep_every > 0 and state.step % keep_every == 0
        if due or len(pending) == _CHECK_EVERY:
            _collect(pending, partial.sums, state.step)
        if on_step is not None:
            on_step(partial.steps, partial.images)
        if keep is not None and due:
            partial.seconds = time.perf_counter() - started
            keep()
    _collect(pending, partial.sums, state.step)
    state.partial = Partial()
    means = {name: total / max(1, partial.steps) for name, total in partial.sums.items()}
    return EpochResult(means.pop("loss", float("nan")), means, partial.images, time.perf_counter() - started)


def _set_mode(state: State) -> None:
    state.network.train()
    if not any(parameter.requires_grad for parameter in state.network.body().parameters()):
        state.network.body().eval()  # a frozen body keeps its batch statistics too


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
        with autocast(state.config, state.device):
            cached.append(parallel.gathered(network.cache(batch).float()))
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
    config = state.config.train
    batch = to_tensors({name: columns[name] for name in _TRAINED if name in columns}, state.device)
    batch |= _augmented(state, batch)
    state.optimizer.zero_grad(set_to_none=True)
    said = [_backward(state, piece, config.accumulate) for piece in _pieces(batch, config.accumulate)]
    parallel.average(_gradients(state.network))
    state.scaler.unscale_(state.optimizer)
    if config.clip:
        nn.utils.clip_grad_norm_(state.network.parameters(), config.clip)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.schedule.step()
    state.step += 1
    if state.average is not None:
        _update_average(state.average, state.network, min(config.ema, (1 + state.step) / (10 + state.step)))
    return said[0] if len(said) == 1 else {name: torch.stack([each[name] for each in said]).mean(0) for name in said[0]}


def _backward(state: State, batch: dict[str, Tensor], pieces: int) -> dict[str, Tensor]:
    """Adds a piece's share of the gradient, of the loss over all workers; returns the loss and its terms."""
    with autocast(state.config, state.device):
        outputs = state.forward(batch)
    fields = {name: batch[name] for name in (*FIELDS, "weight") if name in batch}
    own = {**outputs, **fields, "bins": state.bins}
    if parallel.rank_and_world()[1] == 1:
        loss, terms = state.criterion(own)
    else:
        apart = state.network.whole_batch | {"bins"}
        # sorted: workers must gather in one order, and that of a set of names differs from process to process
        everything = {name: own[name] if name in apart else parallel.gathered(own[name]) for name in sorted(own)}
        loss, terms = state.criterion(everything, own if state.config.train.mining == "local" else None)
    state.scaler.scale(loss / pieces if pieces > 1 else loss).backward()  # type: ignore[no-untyped-call]
    return {"loss": loss.detach(), **terms}


def _pieces(batch: dict[str, Tensor], count: int) -> list[dict[str, Tensor]]:
    if count == 1:
        return [batch]
    return [dict(zip(batch, parts, strict=True)) for parts in zip(*(tensor.chunk(count) for tensor in batch.values()), strict=True)]


def _gradients(network: nn.Module) -> Iterator[Tensor]:
    return (parameter.grad for parameter in network.parameters() if parameter.grad is not None)


def _augmented(state: State, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the network trains on: `face` and `points`, or, of remembered features, those of the face or of its mirror image."""
    if "features" in batch:
        both_B2D = batch["features"]
        uniform_B = Draws.of(len(both_B2D), state.generator, *parallel.rank_and_world()).uniform(0, 1)
        side_B = (uniform_B < state.config.train.augment.flip).long().to(state.device)
        return {"face": both_B2D.take_along_dim(side_B[:, None, None], 1).squeeze(1)}
    face, points = augmented_faces(state, batch)
    return {"face": face, "points": points}


def augmented_faces(state: State, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Training faces (B, 3, S, S; channels last) and their points: alignment and random map in one warp, then random
    colours, then the same standardisation as in use."""
    align, augment, share = state.config.align, state.config.train.augment, parallel.rank_and_world()
    random_map = geometric_map(len(batch["points"]), align.size, augment, state.generator, *share).to(state.device)
    if "slot" in batch:
        random_map = random_map[batch["slot"]]
    if "aligned" in batch:  # with this same map
        faces, points = batch["aligned"], batch["points"]
    else:
        faces, points = align_faces(batch["canvas"], batch["points"], batch["box"], align, random_map)
    faces = standardize(photometric(faces, augment, state.generator, *share), align)
    return faces.contiguous(memory_format=torch.channels_last), points


@torch.no_grad()
def _update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """The decay climbs with the first steps, so that the random start is forgotten."""
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)
    for kept, current in zip(average.buffers(), network.buffers(), strict=True):
        kept.copy_(current)


def _collect(pending: list[dict[str, Tensor]], sums: dict[str, float], last_step: int) -> None:
    """Adds the waiting losses, the means over the workers, to the sums, in one transfer, and empties the list."""
    if not pending:
        return
    table = torch.stack([torch.stack([value.float() for value in terms.values()]) for terms in pending])
    parallel.average([table])
    table = table.cpu()
    for row, terms in enumerate(pending):
        check_finite(dict(zip(terms, table[row], strict=True)), last_step - len(pending) + 1 + row)
    for name, total in zip(pending[0], table.double().sum(0).tolist(), strict=True):
        sums[name] = sums.get(name, 0.0) + total
    pending.clear()


@torch.no_grad()
def make_gallery(state: State, batches: Iterable[Columns], most: int | None = None) -> Gallery | None:
    """The gallery (`decode.method: gallery`) of the faces of `batches`, or of the first `most`, as the judged network embeds them without
    augmentation; None if there is no face. Of several workers each embeds its own faces and all get all, in the order of the column `row`.
    Raises FloatingPointError if an embedding is not finite."""
    network, bf16 = state.judged.eval(), state.config.train.precision == "bf16"
    found: list[dict[str, Tensor]] = []
    for columns in _first(batches, most):
        batch = to_tensors({name: columns[name] for name in _GALLERY if name in columns}, state.device)
        found.append(gallery_rows(network, batch, state.config, bf16) | _rows(columns))
    found = _in_order(found)
    if not found:
        return None
    made = Gallery.of({name: tensor.to(state.device) for name, tensor in rows.items()} for rows in found)
    if not made.finite:
        raise FloatingPointError(f"step {state.step}: embeddings are not finite; lower the learning rate, or set train.clip")
    return made


def _rows(columns: Columns) -> dict[str, Tensor]:
    return {"row": torch.from_numpy(np.array(columns["row"]))} if "row" in columns else {}


def _in_order(own: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """What the workers found, batch by batch, as one table of all faces in the order of `row`; alone and without `row`, as it is."""
    if not own or "row" not in own[0]:
        found = own
    else:
        found = [{name: torch.cat([rows[name].cpu() for rows in own]) for name in own[0]}]
    everything = [table for tables in parallel.everybodys(found) for table in tables]
    if not everything or "row" not in everything[0]:
        return everything
    whole = {name: torch.cat([table[name] for table in everything]) for name in everything[0]}
    order = whole.pop("row").argsort(stable=True)
    return [{name: tensor[order] for name, tensor in whole.items()}]


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
    """True and predicted age (N,) of every face of `batches`, without augmentation or calibration, as the predictor would decode them; of
    several workers, of the faces of all, in the order of the column `row`.

    gallery: for `decode.method: gallery`. With a column `subject`, neighbours of a face's own subject are left out where the settings say so.
    """
    network, config = state.judged.eval(), state.config
    found: list[dict[str, Tensor]] = []
    for columns in batches:
        batch = to_tensors({name: columns[name] for name in _JUDGED if name in columns}, state.device)
        ages = decode(posterior(network, batch, config, config.train.precision == "bf16", gallery), config.model)
        known = torch.from_numpy(np.array(columns["age"], np.float32))
        found.append({"true": known, "said": ages.float().cpu()} | _rows(columns))
    found = _in_order(found)
    true, said = (torch.cat([torch.zeros(0), *(table[name] for table in found)]).numpy() for name in ("true", "said"))
    if not np.isfinite(said).all():
        raise FloatingPointError(f"step {state.step}: predicted ages are not finite; lower the learning rate, or set train.clip")
    return true, said
