"""Transformer blocks: a thin layer over timm's, with the family's conventions in one place."""

from __future__ import annotations

from functools import partial

from timm.models.vision_transformer import Block
from torch import nn

LAYER_NORM_EPS = 1e-6
"""Of every LayerNorm here [source MAE, Audio-MAE, MAViL copy]."""

layer_norm = partial(nn.LayerNorm, eps=LAYER_NORM_EPS)
"""Makes a LayerNorm of a given width with the family's epsilon."""


def build_blocks(width: int, depth: int, num_heads: int, drop_path: float = 0.0) -> nn.ModuleList:
    """Pre-norm blocks with QKV bias, exact GELU, MLP ratio 4 and fused attention; drop-path grows linearly from 0."""
    rates = [drop_path * i / max(1, depth - 1) for i in range(depth)]
    blocks = nn.ModuleList(
        Block(width, num_heads, mlp_ratio=4.0, qkv_bias=True, norm_layer=layer_norm, drop_path=rate)  # type: ignore[arg-type]
        for rate in rates
    )
    blocks.apply(initialise)
    return blocks


def initialise(module: nn.Module) -> None:
    """MAE's initialisation: Linear xavier-uniform with zero bias, LayerNorm one and zero [source MAE]."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm) and module.elementwise_affine:
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
