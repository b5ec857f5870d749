"""What the number of ranks decides: candidates of the contrastive losses, and what can be measured."""

from __future__ import annotations

from mavil.commands.schedule import device_batch
from mavil.config import PretrainTask, Recipe
from mavil.structs import UserError


def refuse_on_ranks(recipe: Recipe, ranks: int) -> None:
    """What cannot work with so many ranks; the batch is known to divide among them.

    Raises:
        UserError: a contrastive loss would have nothing to compare a clip with, or gradients of single terms are asked for
            where weights are cut.
    """
    _refuse_lonely_clips(recipe, ranks)
    settings = recipe.trainer
    if settings.term_gradients_every is not None and settings.parallel == "fsdp" and ranks > 1:
        raise UserError(
            f"trainer.term_gradients_every={settings.term_gradients_every} does not work with trainer.parallel=fsdp on {ranks} "
            "ranks: weights are cut, and a gradient exists only as part of the whole backward pass; leave one out, or use ddp"
        )


def _refuse_lonely_clips(recipe: Recipe, ranks: int) -> None:
    contrast = recipe.task.contrast if isinstance(recipe.task, PretrainTask) else None
    if contrast is None or contrast.inter_weight + contrast.intra_weight == 0:
        return
    settings, own = recipe.trainer, device_batch(recipe, ranks)
    if settings.accumulation_negatives == "cached":
        own *= settings.accumulation
    is_local = contrast.negatives == "local"
    if own * (1 if is_local else ranks) > 1:
        return
    where = "task.contrast.negatives=local" if is_local else f"{ranks} rank"
    remedy = (
        "task.contrast.negatives=global, or more clips per rank" if is_local and ranks > 1 else "more clips per rank"
    )
    raise UserError(
        f"with {own} clip per rank and {where} a contrastive loss has no other clip to compare with: set {remedy} "
        "(trainer.device_batch or trainer.global_batch)"
    )
