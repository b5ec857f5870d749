"""Transformer blocks: a thin layer over timm's, with the family's conventions in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mavil.structs import MODALITIES, Modality

LAYER_NORM_EPS = 1e-6
"""Of every LayerNorm where nothing else is said [source MAE, Audio-MAE, MAViL copy]."""

Presence = Mapping[Modality, Tensor | None]
"""Which clips have a modality, ``[B]`` bool; ``None``, or no entry, where all have it."""


@dataclass(frozen=True)
class Stack:
    """A row of pre-norm blocks with QKV bias, exact GELU and fused attention, and the norm that goes with it.

    Attributes:
        width: channels per token.
        depth: blocks.
        num_heads: attention heads.
        mlp_ratio: hidden channels of the MLP per channel.
        layer_norm_eps: of every LayerNorm.
        drop_path: stochastic depth of the last block; it grows linearly from 0.
    """

    width: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0
    layer_norm_eps: float = LAYER_NORM_EPS
    drop_path: float = 0.0

    def blocks(self, alone_norms: bool = False) -> nn.ModuleList:
        """The blocks, initialised; with ``alone_norms`` they are :class:`SharedBlock`."""
        rates = [self.drop_path * i / max(1, self.depth - 1) for i in range(self.depth)]
        kind = SharedBlock if alone_norms else Block
        blocks = nn.ModuleList(
            kind(self.width, self.num_heads, self.mlp_ratio, True, norm_layer=self._norm_layer, drop_path=rate)  # type: ignore[arg-type]
            for rate in rates
        )
        blocks.apply(initialise)
        return blocks

    def norm(self) -> nn.LayerNorm:
        """A LayerNorm of this width."""
        return self._norm_layer(self.width)

    @property
    def _norm_layer(self) -> partial[nn.LayerNorm]:
        return partial(nn.LayerNorm, eps=self.layer_norm_eps)


class SharedBlock(Block):
    """A block for the joint sequence and for each modality by itself, with norms of its own for each use [source CAV-MAE]."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        mlp_ratio: float,
        qkv_bias: bool,
        norm_layer: partial[nn.LayerNorm],
        drop_path: float,
    ) -> None:
        super().__init__(width, num_heads, mlp_ratio, qkv_bias, norm_layer=norm_layer, drop_path=drop_path)  # type: ignore[arg-type]
        self.alone_norms = nn.ModuleDict(
            {m: nn.ModuleDict({"norm1": norm_layer(width), "norm2": norm_layer(width)}) for m in MODALITIES}
        )

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, alone: Modality | None = None) -> Tensor:  # type: ignore[override]
        """``[B, K, D]`` to the same; ``alone`` names the modality whose norms are used, none is the joint sequence."""
        norm1, norm2 = self.norm1, self.norm2
        if alone is not None:
            norms = cast(nn.ModuleDict, self.alone_norms[alone])
            norm1, norm2 = norms["norm1"], norms["norm2"]
        x = x + self.drop_path1(self.attn(norm1(x), attn_mask=attn_mask))
        return cast(Tensor, x + self.drop_path2(self.mlp(norm2(x))))


def joint_key_mask(tokens: Mapping[Modality, Tensor], present: Presence | None) -> Tensor | None:
    """Which keys of a joint sequence attention may see, ``[B, 1, 1, keys]`` bool, from the modalities' ``[B, K, D]`` tokens.

    ``None``, the fast case, where every clip has everything.
    """
    flags = {m: present.get(m) if present else None for m in tokens}
    if all(flag is None for flag in flags.values()):
        return None
    parts = []
    for modality, values in tokens.items():
        flag = flags[modality]
        if flag is None:
            flag = torch.ones(len(values), dtype=torch.bool, device=values.device)
        parts.append(flag[:, None, None, None].expand(-1, 1, 1, values.shape[1]))
    return torch.cat(parts, dim=-1)


def initialise(module: nn.Module) -> None:
    """MAE's initialisation: Linear xavier-uniform with zero bias, LayerNorm one and zero [source MAE]."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm) and module.elementwise_affine:
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
