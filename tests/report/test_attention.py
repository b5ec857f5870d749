"""Attention maps: the matrix that the fused layer really applies, whatever biases and norms its block has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mavil.models.encoder import Encoder
from mavil.models.layers import Stack
from mavil.report.attention import CLS, last_attention, maps_of, spread
from mavil.structs import TokenGrid

GRID = TokenGrid.of((12, 8), (4, 4), 1)


def encoder_of(grid: TokenGrid = GRID, cls_token: bool = True, **stack: Any) -> Encoder:
    """An encoder none of whose biases and norms is at its start value."""
    encoder = Encoder(grid, Stack(32, 2, 4, **stack), "sincos_2d", cls_token).eval()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return encoder


@torch.inference_mode()
@pytest.mark.parametrize("cls_token", [True, False])
@pytest.mark.parametrize(
    "stack", [{}, {"key_bias": False}, {"post_norm": True}], ids=["pre_norm", "no_key_bias", "post_norm"]
)
def test_weights_times_values_are_what_the_last_block_computes(stack: dict[str, Any], cls_token: bool) -> None:
    encoder, patches = encoder_of(cls_token=cls_token, **stack), torch.randn(3, GRID.num_tokens, GRID.patch_values)
    layer: Any = encoder.blocks[-1].attn
    seen: list[tuple[Tensor, Tensor]] = []
    layer.register_forward_hook(lambda _, arguments, output: seen.append((arguments[0], output)))
    weights = last_attention(encoder, patches)
    given, computed = seen[0]
    assert weights.shape == (3, 4, GRID.num_tokens + cls_token, GRID.num_tokens + cls_token)
    assert torch.allclose(weights.sum(dim=-1), torch.ones(()))
    bias = layer.v_bias if layer.qkv.bias is None else layer.qkv.bias[64:]
    values = (given @ layer.qkv.weight[64:].T + bias).unflatten(-1, (4, 8)).transpose(1, 2)
    mixed = layer.proj((weights @ values).transpose(1, 2).flatten(2))
    assert torch.allclose(mixed, computed, atol=1e-5)


def test_maps_are_rows_of_their_queries() -> None:
    attention = torch.rand(4, 7, 7).softmax(dim=-1)
    of_cls, of_patch = maps_of(attention, 1, [("the fourth", 3)])
    assert (of_cls.query, of_cls.token, of_patch.query, of_patch.token) == (CLS, None, "the fourth", 3)
    assert torch.equal(of_cls.heads, attention[:, 0, 1:])
    assert torch.equal(of_patch.heads, attention[:, 4, 1:])
    assert torch.equal(of_patch.on_cls, attention[:, 4, 0])
    assert torch.allclose(of_patch.mean, attention.mean(dim=0)[4, 1:])
    (alone,) = maps_of(attention, 0, [("the fourth", 3)])
    assert torch.equal(alone.heads, attention[:, 3])
    assert not alone.on_cls.any()


def test_numbers_are_spread_over_the_places_of_their_tokens() -> None:
    assert torch.equal(spread(torch.arange(6.0), GRID)[::4, ::4], torch.arange(6.0).reshape(3, 2))
    reordered = spread(torch.arange(6.0), GRID.reordered((1, 0)))
    assert torch.equal(reordered[::4, ::4], torch.arange(6.0).reshape(2, 3).T)
    overlapping = TokenGrid.of((7, 4), (4, 4), 1, stride=(2, 4))
    assert spread(torch.tensor([1.0, 3.0]), overlapping)[:, 0].tolist() == [1, 1, 2, 2, 3, 3, 0]
