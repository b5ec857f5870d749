import math

import pytest
import torch

from mavil.models.tokens import PatchEmbed, patchify, position_table, select, unpatchify
from mavil.structs import TokenGrid

AUDIO = TokenGrid.of((64, 32), (16, 16), channels=1)
VIDEO = TokenGrid.of((4, 32, 48), (2, 16, 16), channels=3)


@pytest.mark.parametrize(("grid", "shape"), [(AUDIO, (2, 1, 64, 32)), (VIDEO, (2, 3, 4, 32, 48))])
def test_unpatchify_is_the_exact_inverse(grid: TokenGrid, shape: tuple[int, ...]) -> None:
    values = torch.randn(shape)
    patches = patchify(values, grid)
    assert patches.shape == (2, grid.num_tokens, grid.patch_values)
    assert torch.equal(unpatchify(patches, grid), values)


def test_audio_tokens_are_time_major() -> None:
    spectrogram = torch.arange(64 * 32.0).reshape(1, 1, 64, 32)
    patches = patchify(spectrogram, AUDIO)
    # Token 3 of a grid with two mel cells per step is (s=1, m=1): it begins at step 16, bin 16.
    assert patches[0, 3, 0] == spectrogram[0, 0, 16, 16]
    assert patches[0, 3, 1] == spectrogram[0, 0, 16, 17]


def test_video_patch_values_are_frame_row_column_channel() -> None:
    frames = torch.randn(1, 3, 4, 32, 48)
    patches = patchify(frames, VIDEO)
    token = 1 * 6 + 1 * 3 + 2  # (t=1, h=1, w=2)
    value = ((1 * 16 + 5) * 16 + 7) * 3 + 2  # frame 1, row 5, column 7, channel 2 inside the patch
    assert patches[0, token, value] == frames[0, 2, 2 + 1, 16 + 5, 32 + 7]


@pytest.mark.parametrize(("grid", "shape"), [(AUDIO, (2, 1, 64, 32)), (VIDEO, (2, 3, 4, 32, 48))])
def test_embedding_cut_patches_equals_the_convolution(grid: TokenGrid, shape: tuple[int, ...]) -> None:
    embed = PatchEmbed(grid, 24)
    torch.nn.init.normal_(embed.proj.bias)
    values = torch.randn(shape)
    expected = embed.proj(values).flatten(2).transpose(1, 2)
    torch.testing.assert_close(embed(patchify(values, grid)), expected, atol=1e-5, rtol=1e-5)


def test_wrong_input_size_names_both_sizes() -> None:
    with pytest.raises(ValueError, match=r"\(1, 64, 16\).*\(1, 64, 32\)"):
        patchify(torch.zeros(1, 1, 64, 16), AUDIO)


def test_input_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple"):
        TokenGrid.of((60, 32), (16, 16), channels=1)


def test_audio_position_closed_form() -> None:
    table = position_table(AUDIO, 16, "sincos_2d")
    assert table.shape == (1, 9, 16)
    assert torch.equal(table[0, 0], torch.zeros(16))
    row = table[0, 1 + 2 * 2 + 1]  # token (s=2, m=1)
    # Columns first: sin(1 w), cos(1 w), then rows: sin(2 w), cos(2 w), with w = 10000^(-k/4).
    frequencies = [10000 ** (-k / 4) for k in range(4)]
    expected = [f(p * w) for p in (1, 2) for f in (math.sin, math.cos) for w in frequencies]
    torch.testing.assert_close(row, torch.tensor(expected))


def test_3d_positions_know_the_time_and_tiled_ones_do_not() -> None:
    cells = VIDEO.cells[1] * VIDEO.cells[2]
    known = position_table(VIDEO, 32, "sincos_3d")[0, 1:]
    assert not torch.allclose(known[:cells], known[cells:])
    torch.testing.assert_close(known[:cells, 8:], known[cells:, 8:])  # only the first quarter is time
    tiled = position_table(VIDEO, 32, "tiled_2d")[0, 1:]
    assert torch.equal(tiled[:cells], tiled[cells:])


def test_select_takes_rows_per_clip() -> None:
    tokens = torch.randn(2, 5, 3)
    chosen = select(tokens, torch.tensor([[4, 0], [1, 1]]))
    assert torch.equal(chosen[0], tokens[0, [4, 0]])
    assert torch.equal(chosen[1], tokens[1, [1, 1]])


def test_mel_first_tokens_run_along_time_within_a_band() -> None:
    grid = AUDIO.reordered((1, 0))
    spectrogram = torch.arange(64 * 32.0).reshape(1, 1, 64, 32)
    patches = patchify(spectrogram, grid)
    assert grid.cells == (2, 4)
    assert (AUDIO.time_axis, grid.time_axis) == (0, 1)
    # Token 5 is band 1, step 1; inside it values run along time first.
    assert patches[0, 5, 0] == spectrogram[0, 0, 16, 16]
    assert patches[0, 5, 1] == spectrogram[0, 0, 17, 16]
    assert torch.equal(unpatchify(patches, grid), spectrogram)


def test_a_reordered_grid_still_refuses_the_wrong_size() -> None:
    grid = TokenGrid.of((48, 32, 16), (16, 16, 16), channels=1).reordered((2, 0, 1))
    assert grid.size == (48, 32, 16)
    values = torch.randn(1, 1, 48, 32, 16)
    assert torch.equal(unpatchify(patchify(values, grid), grid), values)
    with pytest.raises(ValueError, match="does not fit"):
        patchify(values.transpose(2, 3), grid)


def test_position_table_without_a_prefix() -> None:
    assert torch.equal(
        position_table(AUDIO, 16, "sincos_2d", num_prefix=0), position_table(AUDIO, 16, "sincos_2d")[:, 1:]
    )


def test_a_longer_input_keeps_the_positions_it_shares_with_a_shorter_one() -> None:
    longer = TokenGrid.of((96, 32), (16, 16), channels=1)
    assert torch.equal(position_table(longer, 16, "sincos_2d")[:, :9], position_table(AUDIO, 16, "sincos_2d"))


def test_a_mask_ratio_that_leaves_nothing_is_refused() -> None:
    grid = TokenGrid((8,), (1,), 1)
    with pytest.raises(ValueError, match=r"0.99 of 8 tokens leaves no token visible: choose at most 0.875"):
        grid.num_visible(0.99)
    assert grid.num_visible(0.875) == 1
