"""The training loop in plain torch, without Ray: batches of faces in, trained weights and an
epoch's losses out.

A batch is a dict of numpy columns: `canvas` (B, C, C, 3) uint8, `points` (B, 5, 2), `box` (B, 4),
`age` (B,); see `ageray.faces.canvases`. Some batches have other columns:

* `features` (B, 2, D) instead of the first three: those of face and mirror image, for a network
  whose frozen backbone was taken out (`ageray.train.in_memory.frozen`).
* `aligned` (B, S, S, 3) float32 and `points`: faces that are aligned already (`align.placement:
  actors`).
* `slot` (B,): the place in the batch whose random map the face takes
  (`ageray.train.sampler.OrderedBatches`).

With torch.distributed each of N workers brings an equal part of every batch, worker 0's faces
first. Together they compute what one worker computes of the whole batch: the same random changes
and dropout, the loss of the whole batch, and gradients averaged by DistributedDataParallel.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ageray import distributed
from ageray.experiment import Align
from ageray.faces.align import align_faces, standardize
from ageray.faces.augment import Draws, geometric_map, photometric
from ageray.faces.canvases import to_tensors
from ageray.losses.criterion import check_finite
from ageray.models.decode import classifier_posterior
from ageray.train.state import Columns, EpochProgress, State, autocast

_CHECK_EVERY = 20  # steps between two checks of the losses: each check waits for the device

_COLUMNS = (
    "canvas",
    "aligned",
    "points",
    "box",
    "slot",
    "features",
    "age",
    "age_std",
    "gender",
    "weight",
    "teacher",
)


@dataclass
class EpochResult:
    """Means over an epoch's steps: the weighted `loss` and each unweighted term; also images of all
    workers, seconds.
    """

    loss: float
    terms: dict[str, float]
    images: int
    seconds: float


def train_one_epoch(
    state: State,
    batches: Iterable[Columns],
    report_step: Callable[[int, int], None] | None = None,
    save_checkpoint: Callable[[], None] | None = None,
    checkpoint_steps: int = 0,
) -> EpochResult:
    """Trains the rest of an epoch (after `state.epoch_progress`), one pass over `batches`.

    report_step: called after each step with the steps and images of this epoch so far.
    save_checkpoint: called every `checkpoint_steps` steps of the run, when `state` can be saved.
    Raises FloatingPointError, which names term and step, for a loss that is not finite.
    """
    _set_mode(state)
    progress, world = state.epoch_progress, distributed.rank_and_world()[1]
    started = time.perf_counter() - progress.seconds
    pending: list[dict[str, Tensor]] = []
    for columns in batches:
        pending.append(_train_step(state, columns))
        progress.steps += 1
        progress.images += len(columns["age"]) * world
        due = checkpoint_steps > 0 and state.step % checkpoint_steps == 0
        if due or len(pending) == _CHECK_EVERY:
            _add_losses(pending, progress.sums, state.step)
        if report_step is not None:
            report_step(progress.steps, progress.images)
        if due and save_checkpoint is not None:
            progress.seconds = time.perf_counter() - started
            save_checkpoint()
    _add_losses(pending, progress.sums, state.step)
    state.epoch_progress = EpochProgress()
    means = {name: total / max(1, progress.steps) for name, total in progress.sums.items()}
    loss = means.pop("loss", float("nan"))
    return EpochResult(loss, means, progress.images, time.perf_counter() - started)


def _set_mode(state: State) -> None:
    state.network.train()
    backbone = state.network.get_backbone()
    if not any(parameter.requires_grad for parameter in backbone.parameters()):
        backbone.eval()  # a frozen backbone keeps its batch statistics too


@torch.no_grad()
def init_network(state: State, batches: Iterable[Columns]) -> None:
    """Before the first step, shows the network `num_init_faces` augmented training faces if it asks
    for any.
    """
    network = state.network
    count = network.num_init_faces
    if not count:
        return
    network.eval()
    features: list[Tensor] = []
    for columns in batches:
        batch = _to_device(state, columns)
        batch |= augmented(state, batch)
        with autocast(state.config, state.device):
            own_BD = network.init_features(batch)
        features.append(distributed.all_gather(own_BD.float()))
        if sum(map(len, features)) >= count:
            break
    if not features:  # the epoch that follows reports that there is no face
        return
    network.init_from_features(torch.cat(features)[:count], state.generator)
    if state.ema_network is not None:
        state.ema_network.load_state_dict(network.state_dict())


def _to_device(state: State, columns: Columns) -> dict[str, Tensor]:
    arrays = {}
    for name in _COLUMNS:
        if name in columns:
            arrays[name] = columns[name]
    return to_tensors(arrays, state.device)


def _train_step(state: State, columns: Columns) -> dict[str, Tensor]:
    """One step of the optimiser; returns the loss and its terms, each the mean over the pieces of
    the batch.
    """
    assert state.optimizer is not None
    assert state.schedule is not None
    config = state.config.train
    batch = _to_device(state, columns)
    batch |= augmented(state, batch)
    if state.teacher is not None:
        batch["teacher"] = _teacher_posterior(state, batch)
    state.optimizer.zero_grad(set_to_none=True)
    pieces = _pieces(batch, config.accumulate)
    losses = []
    for number, piece in enumerate(pieces, 1):
        losses.append(state.backward(piece, len(pieces), last=number == len(pieces)))
    state.scaler.unscale_(state.optimizer)
    if config.clip:
        nn.utils.clip_grad_norm_(state.network.parameters(), config.clip)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.schedule.step()
    state.step += 1
    if state.ema_network is not None:
        decay = min(config.ema, (1 + state.step) / (10 + state.step))
        _update_ema(state.ema_network, state.network, decay)
    return _means(losses)


@torch.no_grad()
def _teacher_posterior(state: State, batch: dict[str, Tensor]) -> Tensor:
    """The posterior of `train.teacher` for the augmented faces: (B, K)."""
    assert state.teacher is not None
    with autocast(state.config, state.device):
        return classifier_posterior(state.teacher(batch))


def _means(losses: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Each loss, averaged over the pieces of a batch."""
    if len(losses) == 1:
        return losses[0]
    means = {}
    for name in losses[0]:
        means[name] = torch.stack([piece[name] for piece in losses]).mean(0)
    return means


