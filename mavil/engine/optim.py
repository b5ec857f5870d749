"""AdamW from a task's parameter groups, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from mavil.engine.wording import first_names
from mavil.structs import UserError
from mavil.tasks.base import ParameterGroup

BASE_BATCH = 256
"""Global batch at which base learning rates are given [source MAE; linear scaling, Goyal et al. 2017]."""
ADAM_EPS = 1e-8
"""AdamW's epsilon where nothing else is said [torch]."""


def scaled_learning_rate(base_lr: float, global_batch: int) -> float:
    """The peak learning rate of a run: ``base_lr * global_batch / 256``."""
    return base_lr * global_batch / BASE_BATCH


def warmup_cosine(step: int, *, peak: float, warmup_steps: int, total_steps: int, minimum: float) -> float:
    """Learning rate of the update that follows ``step`` finished ones: linear from 0 to ``peak``, then half a cosine.

    As in MAE's per-iteration schedule [source MAE ``util/lr_sched.py``] the very first update of a warm-up has rate 0.
    From ``total_steps`` on the rate is ``minimum``.

    Raises:
        UserError: the warm-up is longer than the training.
    """
    progress = _progress(step, warmup_steps, total_steps)
    if progress < 0:
        return peak * step / warmup_steps
    return minimum + (peak - minimum) * 0.5 * (1.0 + math.cos(math.pi * progress)) if progress < 1 else minimum


def warmup_linear(step: int, *, peak: float, warmup_steps: int, total_steps: int, minimum: float) -> float:
    """Likewise, but down a straight line: fairseq's polynomial decay of power 1 [source MAE-AST].

    Raises:
        UserError: the warm-up is longer than the training.
    """
    progress = _progress(step, warmup_steps, total_steps)
    if progress < 0:
        return peak * step / warmup_steps
    return peak + (minimum - peak) * progress if progress < 1 else minimum


DECAYS: dict[str, Callable[..., float]] = {"cosine": warmup_cosine, "linear": warmup_linear}
"""By the name a recipe gives them."""


def _progress(step: int, warmup_steps: int, total_steps: int) -> float:
    """How much of the way down is done, 0 to 1; negative within the warm-up."""
    if warmup_steps > total_steps:
        raise UserError(
            f"a warm-up of {warmup_steps} steps does not fit into {total_steps} steps of training: shorten "
            "schedule.warmup or lengthen schedule.length"
        )
    if step < warmup_steps:
        return -1.0
    return 1.0 if step >= total_steps else (step - warmup_steps) / (total_steps - warmup_steps)


def build_optimizer(
    groups: Sequence[ParameterGroup], betas: tuple[float, float], model: nn.Module, eps: float = ADAM_EPS
) -> torch.optim.AdamW:
    """AdamW over ``groups``; each keeps its ``lr_scale``, and :func:`set_learning_rate` fills in the rate of a step.

    Its moments exist from the start, as zeros: what does not fit into memory shows before the first step, and a state is
    complete whenever it is saved. Call it after parameters were cut over ranks. ``eps`` is added to the root of the second
    moment.

    Raises:
        ValueError: a trained parameter of ``model`` is in no group or in two, or a group holds something else.
    """
    optimizer = torch.optim.AdamW(optimizer_groups(groups, model), **adamw_settings(betas, eps))
    add_moments(optimizer)
    return optimizer


def optimizer_groups(groups: Sequence[ParameterGroup], model: nn.Module) -> list[dict[str, Any]]:
    """``groups`` as torch's optimizers take them, with ``names`` and ``lr_scale`` beside torch's own keys.

    Raises:
        ValueError: as :func:`build_optimizer`.
    """
    _check_groups(groups, model)
    return [
        {
            "params": group.parameters,
            "names": group.names,
            "lr_scale": group.lr_scale,
            "weight_decay": group.weight_decay,
        }
        for group in groups
    ]


def adamw_settings(betas: tuple[float, float], eps: float = ADAM_EPS) -> dict[str, Any]:
    """What AdamW is made with; ``fused`` is one pass over each parameter instead of a dozen, and can leave out an update."""
    return {"lr": 0.0, "betas": betas, "eps": eps, "fused": True}


def add_moments(optimizer: torch.optim.Optimizer) -> None:
    """Give each parameter the zeros that AdamW would give it in its first step."""
    for parameter in trained_parameters(optimizer):
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter, requires_grad=False, memory_format=torch.preserve_format),
            "exp_avg_sq": torch.zeros_like(parameter, requires_grad=False, memory_format=torch.preserve_format),
        }


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Give every group ``learning_rate`` times its own ``lr_scale``."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_scale"]


def trained_parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """Every parameter the optimizer updates."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _check_groups(groups: Sequence[ParameterGroup], model: nn.Module) -> None:
    trained = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    grouped: set[int] = set()
    for group in groups:
        for parameter, name in zip(group.parameters, group.names, strict=True):
            if id(parameter) in grouped:
                raise ValueError(f"parameter {name} is in two groups of the optimizer: it must be in exactly one")
            if id(parameter) not in trained:
                raise ValueError(
                    f"parameter {name} is in a group of the optimizer but is not a trained one of the model"
                )
            grouped.add(id(parameter))
    missing = [name for key, name in trained.items() if key not in grouped]
    if missing:
        raise ValueError(
            f"{len(missing)} trained parameters are in no group of the optimizer: {first_names(missing)}; "
            "the task's parameter_groups must name every parameter that requires a gradient"
        )
