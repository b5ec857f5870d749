"""What can be done to each block of a model: compute it again in the backward pass, or compile it.

A block is a member of an outermost ``nn.ModuleList``. Both patch the block's ``forward`` and leave the module itself alone, so
the names of parameters stay those of the plain model, and hooks of whoever cuts its weights stay outside.
"""

from __future__ import annotations

import os
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mavil.structs import UserError

CheckpointKind = Literal["none", "torch", "fairscale"]

_RECOMPILATIONS_PER_BLOCK = 4
"""Training and evaluation, each with fixed and with varying lengths."""


def stacks_of(model: nn.Module) -> list[list[nn.Module]]:
    """The blocks of a model by the list they stand in, in the model's order; each block once, none inside another."""
    stacks: list[list[nn.Module]] = []
    seen: set[int] = set()
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and id(module) not in seen:
            stacks.append([block for block in module if id(block) not in seen])
            seen.update(id(inner) for inner in module.modules())
    return [stack for stack in stacks if stack]


def checkpoint_activations(model: nn.Module, kind: CheckpointKind) -> None:
    """Keep only each block's input for the backward pass, which computes the block again.

    ``torch`` is its non-reentrant kind, ``fairscale`` its ``checkpoint_wrapper``; ``none`` does nothing. Both give the block
    the random numbers of the first time. Call it before weights are cut over ranks, and after :func:`compile_blocks`.

    Raises:
        UserError: no such kind, or fairscale is not installed.
    """
    if kind not in get_args(CheckpointKind):
        raise UserError(
            f"trainer.activation_checkpointing={kind} is not known: use {', '.join(get_args(CheckpointKind))}"
        )
    if kind == "none":
        return
    for block in [block for stack in stacks_of(model) for block in stack]:
        if kind == "torch":
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        else:
            _wrap_by_fairscale(block)


def compile_blocks(model: nn.Module) -> None:
    """``torch.compile`` each block. Call it first of all that changes blocks; nothing is compiled before the first step.

    Raises:
        ValueError: a block's ``forward`` was changed before.
    """
    blocks = [block for stack in stacks_of(model) for block in stack]
    # Blocks share one piece of code, and torch gives up on code that it compiled more than eight times.
    limit = _RECOMPILATIONS_PER_BLOCK * len(blocks)
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, limit)
    for block in blocks:
        if "forward" in vars(block):
            raise ValueError("a block is checkpointed already: compile blocks first")
        block.forward = torch.compile(block.forward)


def check_compiler(device: torch.device) -> None:
    """Compile one small function on ``device``: about half a minute on a CPU the first time, afterwards torch remembers.

    Raises:
        UserError: it failed; usually a C++ compiler or Python's header files are missing.
    """
    try:
        torch.compile(lambda values: values * 2 + 1)(torch.ones(2, device=device))
    except Exception as error:
        # torch begins with the name of its backend and ends with advice: the line that says what is wrong stands between.
        lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.endswith("raised:")]
        raise UserError(
            f"trainer.compile: torch cannot compile on {device.type} here ({lines[0] if lines else type(error).__name__}): "
            f"install a C++ compiler ({os.environ.get('CXX', 'g++')}) and Python's header files, or set trainer.compile=false"
        ) from None
    finally:
        torch._dynamo.reset()


def _wrap_by_fairscale(block: nn.Module) -> None:
    try:
        from fairscale.nn.checkpoint import checkpoint_wrapper
    except ImportError as error:
        raise UserError(
            f"trainer.activation_checkpointing=fairscale needs the package fairscale ({error}): install it, or use torch"
        ) from None
    forward = block.forward
    checkpoint_wrapper(block)
    # The wrapper calls the forward of the block's class, which may not be the one to call (it may be compiled), and computes it
    # again under the autocast of CUDA in float16, or under none: both are mended by what is put in the place of that forward.
    wrapped = block.forward
    assert isinstance(wrapped, partial)
    block.forward = partial(_with_autocast, partial(wrapped.func, partial(_under_autocast, forward), *wrapped.args[1:]))


def _with_autocast(wrapped: Any, *arguments: Any, **named: Any) -> Any:
    """Hand the autocast of this moment over as an argument, which fairscale keeps for the second time."""
    device = next(value.device.type for value in arguments if isinstance(value, torch.Tensor))
    autocast = (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
    return wrapped(*arguments, **named, autocast=autocast)


def _under_autocast(
    forward: Any, _: nn.Module, *arguments: Any, autocast: tuple[str, torch.dtype, bool], **named: Any
) -> Any:
    with torch.autocast(*autocast):
        return forward(*arguments, **named)
