"""Windowed decoder blocks against attention written out cell by cell, and what their windows let through."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mavil.models.layers import Stack
from mavil.models.windowed import (
    PaddedGrid,
    WindowAttention,
    WindowedBlock,
    build_windowed_blocks,
    by_cell,
    by_window,
)
from mavil.structs import TokenGrid

CASES = [
    ((8, 4), (4, 2), (2, 0)),  # sound, time first
    ((4, 8), (2, 4), (0, 2)),  # sound, mel first
    ((4, 2, 4), (2, 2, 2), (1, 0, 0)),  # video
]


def random_block(cells: tuple[int, ...], window: tuple[int, ...], shift: tuple[int, ...], eps: float) -> WindowedBlock:
    torch.manual_seed(0)
    block = WindowedBlock(8, 2, cells, window, shift, mlp_ratio=1.5, layer_norm_eps=eps).double().eval()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    with torch.no_grad():
        block.attn.temperature.copy_(torch.tensor([0.3, -1.0]))  # the second counts as the smallest that is allowed
    return block


def slow_block(block: WindowedBlock, tokens: Tensor, eps: float) -> Tensor:
    """One clip ``[N, E]``, one query and one head at a time, from the description of the original."""
    cells, window, shift, attention = block.grid_cells, block.attn.window, block.shift, block.attn
    places = list(itertools.product(*map(range, cells)))
    width, heads = tokens.shape[1], attention.num_heads
    qkv = (tokens @ attention.qkv.weight.T + attention.qkv.bias).reshape(len(places), 3, heads, width // heads)
    mixed = torch.zeros_like(tokens).reshape(len(places), heads, -1)
    moved = [tuple((p - s) % c for p, s, c in zip(place, shift, cells, strict=True)) for place in places]
    for i, h in itertools.product(range(len(places)), range(heads)):
        logits, members = [], []
        for j in range(len(places)):
            if any(a // w != b // w for a, b, w in zip(moved[i], moved[j], window, strict=True)):
                continue
            query, key = qkv[i, 0, h], qkv[j, 1, h]
            cosine = query @ key / (query.norm() * key.norm())
            offset = [a % w - b % w for a, b, w in zip(moved[i], moved[j], window, strict=True)]
            logged = torch.tensor([math.copysign(math.log1p(abs(d)), d) for d in offset]).to(
                tokens
            )  # rounded to float32, as kept
            hidden = (attention.offset_bias.fc1.weight @ logged + attention.offset_bias.fc1.bias).clamp(min=0)
            bias = attention.offset_bias.fc2.weight[h] @ hidden + attention.offset_bias.fc2.bias[h]
            # Two cells from both sides of the place where the shifted axis was cut.
            apart = any(s and (a < s) != (b < s) for a, b, s in zip(places[i], places[j], shift, strict=True))
            logits.append(cosine / attention.temperature[h].clamp(min=0.01) + bias - 100.0 * apart)
            members.append(j)
        shares = torch.stack(logits).softmax(dim=0)
        mixed[i, h] = sum(share * qkv[j, 2, h] for share, j in zip(shares, members, strict=True))
    attended = mixed.flatten(1) @ attention.proj.weight.T + attention.proj.bias
    tokens = tokens + F.layer_norm(attended, (width,), block.norm1.weight, block.norm1.bias, eps)
    hidden = F.gelu(tokens @ block.mlp.fc1.weight.T + block.mlp.fc1.bias)
    through = hidden @ block.mlp.fc2.weight.T + block.mlp.fc2.bias
    return tokens + F.layer_norm(through, (width,), block.norm2.weight, block.norm2.bias, eps)


@pytest.mark.parametrize(("cells", "window", "shift"), CASES)
@pytest.mark.parametrize("is_shifted", [False, True])
def test_a_block_is_the_slow_loop(
    cells: tuple[int, ...], window: tuple[int, ...], shift: tuple[int, ...], is_shifted: bool
) -> None:
    block = random_block(cells, window, shift if is_shifted else (0,) * len(cells), eps=1e-3)
    tokens = torch.randn(2, math.prod(cells), 8, dtype=torch.float64)
    with torch.no_grad():
        expected = torch.stack([slow_block(block, clip, 1e-3) for clip in tokens])
        torch.testing.assert_close(block(tokens), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("cells", "window"), [((8, 4), (4, 2)), ((4, 2, 6), (2, 1, 3))])
def test_windows_are_cut_and_joined_exactly(cells: tuple[int, ...], window: tuple[int, ...]) -> None:
    numbers = torch.arange(2 * math.prod(cells) * 3).reshape(2, -1, 3)
    windows = by_window(numbers, cells, window)
    corner = numbers.reshape(2, *cells, 3)[(slice(None), *(slice(size) for size in window))]
    assert torch.equal(windows[(slice(None), *(0 for _ in cells))], corner)
    assert torch.equal(by_cell(windows, cells), numbers)


def who_sees(block: WindowedBlock, cells: tuple[int, ...], place: tuple[int, ...]) -> set[tuple[int, ...]]:
    """The cells whose values reach the output of one cell."""
    tokens = torch.randn(1, *cells, 8, requires_grad=True)
    block.float()(tokens.flatten(1, len(cells))).unflatten(1, cells)[(0, *place, 0)].backward()
    assert tokens.grad is not None
    return {tuple(where) for where in (tokens.grad[0].abs().sum(dim=-1) > 1e-12).nonzero().tolist()}


@pytest.mark.parametrize(("axes", "cells", "window"), [(None, (8, 4), (4, 2)), ((1, 0), (4, 8), (2, 4))])
def test_only_odd_blocks_are_shifted_along_time_alone_if_so_asked(
    axes: tuple[int, ...] | None, cells: tuple[int, ...], window: tuple[int, ...]
) -> None:
    grid = TokenGrid(cells, (16, 16), 1, axes)
    even, odd = build_windowed_blocks(Stack(8, 2, 2), grid, window, shift="time").eval()
    in_order = (lambda time, band: (time, band)) if axes is None else (lambda time, band: (band, time))
    assert who_sees(even, cells, in_order(3, 1)) == {in_order(t, f) for t in range(4) for f in range(2)}
    assert who_sees(odd, cells, in_order(3, 1)) == {in_order(t, f) for t in range(2, 6) for f in range(2)}
    # The window that wraps around: its two ends do not see each other.
    assert who_sees(odd, cells, in_order(0, 3)) == {in_order(t, f) for t in range(2) for f in (2, 3)}
    assert who_sees(odd, cells, in_order(7, 3)) == {in_order(t, f) for t in (6, 7) for f in (2, 3)}


def test_else_odd_blocks_are_shifted_along_every_axis() -> None:
    blocks = build_windowed_blocks(Stack(8, 2, 2), TokenGrid((8, 4), (16, 16), 1), (4, 2)).eval()
    assert who_sees(blocks[1], (8, 4), (3, 1)) == {(t, f) for t in range(2, 6) for f in (1, 2)}
    assert who_sees(blocks[1], (8, 4), (7, 3)) == {(6, 3), (7, 3)}  # both axes wrap around


def test_a_grid_that_windows_do_not_divide_is_padded_and_cropped() -> None:
    grid = PaddedGrid((5, 3), (2, 2))
    tokens = torch.randn(2, 15, 8)
    padded = grid.pad(tokens)
    assert grid.cells == (6, 4)
    assert torch.equal(padded.unflatten(1, (6, 4))[:, :5, :3].flatten(1, 2), tokens)
    assert padded.unflatten(1, (6, 4))[:, 5:].abs().sum() + padded.unflatten(1, (6, 4))[:, :, 3:].abs().sum() == 0
    assert torch.equal(grid.crop(padded), tokens)
    exact = PaddedGrid((6, 4), (2, 2))
    assert exact.pad(padded) is padded


def test_windows_as_long_as_the_clip_are_not_shifted() -> None:
    grid = TokenGrid((4, 4), (16, 16), 1)
    for shift, moved in (("all", (0, 1)), ("time", (0, 0))):
        blocks = build_windowed_blocks(Stack(8, 2, 2), grid, (4, 2), shift)
        assert [block.shift for block in blocks] == [(0, 0), moved]


def test_the_stack_decides_the_sizes() -> None:
    stack = Stack(width=12, depth=3, num_heads=3, mlp_ratio=2.5, layer_norm_eps=1e-5)
    blocks = build_windowed_blocks(stack, TokenGrid((4, 2, 2), (2, 16, 16), 3), (2, 2, 1))
    assert len(blocks) == 3
    assert blocks[1].mlp.fc1.out_features == 30
    assert {blocks[1].norm1.eps, blocks[1].norm2.eps} == {1e-5}
    assert blocks[1].attn.offset_bias.fc1.weight.shape == (384, 3)
    assert blocks[1].attn.offset_bias.fc2.weight.shape == (*blocks[1].attn.temperature.shape, 384) == (3, 384)


def test_saved_are_weights_only() -> None:
    """The names a checkpoint of Audio-MAE is translated to; tables that follow from the geometry are not among them."""
    block = WindowedBlock(8, 2, (8, 4), (4, 2), (2, 0))
    linears = ("attn.qkv", "attn.proj", "attn.offset_bias.fc1", "attn.offset_bias.fc2", "mlp.fc1", "mlp.fc2")
    pairs = {f"{name}.{kind}" for name in (*linears, "norm1", "norm2") for kind in ("weight", "bias")}
    assert set(block.state_dict()) == {"attn.temperature", *pairs}


def test_only_the_direction_of_queries_and_keys_counts_and_long_ones_do_not_overflow() -> None:
    attention = WindowAttention(8, 2, (6, 2), (2, 2)).eval()
    tokens, longer = torch.randn(1, 12, 8), copy.deepcopy(attention)
    with torch.no_grad():
        longer.qkv.weight[:16] *= 1e4
        longer.qkv.bias[:16] *= 1e4
    expected = attention(tokens, None)
    torch.testing.assert_close(longer(tokens, None), expected)
    with torch.autocast("cpu", torch.float16):
        torch.testing.assert_close(longer(tokens, None).float(), expected, atol=0.02, rtol=0.02)


def test_the_bias_of_an_offset_is_dropped_out_in_training_only() -> None:
    attention = WindowAttention(8, 2, (6, 2), (2, 2))
    tokens = torch.randn(1, 12, 8)
    torch.nn.init.normal_(attention.offset_bias.fc2.bias)
    assert not torch.equal(attention(tokens, None), attention(tokens, None))
    attention.eval()
    assert torch.equal(attention(tokens, None), attention(tokens, None))
    assert attention.offset_bias.drop1.p == attention.offset_bias.drop2.p == 0.1


def test_every_weight_gets_a_gradient_at_depth_two() -> None:
    blocks = build_windowed_blocks(Stack(8, 2, 2), TokenGrid((4, 4), (16, 16), 1), (2, 2))
    tokens = torch.randn(2, 16, 8)
    for block in blocks:
        tokens = block(tokens)
    tokens.square().sum().backward()
    without = [name for name, p in blocks.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without


@pytest.mark.parametrize(
    ("cells", "window", "shift"), [((8, 6), (4, 4), (0, 0)), ((8, 8), (4,), (0, 0)), ((8, 8), (4, 4), (4, 0))]
)
def test_windows_that_do_not_fit_are_refused_with_both_sizes(
    cells: tuple[int, ...], window: tuple[int, ...], shift: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="must be") as caught:
        WindowedBlock(8, 2, cells, window, shift)
    assert str(window) in str(caught.value)
    assert str(cells) in str(caught.value) or str(shift) in str(caught.value)


def test_windows_that_are_larger_than_the_grid_are_refused() -> None:
    for window in ((9, 4), (4,)):
        with pytest.raises(ValueError, match=r"do not fit into a token grid of \(8, 8\)"):
            build_windowed_blocks(Stack(8, 2, 2), TokenGrid((8, 8), (16, 16), 1), window)
