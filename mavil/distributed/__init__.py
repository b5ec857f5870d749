"""Ranks and world: start-up, gather with gradient, exact variable-length gather, agreement on a flag.

Every function works without a process group (world size 1), so nothing above this room asks whether a run is distributed.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from mavil.distributed.joining import process_group as process_group
from mavil.distributed.standing import Standing as Standing
from mavil.distributed.standing import here as here


def rank() -> int:
    """This process's number, 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_main() -> bool:
    """True on the rank that writes files and talks to people."""
    return rank() == 0


class _GatherWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.num_rows = rows.shape[0]
        rows = rows.contiguous()
        joined = rows.new_empty(world_size() * rows.shape[0], *rows.shape[1:])
        dist.all_gather_into_tensor(joined, rows)
        return joined

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # Every rank's loss depends on these rows: their gradients are summed, then each rank keeps its own rows. The copy
        # matters: autograd may hand the same tensor to other branches of the graph, and all_reduce writes in place.
        summed = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed)
        start = rank() * ctx.num_rows
        return summed[start : start + ctx.num_rows]


def gather_with_gradient(rows: Tensor) -> Tensor:
    """``[b, ...]`` on each of R ranks -> ``[R*b, ...]`` in rank order; the backward pass sums over ranks.

    With own rows against all columns and DistributedDataParallel's mean this equals the gradient of the one-process loss on
    the joined batch. All ranks must hold the same ``b``.
    """
    if world_size() == 1:
        return rows
    joined: Tensor = _GatherWithGradient.apply(rows)
    return joined


def gather_objects(value: Any) -> list[Any]:
    """Every rank's value, in rank order, on every rank. For results of different lengths (evaluation), not for training."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast_object(value: Any) -> Any:
    """Rank 0's value on every rank."""
    if world_size() == 1:
        return value
    holder = [value]
    dist.broadcast_object_list(holder, src=0)
    return holder[0]


def agree(flag: bool) -> bool:
    """True only where every rank says True."""
    if world_size() == 1:
        return flag
    return agree_all(torch.tensor([flag], device=_device_of_group()))[0]


def agree_all(flags: Tensor) -> list[bool]:
    """``[n]`` bool on the device of the run -> for each flag whether every rank says True; costs one device read."""
    return [bool(vote) for vote in agreed(flags).tolist()]


def agreed(flags: Tensor) -> Tensor:
    """``[n]`` bool on the device of the run -> ``[n]`` int32 there, 1 where every rank says True; nothing waits for it."""
    votes = flags.int()
    if world_size() > 1:
        dist.all_reduce(votes, op=dist.ReduceOp.MIN)
    return votes


def _device_of_group() -> torch.device:
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


def mean_over_ranks(values: Tensor) -> Tensor:
    """Element-wise mean of a tensor over ranks, for logging."""
    if world_size() == 1:
        return values
    values = values.clone()
    dist.all_reduce(values)
    return values / world_size()


def barrier() -> None:
    """Wait for every rank."""
    if world_size() > 1:
        dist.barrier()
