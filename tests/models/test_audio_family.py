"""Encoder and decoder as Audio-MAE, MAE-AST and MSM-MAE set them: positions, overlapping patches, padding, decoders."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from mavil.models.decoder import Decoder
from mavil.models.encoder import Encoder
from mavil.models.layers import Stack
from mavil.models.masking import random_masking
from mavil.models.tokens import ConvolutionalPositions, patchify, position_table, sincos_2d, unpatchify
from mavil.structs import TokenGrid

GRID = TokenGrid.of((64, 32), (16, 16), 1)
STACK = Stack(32, 2, 4)
POST = Stack(32, 2, 4, post_norm=True)


def test_overlapping_patches_are_those_of_unfold_and_embed_like_a_strided_convolution() -> None:
    grid = TokenGrid.of((43, 26), (16, 16), 1, stride=(10, 10))
    assert grid.cells == (3, 2)
    assert grid.size == (43, 26)
    values = torch.randn(2, 1, 43, 26)
    patches = patchify(values, grid)
    assert torch.equal(patches, F.unfold(values, (16, 16), stride=(10, 10)).transpose(1, 2))
    encoder = Encoder(grid, STACK, "sincos_2d")
    convolution = F.conv2d(values, encoder.patch_embed.proj.weight, stride=10).flatten(2).transpose(1, 2)
    torch.testing.assert_close(encoder.patch_embed(patches), convolution, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("axes", [None, (1, 0)])
def test_overlapping_patches_are_put_together_again_as_their_mean(axes: tuple[int, ...] | None) -> None:
    grid = TokenGrid.of((36, 26), (16, 16), 1, stride=(10, 10))
    grid = grid if axes is None else grid.reordered(axes)
    values = torch.randn(2, 1, 36, 26)
    torch.testing.assert_close(unpatchify(patchify(values, grid), grid), values)
    patches = patchify(values, grid)
    patches[:, 0] += 1
    touched = unpatchify(patches, grid) - values
    assert touched[0, 0, 0, 0] == pytest.approx(1.0)
    assert touched[0, 0, 12, 0] == pytest.approx(0.5)  # two patches lie over it
    assert touched[0, 0, 12, 12] == pytest.approx(0.25)


def test_what_lies_behind_the_last_patch_is_left_out_and_strides_leave_no_gaps() -> None:
    grid = TokenGrid.of((43, 26), (16, 16), 1, stride=(10, 10))
    assert not unpatchify(patchify(torch.ones(1, 1, 43, 26), grid), grid)[0, 0, 36:].any()
    with pytest.raises(ValueError, match=r"\(17, 10\)"):
        TokenGrid.of((64, 32), (16, 16), 1, stride=(17, 10))
    with pytest.raises(ValueError, match="not larger than the input"):
        TokenGrid.of((12, 32), (16, 16), 1, stride=(10, 10))


def test_the_1d_table_is_sine_and_cosine_in_turn_over_token_numbers() -> None:
    table = position_table(GRID, 8, "sincos_1d")
    assert not table[0, 0].any()
    expected = [f(5 / 10000 ** (2 * k / 8)) for k in range(4) for f in (math.sin, math.cos)]
    torch.testing.assert_close(table[0, 1 + 5], torch.tensor(expected))


def test_the_transposed_table_is_that_of_the_other_grid_row_by_row() -> None:
    grid = TokenGrid.of((1024, 128), (16, 16), 1)
    table = position_table(grid, 16, "transposed_2d")[0, 1:]
    assert torch.equal(table, sincos_2d(8, 64, 16).float())
    # Token (t, f) has the code of column 8 (t mod 8) + f and row t div 8.
    t, f = 19, 3
    column = position_table(TokenGrid.of((128, 1024), (16, 16), 1), 16, "sincos_2d")[0, 1:]
    assert torch.equal(table[8 * t + f], column[64 * (t // 8) + 8 * (t % 8) + f])


@pytest.mark.parametrize("stack", [STACK, POST])
@pytest.mark.parametrize("positions", ["sincos_1d", "convolutional"])
@pytest.mark.parametrize("cls_token", [True, False])
def test_a_padded_clip_is_encoded_as_alone(stack: Stack, positions: str, cls_token: bool) -> None:
    torch.manual_seed(0)
    encoder = Encoder(GRID, stack, positions, cls_token).eval()
    patches = torch.randn(2, 8, 256)
    is_padding = torch.arange(8) >= torch.tensor([[8], [5]])
    padded = encoder(patches, is_padding=is_padding)
    changed = patches.masked_fill(is_padding[..., None], 7.0)
    prefix = encoder.num_prefix
    torch.testing.assert_close(encoder(changed, is_padding=is_padding)[1, : prefix + 5], padded[1, : prefix + 5])
    if positions == "sincos_1d":
        alone = encoder(patches[1:, :5], torch.arange(5)[None])
        torch.testing.assert_close(padded[1, : prefix + 5], alone[0], atol=1e-5, rtol=1e-5)
    if positions == "sincos_1d":  # a token of padding has no position: only its patch
        entered = encoder.embed(patches, is_padding=is_padding)[1, prefix + 5 :]
        torch.testing.assert_close(entered, encoder.input_norm(encoder.patch_embed(patches))[1, 5:])
    *_, last = encoder.layers(patches, is_padding)
    assert torch.equal(last, padded)


def test_convolutional_positions_of_all_tokens_are_those_of_the_complete_row() -> None:
    torch.manual_seed(0)
    positions = ConvolutionalPositions(32)
    tokens = torch.randn(2, 8, 32)
    order = torch.stack([torch.randperm(8) for _ in range(2)])
    shuffled = tokens.gather(1, order[..., None].expand(-1, -1, 32))
    complete = positions(tokens).gather(1, order[..., None].expand(-1, -1, 32))
    torch.testing.assert_close(positions.of_visible(shuffled, order, 8), complete)
    few = positions.of_visible(shuffled[:, :3], order[:, :3], 8)
    hidden = tokens.scatter(1, order[:, 3:, None].expand(-1, -1, 32), 0.0)
    torch.testing.assert_close(few, positions(hidden).gather(1, order[:, :3, None].expand(-1, -1, 32)))
    assert positions(tokens).shape == tokens.shape


def make_decoder(**options: Any) -> Decoder:
    torch.manual_seed(0)
    stack = options.pop("stack", STACK)
    return Decoder(options.pop("grid", GRID), 32, stack, options.pop("positions", "sincos_2d"), 256, **options).eval()


def test_without_a_projection_tokens_enter_as_they_are() -> None:
    decoder = make_decoder(projects=False, has_cls=False, stack=POST)
    assert not any(name.startswith(("embed", "norm.")) for name in decoder.state_dict())
    assert "input_norm.weight" in decoder.state_dict()
    view = random_masking(torch.rand(2, 8), 8)
    tokens = torch.randn(2, 8, 32)
    in_order = tokens.gather(1, view.restore_ids[..., None].expand(-1, -1, 32)) + decoder.pos_embed
    for block in [decoder.input_norm, *decoder.blocks]:
        in_order = block(in_order)
    torch.testing.assert_close(decoder(tokens, view), decoder.pred(in_order))
    with pytest.raises(ValueError, match="width 16 cannot take 32"):
        Decoder(GRID, 32, Stack(16, 1, 2), "sincos_2d", 256, projects=False)


def test_a_hybrid_decoder_ends_with_global_blocks_and_still_leaves_cls_out() -> None:
    hybrid = make_decoder(stack=Stack(32, 3, 4), window=(2, 2), global_blocks=1)
    kinds = [type(block).__name__ for block in hybrid.blocks]
    assert kinds == ["WindowedBlock", "WindowedBlock", "PreNormBlock"]
    assert hybrid.blocks[1].shift == (1, 0)  # a window as wide as the grid is not moved along that axis
    view = random_masking(torch.rand(2, 8), 3)
    tokens = torch.randn(2, 4, 32)
    before = hybrid(tokens, view)
    tokens[:, 0] += 1
    assert torch.equal(hybrid(tokens, view), before)
    tokens[:, 1, 0] += 1
    assert (hybrid(tokens, view) != before).any(dim=2).all()  # every token sees every other one


def test_a_windowed_decoder_of_overlapping_patches_predicts_every_token() -> None:
    grid = TokenGrid.of((1024, 128), (16, 16), 1, stride=(10, 10))
    assert grid.cells == (101, 12)
    decoder = make_decoder(grid=grid, window=(6, 6), stack=Stack(16, 2, 2))
    view = random_masking(torch.rand(1, 1212), 242)
    assert decoder(torch.randn(1, 243, 32), view).shape == (1, 1212, 256)


def test_the_second_head_looks_at_what_the_first_looks_at() -> None:
    decoder = make_decoder(discriminates=True)
    view = random_masking(torch.rand(2, 8), 3)
    tokens = torch.randn(2, 4, 32)
    decoded = decoder.decode(tokens, view)
    assert torch.equal(decoder(tokens, view), decoder.pred(decoded))
    assert decoder.discriminate is not None
    assert decoder.discriminate(decoded).shape == (2, 8, 256)
