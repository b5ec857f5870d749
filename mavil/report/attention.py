"""Where a model looks: the attention of an encoder's last block, computed again from its queries and keys.

Fused attention never holds the matrix, so it is not recorded but recomputed, with every bias the block has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mavil.models.encoder import Encoder
from mavil.models.tokens import unpatchify
from mavil.structs import TokenGrid

CLS = "CLS"
"""The name of the query that is the CLS token."""


@dataclass(frozen=True)
class AttentionMap:
    """Where one query looks.

    Attributes:
        query: ``CLS``, or words for a patch.
        token: number of the query patch; ``None`` is CLS.
        heads: ``[H, N]`` float32, the share of its attention that each head gives to each patch. A row sums to 1 less what CLS
            gets.
        on_cls: ``[H]``, the share that CLS gets; zeros without CLS.
    """

    query: str
    token: int | None
    heads: Tensor
    on_cls: Tensor

    @property
    def mean(self) -> Tensor:
        """``[N]``: mean over the heads."""
        return self.heads.mean(dim=0)


def attention_weights(attention: nn.Module, tokens: Tensor) -> Tensor:
    """``[B, H, Q, K]``, rows summing to 1: the softmax that an attention layer applies to its values, in float32.

    ``attention`` is timm's, or one with its names: ``qkv``, ``num_heads`` and either ``qkv.bias`` or ``q_bias`` and ``v_bias``,
    whose keys have no bias. ``tokens`` ``[B, K, D]`` are what it is called with.
    """
    layer: Any = attention
    bias = layer.qkv.bias
    if bias is None and getattr(layer, "q_bias", None) is not None:
        bias = torch.cat([layer.q_bias, torch.zeros_like(layer.q_bias), layer.v_bias])
    qkv = nn.functional.linear(tokens.float(), layer.qkv.weight.float(), None if bias is None else bias.float())
    queries, keys, _ = qkv.unflatten(-1, (3, layer.num_heads, -1)).permute(2, 0, 3, 1, 4)
    queries, keys = layer.q_norm(queries), layer.k_norm(keys)
    return (queries @ keys.mT * queries.shape[-1] ** -0.5).softmax(dim=-1)


@torch.inference_mode()
def last_attention(encoder: Encoder, patches: Tensor) -> Tensor:
    """``[B, H, c + N, c + N]``: attention of the last block over complete inputs ``[B, N, P]``, CLS first."""
    seen: list[Tensor] = []
    last: Any = encoder.blocks[-1]
    # What reaches the attention depends on where the block has its norms; so it is taken where it arrives.
    hook = last.attn.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    try:
        encoder(patches)
    finally:
        hook.remove()
    return attention_weights(last.attn, seen[-1])


def maps_of(attention: Tensor, num_prefix: int, tokens: Sequence[tuple[str, int]]) -> list[AttentionMap]:
    """The maps of CLS, where there is one, and of some patches, from one clip's ``[H, c + N, c + N]``.

    ``tokens`` are words for each patch and its number.
    """
    queries: list[tuple[str, int | None]] = [(CLS, None)] if num_prefix else []
    found = []
    for words, token in [*queries, *tokens]:
        row = attention[:, 0 if token is None else num_prefix + token]
        on_cls = row[:, :num_prefix].sum(dim=1)
        found.append(AttentionMap(words, token, row[:, num_prefix:].cpu(), on_cls.cpu()))
    return found


def spread(values: Tensor, grid: TokenGrid) -> Tensor:
    """One number per token ``[N]`` over the places it stands for, ``[S, M]``; the mean where patches overlap, 0 where none is."""
    return unpatchify(values[None, :, None].expand(-1, -1, grid.patch_values).contiguous(), grid)[0, 0]
