"""What a recipe's model is compared with: the same network written without thinking of speed, and one that hides nothing.

The plain one computes the same loss from the same weights, as the public codes do: every token is embedded and the hidden ones
are then dropped, each view passes the encoder by itself, and attention is three steps with its matrix in memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType

import torch
import torch.nn.functional as F
from torch import Tensor

from mavil.config import Recipe
from mavil.models.masked import MaskedLearner
from mavil.models.tokens import select
from mavil.structs import MaskedViews, Modality

OURS, PLAIN, COMPLETE, PUBLIC = "ours", "plain", "all tokens", "public code"
PEERS = (OURS, PLAIN, COMPLETE)
"""The model as it is; written plainly; as it is, but the encoders see all tokens but one. :data:`PUBLIC` runs by itself."""


def complete_changes(recipe: Recipe) -> list[str]:
    """Changes with which encoders see all tokens but one per modality."""
    changes = [f"{modality}.mask_ratio=1e-9" for modality in recipe.modalities]
    return [*changes, "audio.masking={kind: random}"] if "audio" in recipe.modalities else changes


@contextmanager
def written_plainly(model: MaskedLearner) -> Iterator[None]:
    """Inside, the model computes what it always does, as described above."""
    fused = F.scaled_dot_product_attention
    # Both are looked up at every call; a copy of the network would be a second thing to keep true.
    F.scaled_dot_product_attention = plain_attention  # type: ignore[assignment]
    model._encode = MethodType(embed_then_drop, model)  # type: ignore[method-assign]
    try:
        yield
    finally:
        F.scaled_dot_product_attention = fused
        del model._encode


def embed_then_drop(model: MaskedLearner, modality: Modality, patches: Tensor, views: MaskedViews) -> list[Tensor]:
    """``[B, c + K, D]`` of each view from all patches ``[B, N, P]``; stands in for :meth:`MaskedLearner._encode`."""
    encoder, encoded = model.encoder(modality), []
    for view in views.distinct():
        tokens = encoder.embed(patches)
        prefix = encoder.num_prefix
        tokens = torch.cat([tokens[:, :prefix], select(tokens[:, prefix:], view.visible_ids)], dim=1)
        for block in encoder.blocks:
            tokens = block(tokens)
        encoded.append(tokens)
    return encoded


def plain_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """As torch's ``scaled_dot_product_attention``, with the matrix in memory; what is causal is not known here."""
    assert not is_causal
    weights = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if attn_mask is not None:
        is_flag = attn_mask.dtype == torch.bool
        weights = weights.masked_fill(~attn_mask, -torch.inf) if is_flag else weights + attn_mask
    return F.dropout(weights.softmax(dim=-1), dropout_p) @ value
