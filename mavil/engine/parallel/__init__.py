"""Several ranks, one model: three ways to share it, behind one interface; checkpoints move between them and between world sizes.

``ddp.py`` every rank a whole model, ``fsdp.py`` weights, gradients and optimizer state cut over ranks (torch), ``fairscale.py``
gradients and optimizer state cut over ranks (fairscale). ``base.py`` says what the engine may ask of any of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import nn

from mavil import distributed
from mavil.engine.optim import ADAM_EPS
from mavil.engine.parallel.base import Parallel
from mavil.engine.parallel.ddp import DistributedCopies, OneProcess
from mavil.structs import UserError
from mavil.tasks.base import ParameterGroup

__all__ = ["Parallel", "ParallelKind", "parallelise"]

ParallelKind = Literal["ddp", "fsdp", "fairscale"]


def parallelise(
    kind: ParallelKind,
    model: nn.Module,
    groups: Callable[[], list[ParameterGroup]],
    betas: tuple[float, float],
    device: torch.device,
    eps: float = ADAM_EPS,
) -> Parallel:
    """Put ``model`` on ``device`` and train it together with the other ranks; with one rank it stays as it is, whatever the kind.

    Load weights into ``model`` before: those of rank 0 are copied to every rank, buffers too. What patches the blocks
    (:mod:`mavil.engine.blocks`) also comes before. ``groups`` is asked only after the weights are cut, because cutting
    replaces a model's parameters. ``betas`` and ``eps`` are AdamW's.

    Raises:
        UserError: no such kind, or fairscale is not installed.
        ValueError: ``groups`` does not hold every trained parameter exactly once.
    """
    if kind not in get_args(ParallelKind):
        raise UserError(
            f"trainer.parallel={kind} is not a kind of parallelism: use {', '.join(get_args(ParallelKind))}"
        )
    model.to(device)
    if distributed.world_size() == 1:
        return OneProcess(model, groups, betas, device, eps)
    if kind == "ddp":
        return DistributedCopies(model, groups, betas, device, eps)
    if kind == "fsdp":
        # Imported when needed: each brings parts of torch or a package that other runs do without.
        from mavil.engine.parallel.fsdp import CutModel

        return CutModel(model, groups, betas, device, eps)
    try:
        from mavil.engine.parallel.fairscale import CutOptimizer
    except ImportError as error:
        raise UserError(
            f"trainer.parallel=fairscale needs the package fairscale ({error}): install it, or use fsdp"
        ) from None
    return CutOptimizer(model, groups, betas, device, eps)
