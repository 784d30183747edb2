"""Collectives with gradients, so that N workers train as one.

With one worker every function is the identity.

A batch of G faces is cut into N equal parts; worker 0 has the first rows. Every worker computes the
loss of the whole batch, and the gradients of the parameters are averaged over the workers
(`data_parallel`). A gathered tensor therefore takes the sum of all workers' gradients, not their
mean.

`torch.distributed.nn.functional.all_gather` and `all_reduce` have the same values and gradients as
`all_gather` and `all_reduce_sum` (tests/train/test_workers.py compares them). torch 2.14 deprecates
both and offers only private modules instead, so the two stay here.

Shape letters: B faces of this worker, G faces of the whole batch, D channels.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel


def rank_and_world() -> tuple[int, int]:
    """This worker's rank and the number of workers; 0 and 1 without torch.distributed."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


class _Gather(torch.autograd.Function):
    """Forward: the rows of all workers, by rank. Backward: the sum of all workers' gradients of
    this worker's rows.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        ctx.rows = len(own)
        parts = []
        for _ in range(distributed.get_world_size()):
            parts.append(torch.empty_like(own, memory_format=torch.contiguous_format))
        distributed.all_gather(parts, own.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total.narrow(0, distributed.get_rank() * ctx.rows, ctx.rows)


def all_gather(own: Tensor) -> Tensor:
    """The rows of this worker, (B, ...), to those of all workers, (G, ...), by rank, with gradient.

    Every worker must bring the same number of rows.
    """
    if rank_and_world()[1] == 1:
        return own
    rows: Tensor = _Gather.apply(own)
    return rows


class _Sum(torch.autograd.Function):
    """Forward: the sum over the workers. Backward: the sum of their gradients, since every loss
    depends on the sum.
    """

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
    """The sum of a tensor over all workers, with gradient."""
    if rank_and_world()[1] == 1:
        return own
    total: Tensor = _Sum.apply(own)
    return total


@torch.no_grad()
def average(tensors: Iterable[Tensor]) -> None:
    """Replaces each tensor by its mean over the workers, in place; tensors of one type are sent
    together.
    """
    world = rank_and_world()[1]
    if world == 1:
        return
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_type.setdefault(tensor.dtype, []).append(tensor)
    for members in by_type.values():
        flat = torch.cat([tensor.reshape(-1) for tensor in members])
        distributed.all_reduce(flat)
        flat /= world
        means = torch.split(flat, [tensor.numel() for tensor in members])
        for tensor, mean in zip(members, means, strict=True):
            tensor.copy_(mean.view_as(tensor))


def all_gather_object(own: Any) -> list[Any]:
    """A plain value, or CPU tensors, of every worker, by rank. Sizes may differ between workers."""
    world = rank_and_world()[1]
    if world == 1:
        return [own]
    values: list[Any] = [None] * world
    distributed.all_gather_object(values, own)
    return values


def data_parallel(module: nn.Module) -> nn.Module:
    """`module` in DistributedDataParallel: its backward pass averages the parameter gradients over
    the workers.

    Buckets of gradients are sent while the rest of the backward pass runs. Only parameters that
    require a gradient now are averaged, so wrap again after some are frozen or released. A
    parameter that the loss does not reach keeps no gradient, as with one worker. Buffers are left
    alone: see `prepare_for_distributed` and `average`.
    """
    if rank_and_world()[1] == 1:
        return module
    with warnings.catch_warnings():
        # torch 2.14 has a new name for `broadcast_buffers`, which torch 2.11 does not know
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(module, broadcast_buffers=False, find_unused_parameters=True)


def unwrap(module: nn.Module) -> nn.Module:
    """The module that was given to `data_parallel`."""
    if isinstance(module, DistributedDataParallel):
        inner: nn.Module = module.module
        return inner
    return module


def gradients_stay_local(module: nn.Module) -> AbstractContextManager[None]:
    """Within this context the backward passes of a `data_parallel` module add to the gradients of
    this worker only.

    The next backward pass outside of it averages what has been added up. A plain module is not
    changed.
    """
    if isinstance(module, DistributedDataParallel):
        return module.no_sync()
    return nullcontext()


class Dropout(nn.Dropout):
    """Dropout that N workers apply as one worker would.

    Every worker draws the mask of the whole batch and uses its own rows. The workers' generators
    must be in the same state.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Any shape, faces first."""
        if not self.training or self.p == 0:
            return input
        rank, world = rank_and_world()
        mask = torch.empty((world, *input.shape), dtype=input.dtype, device=input.device)
        own = mask.bernoulli_(1 - self.p)[rank]
        return input * own.div_(1 - self.p)


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation with the mean and variance of the whole batch.

    torch's SyncBatchNorm computes the same, but only on GPUs.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        """(B, D, ...) to the same shape and type; in eval mode as torch's own layer."""
        if not self.training:
            return super().forward(input)
        dims, shape = [0, *range(2, input.ndim)], [1, -1, *[1] * (input.ndim - 2)]
        values = input.float()
        count = values.numel() // values.shape[1] * rank_and_world()[1]
        mean_D = all_reduce_sum(values.sum(dims)) / count
        centred = values - mean_D.view(shape)
        variance_D = all_reduce_sum(centred.square().sum(dims)) / count
        self._update_running(mean_D.detach(), variance_D.detach() * (count / max(1, count - 1)))
        normal = centred * (variance_D + self.eps).rsqrt().view(shape)
        if self.affine:
            normal = normal * self.weight.view(shape) + self.bias.view(shape)
        return normal.to(input.dtype)

    @torch.no_grad()
    def _update_running(self, mean_D: Tensor, variance_D: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        share = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean_D.to(self.running_mean), share)
        self.running_var.lerp_(variance_D.to(self.running_var), share)


def prepare_for_distributed(network: nn.Module, sync_batchnorm: bool) -> None:
    """Replaces dropout, and batch normalisation if `sync_batchnorm`, by layers that see the whole
    batch, in place.

    Names of parameters and buffers stay. With one worker nothing changes.
    """
    if rank_and_world()[1] == 1:
        return
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Dropout:
                setattr(parent, name, Dropout(child.p))
            elif sync_batchnorm and isinstance(child, nn.modules.batchnorm._BatchNorm):
                setattr(parent, name, _synchronised(child))


def _synchronised(norm: nn.modules.batchnorm._BatchNorm) -> nn.Module:
    """The same layer with statistics over all workers; on a GPU torch's own, which reads the input
    once less.
    """
    if norm.weight is not None and norm.weight.is_cuda:
        layer: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(norm)  # type: ignore[no-untyped-call]
        return layer
    ours = BatchNorm(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    ours.load_state_dict(norm.state_dict())
    ours.train(norm.training)
    return ours
