"""What of a model's shape can be read off its tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mavil.models.tokens import position_table
from mavil.models.weights.converted import Converted
from mavil.models.weights.key_bias import has_partial_bias
from mavil.structs import MODALITIES, TokenGrid

STRIDE = 10
"""Of the only public models of sound whose patches overlap [source AST, Audio-MAE]."""
_TABLES = ("sincos_2d", "transposed_2d", "sincos_1d")


@dataclass(frozen=True)
class PartGeometry:
    """Of one part; ``None`` where it has no such thing. Numbers of heads and epsilons leave no trace in most shapes.

    Attributes:
        width: channels per token; of a head, what it takes.
        depth: blocks.
        mlp_ratio: hidden channels of a block's MLP per channel.
        patch: of the kernel, per axis.
        num_tokens: of each table, by modality, without CLS.
        cls_token: whether the part's tables have a row for CLS.
        out_values: what a decoder predicts per token, by modality.
        classes: what a head scores.
        windowed: whether a decoder's first blocks are windowed; its last ``global_blocks`` then are not.
        num_heads: of windowed blocks, which have a temperature per head.
        post_norm: whether LayerNorms stand behind attention and MLP.
        key_bias: whether keys have a bias.
        projects: whether a decoder begins with a linear layer.
        discriminates: whether a decoder has the second head of patch discrimination.
    """

    width: int
    depth: int | None = None
    mlp_ratio: float | None = None
    patch: tuple[int, ...] | None = None
    num_tokens: Mapping[str, int] | None = None
    cls_token: bool = False
    out_values: Mapping[str, int] | None = None
    classes: int | None = None
    windowed: bool = False
    num_heads: int | None = None
    global_blocks: int = 0
    post_norm: bool = False
    key_bias: bool = True
    projects: bool = False
    discriminates: bool = False


def geometry_of(converted: Converted) -> dict[str, PartGeometry]:
    """The geometry of every part of a converted checkpoint."""
    return {part: _part_geometry(part, tensors, converted) for part, tensors in converted.parts.items()}


def table_kind(table: Tensor, grid: TokenGrid, num_prefix: int) -> str | None:
    """Which computed table (:func:`mavil.models.tokens.position_table`) one of sound is; ``None``: it was trained, or is none.

    ``table`` is ``[1, c + N, D]``; of kinds that agree on a grid the first is named.
    """
    width = table.shape[-1]
    if tuple(table.shape) != (1, num_prefix + grid.num_tokens, width) or width % 4:
        return None
    for kind in _TABLES:
        # Float32 of other libraries' sines, of token numbers up to some thousands.
        if torch.allclose(table.float(), position_table(grid, width, kind, num_prefix), atol=1e-3, rtol=0):
            return kind
    return None


def spectrogram_size(
    num_tokens: int, patch: tuple[int, int], num_mel_bins: int
) -> tuple[int, tuple[int, int] | None] | None:
    """Steps, and the stride where patches overlap, of ``num_tokens`` patches (steps, mel bins); ``None`` if none fits.

    Overlapping ones every :data:`STRIDE` are found only where those side by side cannot be: 1212 tokens of 128 bins are 1024
    steps. Of the inputs that give as many patches the one of whole patches is taken, or else the smallest.
    """
    steps, bins = patch
    if num_mel_bins % bins == 0 and num_tokens % (num_mel_bins // bins) == 0:
        return num_tokens // (num_mel_bins // bins) * steps, None
    if min(patch) <= STRIDE or num_mel_bins < bins:
        return None
    bands = (num_mel_bins - bins) // STRIDE + 1
    if num_tokens % bands:
        return None
    least = (num_tokens // bands - 1) * STRIDE + steps
    whole = -(-least // steps) * steps
    return (whole if whole < least + STRIDE else least), (STRIDE, STRIDE)


def _part_geometry(part: str, tensors: Mapping[str, Tensor], converted: Converted) -> PartGeometry:
    modality = part.partition("_")[0]
    if part.endswith(("fc_norm", "head")):
        weight = tensors["weight"]
        return PartGeometry(width=weight.shape[-1], classes=weight.shape[0] if weight.dim() == 2 else None)
    first = tensors.get("blocks.0.mlp.fc1.weight")
    kernel = tensors.get("patch_embed.proj.weight")
    width = next(t.shape[i] for t, i in ((first, 1), (kernel, 0), (next(iter(tensors.values())), -1)) if t is not None)
    blocks = {int(match[1]) for name in tensors if (match := re.match(r"blocks\.(\d+)\.", name))}
    windowed = {block for block in blocks if f"blocks.{block}.attn.temperature" in tensors}
    temperature = tensors.get("blocks.0.attn.temperature")
    has_cls = part != "decoder" and converted.has_cls(modality)
    tables = {"pos_embed": modality, **{f"{m}_pos_embed": str(m) for m in MODALITIES}}
    preds = {"pred.weight": modality, **{f"preds.{m}.weight": str(m) for m in MODALITIES}}
    return PartGeometry(
        width=width,
        depth=len(blocks),
        mlp_ratio=None if first is None else first.shape[0] / first.shape[1],
        # A flat kernel tells only how many values a patch has.
        patch=None if kernel is None or kernel.dim() == 2 else tuple(kernel.shape[2:]),
        num_tokens={m: tensors[name].shape[1] - has_cls for name, m in tables.items() if name in tensors} or None,
        cls_token=has_cls,
        out_values={m: tensors[name].shape[0] for name, m in preds.items() if name in tensors} or None,
        windowed=temperature is not None,
        num_heads=None if temperature is None else temperature.numel(),
        global_blocks=len(blocks - windowed) if windowed else 0,
        post_norm="input_norm.weight" in tensors,
        key_bias=not has_partial_bias(tensors),
        projects="embed.weight" in tensors,
        discriminates="discriminate.weight" in tensors,
    )
