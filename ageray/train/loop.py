"""The training loop in plain torch: what a run carries from step to step, one epoch, one validation. Ray is not needed here.

Batches are dicts of numpy columns `canvas` (B, C, C, 3) uint8, `points`, `box`, `age`; see `ageray.faces.canvases`. For a network whose frozen
body was taken away (`ageray.train.in_memory.frozen`), `features` (B, 2, D) of face and mirror image stand in the place of the first three.

With a column `slot` (B,), a face takes the random map of that place of the batch (`ageray.train.sampler.OrderedBatches`).

Where faces come aligned already (`align.placement: actors`), `aligned` (B, S, S, 3) float32 and their `points` stand there.

Where torch.distributed runs, each of N workers brings its part of every batch, worker 0's faces first, all equally many; together they do what
one worker does with the whole batch: the same random changes and dropout, the loss of the whole batch, the mean of the gradients.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ageray import distributed
from ageray.faces.align import align_faces, standardize
from ageray.faces.augment import Draws, geometric_map, photometric
from ageray.faces.canvases import to_tensors
from ageray.losses.criterion import FIELDS, check_finite
from ageray.models.decode import classifier_posterior
from ageray.train.state import Columns, Partial, State, autocast

_CHECK_EVERY = 20  # steps between looks at the losses: each look waits for the device

_TRAINED = ("canvas", "aligned", "points", "box", "slot", "features", "age", "age_std", "gender", "weight")


@dataclass
class EpochResult:
    """Means over an epoch's steps: the weighted `loss`, each unweighted term; images seen, seconds."""

    loss: float
    terms: dict[str, float]
    images: int
    seconds: float


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
    partial, world = state.partial, distributed.rank_and_world()[1]
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
    """Shows a network that asks for it (`num_init_faces`) so many augmented training faces before its first step; else reads nothing."""
    wanted, network = state.network.num_init_faces, state.network
    if not wanted:
        return
    network.eval()
    cached: list[Tensor] = []
    for columns in batches:
        batch = to_tensors({name: columns[name] for name in _TRAINED if name in columns}, state.device)
        batch |= _augmented(state, batch)
        with autocast(state.config, state.device):
            cached.append(distributed.all_gather(network.cache(batch).float()))
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
    distributed.average(_gradients(state.network))
    state.scaler.unscale_(state.optimizer)
    if config.clip:
        nn.utils.clip_grad_norm_(state.network.parameters(), config.clip)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.schedule.step()
    state.step += 1
    if state.average is not None:
        _update_average(state.average, state.network, min(config.ema, (1 + state.step) / (10 + state.step)))
    return (
        said[0]
        if len(said) == 1
        else {name: torch.stack([each[name] for each in said]).mean(0) for name in said[0]}
    )


def _backward(state: State, batch: dict[str, Tensor], pieces: int) -> dict[str, Tensor]:
    """Adds a piece's share of the gradient, of the loss over all workers; returns the loss and its terms."""
    with autocast(state.config, state.device):
        outputs = state.forward(batch)
    if state.teacher is not None:
        batch = batch | {"teacher": _taught(state, batch)}
    fields = {name: batch[name] for name in (*FIELDS, "weight") if name in batch}
    own = {**outputs, **fields, "bins": state.bins}
    if distributed.rank_and_world()[1] == 1:
        loss, terms = state.criterion(own)
    else:
        apart = state.network.whole_batch | {"bins"}
        # sorted: workers must gather in one order, and that of a set of names differs from process to process
        everything = {
            name: own[name] if name in apart else distributed.all_gather(own[name]) for name in sorted(own)
        }
        loss, terms = state.criterion(everything, own if state.config.train.mining == "local" else None)
    state.scaler.scale(loss / pieces if pieces > 1 else loss).backward()  # type: ignore[no-untyped-call]
    return {"loss": loss.detach(), **terms}


@torch.no_grad()
def _taught(state: State, batch: dict[str, Tensor]) -> Tensor:
    """The teacher's posterior of the augmented faces: (B, K)."""
    assert state.teacher is not None
    with autocast(state.config, state.device):
        return classifier_posterior(state.teacher(batch))


def _pieces(batch: dict[str, Tensor], count: int) -> list[dict[str, Tensor]]:
    if count == 1:
        return [batch]
    return [
        dict(zip(batch, parts, strict=True))
        for parts in zip(*(tensor.chunk(count) for tensor in batch.values()), strict=True)
    ]


def _gradients(network: nn.Module) -> Iterator[Tensor]:
    return (parameter.grad for parameter in network.parameters() if parameter.grad is not None)


def _augmented(state: State, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the network trains on: `face` and `points`, or, of remembered features, those of the face or of its mirror image."""
    if "features" in batch:
        both_B2D = batch["features"]
        uniform_B = Draws.of(len(both_B2D), state.generator, *distributed.rank_and_world()).uniform(0, 1)
        side_B = (uniform_B < state.config.train.augment.flip).long().to(state.device)
        return {"face": both_B2D.take_along_dim(side_B[:, None, None], 1).squeeze(1)}
    face, points = augmented_faces(state, batch)
    return {"face": face, "points": points}


def augmented_faces(state: State, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Training faces (B, 3, S, S; channels last) and their points: alignment and random map in one warp, then random
    colours, then the same standardisation as in use."""
    align, augment, share = state.config.align, state.config.train.augment, distributed.rank_and_world()
    random_map = geometric_map(len(batch["points"]), align.size, augment, state.generator, *share).to(
        state.device
    )
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
    distributed.average([table])
    table = table.cpu()
    for row, terms in enumerate(pending):
        check_finite(dict(zip(terms, table[row], strict=True)), last_step - len(pending) + 1 + row)
    for name, total in zip(pending[0], table.double().sum(0).tolist(), strict=True):
        sums[name] = sums.get(name, 0.0) + total
    pending.clear()
