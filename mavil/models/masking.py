"""Which tokens are hidden: noise in, ids out. Pure functions; the caller owns the randomness."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mavil.structs import MaskedView


def random_masking(noise: Tensor, num_visible: int) -> MaskedView:
    """Hide all but the ``num_visible`` tokens of smallest noise, per clip [source MAE, Audio-MAE; MAViL: recalled].

    ``noise`` ``[B, N]`` uniform. ``visible_ids`` keep the order of the noise (shuffled), as in MAE.

    Raises:
        ValueError: no token would stay visible, or more than there are.
    """
    _check_visible(num_visible, noise.shape[1], "tokens")
    order = noise.argsort(dim=1)
    return MaskedView(
        visible_ids=order[:, :num_visible], masked_ids=order[:, num_visible:], restore_ids=order.argsort(dim=1)
    )


def structured_masking(noise: Sequence[Tensor], num_visible: Sequence[int]) -> MaskedView:
    """Hide whole rows of the token grid along every axis; a token is visible where all its rows are.

    Audio-MAE hides time steps and mel bands this way, in fine-tuning and in a variant of pre-training
    [source Audio-MAE, AV-SUPERB copy: ``int(cells * (1 - ratio))`` of each axis stay].

    Args:
        noise: per axis of the grid, in the order its tokens are numbered in, uniform ``[B, cells]``.
        num_visible: per axis, how many rows stay: those of smallest noise, per clip.

    Returns:
        The view; ``visible_ids`` and ``masked_ids`` are in token order, unlike :func:`random_masking`'s [source Audio-MAE].

    Raises:
        ValueError: no row of an axis would stay visible, or more than there are; the axes disagree in number.
    """
    if len(noise) != len(num_visible):
        raise ValueError(f"there is noise for {len(noise)} axes, but num_visible names {len(num_visible)}")
    is_visible = torch.ones(
        len(noise[0]), 1, dtype=torch.bool, device=noise[0].device
    )  # [B, tokens of the axes so far]
    total = 1
    for of_axis, kept in zip(noise, num_visible, strict=True):
        _check_visible(kept, of_axis.shape[1], "rows of an axis")
        rows = torch.zeros_like(of_axis, dtype=torch.bool).scatter(1, of_axis.argsort(dim=1)[:, :kept], True)
        is_visible = (is_visible[:, :, None] & rows[:, None]).flatten(1)
        total *= kept
    # Stable: visible tokens in their order, then the masked ones in theirs.
    order = is_visible.logical_not().byte().argsort(dim=1, stable=True)
    return MaskedView(visible_ids=order[:, :total], masked_ids=order[:, total:], restore_ids=order.argsort(dim=1))


def concatenate(views: list[MaskedView]) -> MaskedView:
    """Stack views on the batch axis, so that one encoder call serves them all: ids ``[V * B, ...]``, view-major."""
    return MaskedView(
        visible_ids=torch.cat([view.visible_ids for view in views]),
        masked_ids=torch.cat([view.masked_ids for view in views]),
        restore_ids=torch.cat([view.restore_ids for view in views]),
    )


def _check_visible(num_visible: int, available: int, what: str) -> None:
    if not 1 <= num_visible <= available:
        raise ValueError(
            f"{num_visible} of {available} {what} cannot stay visible: keep at least 1 and at most {available}"
        )
