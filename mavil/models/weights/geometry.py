"""What of a model's shape can be read off its tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from mavil.models.weights.converted import Converted
from mavil.structs import MODALITIES


@dataclass(frozen=True)
class PartGeometry:
    """Of one part; ``None`` where it has no such thing. Numbers of heads and epsilons leave no trace in the shapes.

    Attributes:
        width: channels per token; of a head, what it takes.
        depth: blocks.
        mlp_ratio: hidden channels of a block's MLP per channel.
        patch: of the kernel, per axis.
        num_tokens: of each table, by modality, without CLS.
        cls_token: whether the part's tables have a row for CLS.
        out_values: what a decoder predicts per token, by modality.
        classes: what a head scores.
        windowed: whether a decoder's blocks are windowed.
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


def geometry_of(converted: Converted) -> dict[str, PartGeometry]:
    """The geometry of every part of a converted checkpoint."""
    return {part: _part_geometry(part, tensors, converted) for part, tensors in converted.parts.items()}


def _part_geometry(part: str, tensors: Mapping[str, Tensor], converted: Converted) -> PartGeometry:
    modality = part.partition("_")[0]
    if part.endswith(("fc_norm", "head")):
        weight = tensors["weight"]
        return PartGeometry(width=weight.shape[-1], classes=weight.shape[0] if weight.dim() == 2 else None)
    first = tensors.get("blocks.0.mlp.fc1.weight")
    kernel = tensors.get("patch_embed.proj.weight")
    width = next(t.shape[i] for t, i in ((first, 1), (kernel, 0), (next(iter(tensors.values())), -1)) if t is not None)
    blocks = {int(match[1]) for name in tensors if (match := re.match(r"blocks\.(\d+)\.", name))}
    has_cls = part != "decoder" and converted.has_cls(modality)
    tables = {"pos_embed": modality, **{f"{m}_pos_embed": str(m) for m in MODALITIES}}
    preds = {"pred.weight": modality, **{f"preds.{m}.weight": str(m) for m in MODALITIES}}
    return PartGeometry(
        width=width,
        depth=len(blocks),
        mlp_ratio=None if first is None else first.shape[0] / first.shape[1],
        patch=None if kernel is None else tuple(kernel.shape[2:]),
        num_tokens={m: tensors[name].shape[1] - has_cls for name, m in tables.items() if name in tensors} or None,
        cls_token=has_cls,
        out_values={m: tensors[name].shape[0] for name, m in preds.items() if name in tensors} or None,
        windowed="blocks.0.attn.temperature" in tensors,
    )
