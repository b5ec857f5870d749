"""Weights, gradients and moments cut over ranks: torch's ``fully_shard``, block by block.

A block's weights are gathered shortly before it runs and given up after; what belongs to no block is gathered once per pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from mavil import distributed
from mavil.engine.blocks import stacks_of
from mavil.engine.optim import ADAM_EPS, build_optimizer
from mavil.engine.parallel.base import Groups, Parallel, copy_from_rank_0, norm_over_ranks


class CutModel(Parallel):
    """Each parameter is cut along its first dimension; a rank may hold no row of a short one.

    Parameters without a dimension cannot be cut: every rank keeps a whole copy and their gradients are averaged after the
    backward pass.
    """

    has_whole_weights = False

    def __init__(
        self,
        model: nn.Module,
        groups: Groups,
        betas: tuple[float, float],
        device: torch.device,
        eps: float = ADAM_EPS,
    ) -> None:
        copy_from_rank_0(model)
        mesh = init_device_mesh(device.type, (distributed.world_size(),))
        whole = {parameter for parameter in model.parameters() if parameter.ndim == 0}
        stacks = stacks_of(model)
        for block in [block for stack in stacks for block in stack]:
            fully_shard(block, mesh=mesh, ignored_params=whole)
        fully_shard(model, mesh=mesh, ignored_params=whole)
        self._root = cast(FSDPModule, model)
        _name_the_root(self._root)
        _gather_backwards(self._root, stacks)
        super().__init__(model, model, build_optimizer(groups(), betas, model, eps), device)

    @contextmanager
    def averaging(self, is_last: bool) -> Iterator[None]:
        """In all but the last micro-step a rank keeps whole gradients of its own clips."""
        self._root.set_requires_gradient_sync(is_last)
        yield
        if is_last:
            for gradient in self._whole_gradients():
                dist.all_reduce(gradient)
                gradient /= distributed.world_size()

    def own(self, tensor: Tensor) -> Tensor:
        """The rows of this rank."""
        tensor = tensor.detach()
        return tensor.to_local() if isinstance(tensor, DTensor) else tensor

    def part_of(self, complete: Tensor, like: Tensor) -> Tensor:
        """This rank's rows; nothing is sent, because every rank has the complete tensor."""
        if not isinstance(like, DTensor):
            return complete
        complete = complete.to(self.device)
        return distribute_tensor(complete, like.device_mesh, like.placements, src_data_rank=None).to_local()

    def gradients(self) -> list[Tensor]:
        """Own rows of cut gradients, and the whole ones."""
        return [self.own(gradient) for gradient in super().gradients()]

    def gradient_norm(self) -> Tensor:
        """As everywhere; the whole ones are the same on every rank and count once."""
        cut = [self.own(gradient) for gradient in super().gradients() if isinstance(gradient, DTensor)]
        whole = self._whole_gradients() if distributed.is_main() else []
        return norm_over_ranks([*cut, *whole], self.device)

    def complete(self) -> AbstractContextManager[None]:
        """Every rank has whole weights inside, in float32: ranks may evaluate different numbers of batches without a word."""
        return self._gathered()

    @torch.no_grad()
    def gather(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As everywhere, one tensor at a time; those that were cut come in host memory."""
        gathered: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            complete = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            if distributed.is_main():
                gathered[name] = complete.cpu() if isinstance(tensor, DTensor) else tensor
        return gathered

    def _whole_gradients(self) -> list[Tensor]:
        return [gradient for gradient in super().gradients() if not isinstance(gradient, DTensor)]

    @contextmanager
    def _gathered(self) -> Iterator[None]:
        parts = [module for module in self.model.modules() if isinstance(module, FSDPModule)]
        self._root.set_reshard_after_forward(False)
        for part in parts:
            part.unshard()
        self.is_complete = True
        try:
            yield
        finally:
            self.is_complete = False
            for part in parts:
                part.reshard()
            self._root.set_reshard_after_forward(True)
            # What belongs to no block is needed again as soon as the forward pass ends.
            self._root.set_reshard_after_forward(False, recurse=False)


def _name_the_root(root: FSDPModule) -> None:
    """Tell torch which module is the outermost one before any of them runs.

    Otherwise the first that runs is taken for it, and in an evaluation before the first step that may be a block. torch has no
    public call for this.
    """
    root._get_fsdp_state()._lazy_init()


def _gather_backwards(root: FSDPModule, stacks: list[list[nn.Module]]) -> None:
    """While a block's gradient is computed, gather the block before it in its stack.

    torch's own order of gathering is what ran last, evaluations included; ranks that evaluated different numbers of batches
    would gather different blocks and wait for each other for ever.
    """
    root.set_modules_to_backward_prefetch([root])
    for stack in stacks:
        for block, before in zip(stack, [root, *stack[:-1]], strict=True):
            cast(FSDPModule, block).set_modules_to_backward_prefetch([cast(FSDPModule, before)])