def _pieces(batch: dict[str, Tensor], count: int) -> list[dict[str, Tensor]]:
    """The batch cut into `count` equal pieces."""
    pieces: list[dict[str, Tensor]] = [{} for _ in range(count)]
    for name, tensor in batch.items():
        for piece, rows in zip(pieces, tensor.chunk(count), strict=True):
            piece[name] = rows
    return pieces


def augmented(state: State, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the network trains on: `face` and `points`; of precomputed features, those of face or
    mirror image.
    """
    if "features" in batch:
        both_B2D = batch["features"]
        uniform_B = Draws.of(len(both_B2D), state.generator, *distributed.rank_and_world()).uniform(0, 1)
        side_B = (uniform_B < state.config.train.augment.flip).long().to(state.device)
        return {"face": both_B2D.take_along_dim(side_B[:, None, None], 1).squeeze(1)}
    face, points = augmented_faces(state, batch)
    return {"face": face, "points": points}


def augmented_faces(state: State, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Training faces (B, 3, S, S; channels last) and their points (B, 5, 2).

    Alignment and the random map are one warp. Random colours follow, then the standardisation that
    the predictor uses too.
    """
    align, augment = step_align(state), state.config.train.augment
    share = distributed.rank_and_world()
    random_map = geometric_map(len(batch["points"]), align.size, augment, state.generator, *share)
    random_map = random_map.to(state.device)
    if "slot" in batch:
        random_map = random_map[batch["slot"]]
    if "aligned" in batch:  # the actor has drawn the same map
        faces, points = batch["aligned"], batch["points"]
    else:
        faces, points = align_faces(batch["canvas"], batch["points"], batch["box"], align, random_map)
    faces = standardize(photometric(faces, augment, state.generator, *share), align)
    return faces.contiguous(memory_format=torch.channels_last), points


def step_align(state: State) -> Align:
    """The alignment of this step: that of the experiment, at the side that `train.sizes` gives."""
    align, sizes = state.config.align, state.config.train.sizes
    if not sizes:
        return align
    number = int(torch.randint(len(sizes), (), generator=state.generator))
    return align.model_copy(update={"size": sizes[number]})


@torch.no_grad()
def _update_ema(ema_network: nn.Module, network: nn.Module, decay: float) -> None:
    """One step of the moving average; buffers are copied. The caller lets the decay rise, to forget
    the random start.
    """
    torch._foreach_lerp_(list(ema_network.parameters()), list(network.parameters()), 1 - decay)
    if ema_buffers := list(ema_network.buffers()):
        torch._foreach_copy_(ema_buffers, list(network.buffers()))


def _add_losses(pending: list[dict[str, Tensor]], sums: dict[str, float], last_step: int) -> None:
    """Adds the losses of the steps in `pending`, averaged over the workers, to `sums`, in one
    transfer; empties the list.
    """
    if not pending:
        return
    rows = []
    for terms in pending:
        rows.append(torch.stack([value.float() for value in terms.values()]))
    table = torch.stack(rows)
    distributed.average([table])
    table = table.cpu()
    for row, terms in enumerate(pending):
        check_finite(dict(zip(terms, table[row], strict=True)), last_step - len(pending) + 1 + row)
    for name, total in zip(pending[0], table.double().sum(0).tolist(), strict=True):
        sums[name] = sums.get(name, 0.0) + total
    pending.clear()
