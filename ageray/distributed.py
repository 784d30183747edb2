"""Several workers as one, over torch.distributed: what each of them knows of the whole batch, with the right gradient. Alone, nothing changes.

A global batch of G faces is cut into equal runs, worker 0's faces first. Every worker computes the loss of the whole batch and the workers'
parameter gradients are averaged, so what crosses workers on the way back is all_reduce_sum: `Gather` and `Sum` below.
Shape letters: B faces of this worker, G faces of the whole batch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, distributed, nn

_BUCKET = 1 << 23  # gradients averaged at once, in numbers: 32 MB of float32


def rank_and_world() -> tuple[int, int]:
    """This worker's number and how many there are; alone, 0 and 1."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


class _Gather(torch.autograd.Function):
    """The rows of all workers, in their order, on every worker. Each worker's own rows take the sum of all workers' gradients, so that a
    mean of the workers' parameter gradients, as DistributedDataParallel takes, is the gradient of the mean of their losses."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        ctx.rows = len(own)
        parts = [
            torch.empty_like(own, memory_format=torch.contiguous_format)
            for _ in range(distributed.get_world_size())
        ]
        distributed.all_gather(parts, own.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total.narrow(0, distributed.get_rank() * ctx.rows, ctx.rows)


def all_gather(own: Tensor) -> Tensor:
    """Rows of this worker, (B, ...), to those of all workers, (G, ...); alone, the same. Every worker must bring equally many rows."""
    if rank_and_world()[1] == 1:
        return own
    rows: Tensor = _Gather.apply(own)
    return rows


class _Sum(torch.autograd.Function):
    """The sum over workers; each takes the sum of all workers' gradients, as every one of their losses depends on it."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        total = own.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total


def all_reduce_sum(own: Tensor) -> Tensor:
    """The sum of a tensor over all workers, with gradient; alone, the same."""
    if rank_and_world()[1] == 1:
        return own
    total: Tensor = _Sum.apply(own)
    return total


@torch.no_grad()
def average(tensors: Iterable[Tensor]) -> None:
    """Puts the mean over the workers into each tensor, in place; those of one type together, 32 MB at once. Alone, does nothing."""
    world = rank_and_world()[1]
    if world == 1:
        return
    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        distributed.all_reduce(flat)
        flat /= world
        for tensor, mean in zip(
            bucket, torch.split(flat, [tensor.numel() for tensor in bucket]), strict=True
        ):
            tensor.copy_(mean.view_as(tensor))


def _buckets(tensors: Iterable[Tensor]) -> Iterable[list[Tensor]]:
    open_buckets: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        bucket = open_buckets.setdefault(tensor.dtype, [])
        bucket.append(tensor)
        if sum(member.numel() for member in bucket) >= _BUCKET:
            yield open_buckets.pop(tensor.dtype)
    yield from open_buckets.values()


def all_gather_object(own: Any) -> list[Any]:
    """A plain value or CPU tensors of every worker, in their order. Workers may bring unequal amounts."""
    world = rank_and_world()[1]
    if world == 1:
        return [own]
    found: list[Any] = [None] * world
    distributed.all_gather_object(found, own)
    return found


class Dropout(nn.Dropout):
    """Dropout whose mask is drawn for the whole batch on every worker, which takes its rows: where the workers' generators are in one state,
    they drop what one worker would."""

    def forward(self, input: Tensor) -> Tensor:
        """Any shape, faces first."""
        if not self.training or self.p == 0:
            return input
        rank, world = rank_and_world()
        kept = torch.empty((world, *input.shape), dtype=input.dtype, device=input.device).bernoulli_(
            1 - self.p
        )[rank]
        return input * kept.div_(1 - self.p)


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation with the mean and variance of the whole batch. torch's SyncBatchNorm does the same, on GPUs only."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        """(B, D, ...); in eval mode as without workers."""
        if not self.training:
            return super().forward(input)
        dims, shape = [0, *range(2, input.ndim)], [1, -1, *[1] * (input.ndim - 2)]
        values = input.float()
        count = values.numel() // values.shape[1] * rank_and_world()[1]
        mean_D = all_reduce_sum(values.sum(dims)) / count
        centred = values - mean_D.view(shape)
        variance_D = all_reduce_sum(centred.square().sum(dims)) / count
        self._remember(mean_D.detach(), variance_D.detach() * (count / max(1, count - 1)))
        normal = centred * (variance_D + self.eps).rsqrt().view(shape)
        if self.affine:
            normal = normal * self.weight.view(shape) + self.bias.view(shape)
        return normal.to(input.dtype)

    @torch.no_grad()
    def _remember(self, mean_D: Tensor, variance_D: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        share = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean_D.to(self.running_mean), share)
        self.running_var.lerp_(variance_D.to(self.running_var), share)


def spread(network: nn.Module, sync_batchnorm: bool) -> None:
    """Makes a network ready to be one of several equal ones: its dropout, and where asked for its batch statistics, are those of the whole
    batch. Changes it in place; names of parameters stay. Alone, does nothing."""
    if rank_and_world()[1] == 1:
        return
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Dropout:
                setattr(parent, name, Dropout(child.p))
            elif sync_batchnorm and isinstance(child, nn.modules.batchnorm._BatchNorm):
                setattr(parent, name, _synchronised(child))


def _synchronised(norm: nn.modules.batchnorm._BatchNorm) -> nn.Module:
    """The same layer with statistics over all workers; torch's own on a GPU, where it needs one pass less."""
    if norm.weight is not None and norm.weight.is_cuda:
        made: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(norm)  # type: ignore[no-untyped-call]
        return made
    ours = BatchNorm(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    ours.load_state_dict(norm.state_dict())
    ours.train(norm.training)
    return ours
