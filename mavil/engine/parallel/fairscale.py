"""Gradients and moments cut over ranks, weights whole: fairscale's sharded optimizer (OSS) and ShardedDataParallel.

For clusters that are set up for fairscale 0.4.13, its last release; torch's ``fsdp`` saves more and is maintained.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from fairscale.nn.data_parallel import ShardedDataParallel
from fairscale.optim import OSS
from torch import Tensor, nn

from mavil import distributed
from mavil.engine.blocks import stacks_of
from mavil.engine.optim import ADAM_EPS, adamw_settings, add_moments, optimizer_groups
from mavil.engine.parallel.base import Groups, OptimizerState, Parallel, norm_over_ranks


class CutOptimizer(Parallel):
    """Each trained parameter has one rank that keeps its gradient and moments, updates it and sends it to the others."""

    wrapped: ShardedDataParallel
    optimizer: OSS

    def __init__(
        self,
        model: nn.Module,
        groups: Groups,
        betas: tuple[float, float],
        device: torch.device,
        eps: float = ADAM_EPS,
    ) -> None:
        optimizer = OSS(optimizer_groups(groups(), model), torch.optim.AdamW, **adamw_settings(betas, eps))
        add_moments(optimizer.optim)
        self._owner = {
            id(parameter): rank
            for rank, own_groups in enumerate(optimizer.partition_parameters())
            for group in own_groups
            for parameter in group["params"]
        }
        for block in (block for stack in stacks_of(model) for block in stack):
            # Gradients are sent in the order in which they are ready. It must be the same on a rank that leaves a block out by
            # chance, or gradients of different parameters would be added.
            block.always_computed = True  # type: ignore[assignment]
        # No buckets: they keep gradients on every rank, and are sent, full or not, where fairscale thinks the backward pass ends
        # (see averaging). Buffers are constant tables here; which parameters are trained does not change during a run.
        wrapped = ShardedDataParallel(
            model, optimizer, reduce_buffer_size=0, broadcast_buffers=False, auto_refresh_trainable=False
        )
        super().__init__(model, wrapped, optimizer, device)

    @property
    def own_optimizer(self) -> torch.optim.Optimizer:
        """AdamW over the parameters this rank owns."""
        optimizer = self.optimizer.optim
        assert isinstance(optimizer, torch.optim.Optimizer)
        return optimizer

    @contextmanager
    def averaging(self, is_last: bool) -> Iterator[None]:
        """In all but the last micro-step a rank keeps whole gradients of its own clips."""
        if not is_last:
            with self.wrapped.no_sync():
                yield
            return
        yield
        # fairscale waits at the end of the backward pass that computed the first gradient. Where that is a checkpointed block's
        # own pass inside the large one, gradients that came later may still be on their way.
        self.wrapped._consume_work_handles()

    def gradients(self) -> list[Tensor]:
        """The gradients of the parameters this rank owns."""
        rank = distributed.rank()
        return [p.grad for p in self.trained.values() if p.grad is not None and self._owner[id(p)] == rank]

    def gradient_norm(self) -> Tensor:
        """As everywhere."""
        return norm_over_ranks(self.gradients(), self.device)

    def optimizer_state(self) -> OptimizerState:
        """As everywhere, one tensor at a time, in host memory."""
        gathered: OptimizerState = {}
        for name, parameter in self.trained.items():
            own = self.own_optimizer.state.get(parameter) or _empty_moments(parameter)
            entry: dict[str, Tensor] = {}
            for key in ("step", "exp_avg", "exp_avg_sq"):
                dist.broadcast(own[key], src=self._owner[id(parameter)])
                if distributed.is_main():
                    entry[key] = own[key].cpu()
            gathered[name] = entry
        return gathered if distributed.is_main() else {}


def _empty_moments(parameter: nn.Parameter) -> dict[str, Tensor]:
    """Room for what the owner sends."""
    moments = torch.empty_like(parameter, requires_grad=False)
    return {
        "step": torch.empty((), device=parameter.device),
        "exp_avg": moments,
        "exp_avg_sq": torch.empty_like(moments),
    }
