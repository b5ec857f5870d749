"""Ranks and world: start-up, gather with gradient, exact variable-length gather, agreement on a flag.

Every function works without a process group (world size 1), so nothing above this room asks whether a run is distributed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    """This process's number, 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_main() -> bool:
    """True on the rank that writes files and talks to people."""
    return rank() == 0


def local_rank() -> int:
    """This process's number on its machine, as torchrun and submitit set it."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def process_group(device: torch.device, timeout_minutes: float = 30.0) -> Iterator[None]:
    """Join the process group that torchrun or submitit announce in the environment; nothing to join means one process.

    Raises:
        RuntimeError: joining failed. A run that meant to be distributed never carries on alone.
    """
    if dist.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, timeout=timedelta(minutes=timeout_minutes))
    except Exception as error:
        where = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
        raise RuntimeError(
            f"rank {os.environ.get('RANK', '?')} of {os.environ['WORLD_SIZE']} could not join the process group at "
            f"{where} over {backend}: {error}"
        ) from error
    try:
        yield
    finally:
        dist.destroy_process_group()


class _GatherWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:  # noqa: D102
        ctx.num_rows = rows.shape[0]
        pieces = [torch.empty_like(rows) for _ in range(world_size())]
        dist.all_gather(pieces, rows.contiguous())
        return torch.cat(pieces)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override] # noqa: D102
        # Every rank's loss depends on these rows: their gradients are summed, then each rank keeps its own rows.
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        start = rank() * ctx.num_rows
        return gradient[start : start + ctx.num_rows]


def gather_with_gradient(rows: Tensor) -> Tensor:
    """``[b, ...]`` on each of R ranks -> ``[R*b, ...]`` in rank order; the backward pass sums over ranks.

    With own rows against all columns and DistributedDataParallel's mean this equals the gradient of the one-process loss on
    the joined batch. All ranks must hold the same ``b``.
    """
    return rows if world_size() == 1 else _GatherWithGradient.apply(rows)


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


def agree(flag: bool, device: torch.device | str = "cpu") -> bool:
    """True only where every rank says True."""
    if world_size() == 1:
        return flag
    vote = torch.tensor(int(flag), device=device)
    dist.all_reduce(vote, op=dist.ReduceOp.MIN)
    return bool(vote.item())


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
