"""How one mask is drawn: from a kind of masking, its settings and a clip's random numbers to a view."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from mavil.config.masking import (
    ChunkMasking,
    Masking,
    RandomMasking,
    SpanMasking,
    StructuredMasking,
    visible_rows,
)
from mavil.config.task import TokenMasking
from mavil.models.masking import (
    chunk_masking,
    count_squares,
    random_masking,
    same_for_all,
    span_masking,
    structured_masking,
)
from mavil.structs import MaskedView, Modality, TokenGrid

Noise = Callable[[Modality, str, int], Tensor]
"""``noise(modality, purpose, count)``: ``[B, count]`` uniform numbers, one row per clip, on the device of the tokens."""


def whole_view(grid: TokenGrid, noise: Noise, modality: Modality) -> MaskedView:
    """The view of every clip that hides nothing, tokens in their own order; ``noise`` says how many clips there are."""
    one = noise(modality, "whole", 1)
    ids = torch.arange(grid.num_tokens, device=one.device).expand(len(one), -1)
    return MaskedView(ids, ids[:, :0], ids)


def draw_mask(
    masking: Masking, grid: TokenGrid, mask_ratio: float, noise: Noise, modality: Modality, purpose: str
) -> MaskedView:
    """One view of every clip; all keep as many tokens as ``masking.num_visible`` says.

    ``drawn_per`` batch: the first clip's mask for all of them, as in MAE-AST's code; the mask of a clip then depends on its
    batch mates. ``purpose`` names the streams of random numbers; each kind adds what its own are for.
    """
    if isinstance(masking, StructuredMasking):
        return _structured(grid, masking.visible_rows(grid), noise, modality, purpose)
    if masking.drawn_per == "clip":
        return _counted(masking, grid, mask_ratio, noise, modality, purpose)
    num_clips = 0

    def of_first_clip(modality: Modality, purpose: str, count: int) -> Tensor:
        nonlocal num_clips
        rows = noise(modality, purpose, count)
        num_clips = len(rows)
        return rows[:1]

    view = _counted(masking, grid, mask_ratio, of_first_clip, modality, purpose)
    return same_for_all(view, num_clips)


def _counted(
    masking: RandomMasking | ChunkMasking | SpanMasking,
    grid: TokenGrid,
    mask_ratio: float,
    noise: Noise,
    modality: Modality,
    purpose: str,
) -> MaskedView:
    def draws(what: str, count: int) -> Tensor:
        return noise(modality, f"{purpose} {what}", count)

    num_tokens, num_visible = grid.num_tokens, masking.num_visible(grid, mask_ratio)
    if isinstance(masking, ChunkMasking):
        cells = (grid.cells[0], grid.cells[1])
        side, order = draws("side", 1)[:, 0], draws("order", num_tokens)
        squares = draws("squares", count_squares(cells, masking.sides, masking.wraps))
        return chunk_masking(side, squares, order, cells, num_visible, masking.sides, masking.wraps)
    if isinstance(masking, SpanMasking):
        spans, end = draws("spans", num_tokens + masking.length - 1), draws("end", 1)[:, 0]
        return span_masking(spans, end, num_visible, masking.length, masking.inverted)
    return random_masking(noise(modality, purpose, num_tokens), num_visible)


def _structured(grid: TokenGrid, kept: tuple[int, int], noise: Noise, modality: Modality, purpose: str) -> MaskedView:
    """Time is drawn from a stream of its own, whichever axis of the grid it is."""
    names = ("time", "mel") if grid.time_axis == 0 else ("mel", "time")
    rows = [noise(modality, f"{purpose} {name}", count) for name, count in zip(names, grid.cells, strict=True)]
    return structured_masking(rows, kept)


def seen_in_fine_tuning(masking: TokenMasking, grids: Mapping[Modality, TokenGrid]) -> dict[Modality, int]:
    """K of each modality of which a training step of a classifier leaves tokens out; the others are seen as a whole.

    Raises:
        ValueError: nothing would be left.
    """
    counts: dict[Modality, int] = {}
    for modality, grid in grids.items():
        if modality == "audio" and (masking.time_ratio > 0 or masking.mel_ratio > 0):
            steps, bands = visible_rows(grid, masking.time_ratio, masking.mel_ratio)
            counts[modality] = steps * bands
        elif modality == "video" and masking.video_ratio > 0:
            counts[modality] = grid.num_visible(masking.video_ratio)
    return counts


def draw_visible_ids(
    masking: TokenMasking, grids: Mapping[Modality, TokenGrid], noise: Noise
) -> dict[Modality, Tensor]:
    """``[B, K]`` tokens that a training step of a classifier looks at; a modality that is seen as a whole is left out.

    Of sound whole time steps and mel bands are left out [source Audio-MAE], of pictures tokens by themselves [source AV-SUPERB
    copy]. A function of each clip's seed only.
    """
    visible: dict[Modality, Tensor] = {}
    for modality, num_visible in seen_in_fine_tuning(masking, grids).items():
        grid, purpose = grids[modality], f"{modality} tokens left out"
        if modality == "audio":
            kept = visible_rows(grid, masking.time_ratio, masking.mel_ratio)
            visible[modality] = _structured(grid, kept, noise, modality, purpose).visible_ids
        else:
            visible[modality] = random_masking(noise(modality, purpose, grid.num_tokens), num_visible).visible_ids
    return visible
