from __future__ import annotations

import pytest
import torch

from mavil.models.tokens import position_table
from mavil.models.weights import resize_positions
from mavil.models.weights.positions import agree_where_both_know
from mavil.structs import TokenGrid


def audio_grid(steps: int, bins: int, patch: tuple[int, int] = (16, 16)) -> TokenGrid:
    return TokenGrid.of((steps, bins), patch, channels=1)


def random_table(grid: TokenGrid, num_prefix: int = 1, width: int = 6) -> torch.Tensor:
    return torch.randn(1, num_prefix + grid.num_tokens, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("num_prefix", [0, 1])
def test_the_same_cells_keep_their_codes_exactly(num_prefix: int) -> None:
    held, wanted = audio_grid(96, 64), audio_grid(48, 32)
    table = random_table(held, num_prefix)
    found = resize_positions(table, held, wanted)
    assert torch.equal(found[:, :num_prefix], table[:, :num_prefix])
    for time in range(3):
        for band in range(2):
            assert torch.equal(found[0, num_prefix + 2 * time + band], table[0, num_prefix + 4 * time + band])
    assert torch.equal(resize_positions(table, held, held), table)


def test_a_shorter_audio_mae_table_is_its_first_rows() -> None:
    held = audio_grid(1024, 128)
    table = random_table(held)
    assert torch.equal(resize_positions(table, held, audio_grid(512, 128)), table[:, : 1 + 8 * 32])


def test_video_is_cropped_along_each_axis() -> None:
    held = TokenGrid.of((8, 48, 64), (2, 16, 16), channels=3)
    wanted = TokenGrid.of((4, 32, 32), (2, 16, 16), channels=3)
    table = random_table(held, num_prefix=0)
    found = resize_positions(table, held, wanted).reshape(2, 2, 2, -1)
    assert torch.equal(found, table.reshape(4, 3, 4, -1)[:2, :2, :2])


def test_fixed_tables_are_what_computing_them_anew_gives() -> None:
    for held, wanted in [
        (audio_grid(96, 64), audio_grid(48, 64)),
        (audio_grid(96, 64).reordered((1, 0)), audio_grid(48, 64).reordered((1, 0))),
    ]:
        found = resize_positions(position_table(held, 32, "sincos_2d"), held, wanted)
        assert torch.equal(found, position_table(wanted, 32, "sincos_2d"))


def test_finer_cells_are_interpolated_between_known_centres() -> None:
    held, wanted = audio_grid(64, 16), audio_grid(64, 16, patch=(8, 16))
    table = torch.arange(4.0)[None, :, None] * 16 + 8  # the code is the centre of the cell
    found = resize_positions(table, held, wanted)[0, :, 0]
    assert found.tolist() == [8, 12, 20, 28, 36, 44, 52, 56]


def test_coarser_cells_lie_between_the_old_ones() -> None:
    held, wanted = audio_grid(64, 32), audio_grid(64, 32, patch=(32, 16))
    table = random_table(held)
    found = resize_positions(table, held, wanted)[0, 1:].reshape(2, 2, -1)
    old = table[0, 1:].reshape(4, 2, -1)
    torch.testing.assert_close(found, (old[::2] + old[1::2]) / 2)


def test_another_order_of_tokens_keeps_each_cell_its_code() -> None:
    held = audio_grid(48, 32)
    table = random_table(held)
    found = resize_positions(table, held, held.reordered((1, 0)))
    assert torch.equal(found[0, 1:].reshape(2, 3, -1).transpose(0, 1), table[0, 1:].reshape(3, 2, -1))
    assert torch.equal(resize_positions(found, held.reordered((1, 0)), held), table)


def test_beyond_what_is_known_is_refused() -> None:
    held = audio_grid(64, 32)
    with pytest.raises(ValueError, match="known for 64 along axis 0 of the input, but it is 80 long"):
        resize_positions(random_table(held), held, audio_grid(80, 32))
    with pytest.raises(ValueError, match="known for 32 along axis 1 of the input, but it is 48 long"):
        resize_positions(random_table(held), held, audio_grid(64, 48).reordered((1, 0)))
    with pytest.raises(ValueError, match=r"12 rows is none for a grid of \(4, 2\)"):
        resize_positions(torch.ones(1, 12, 4), held, held)


def test_agreement_is_told_by_the_cells_that_both_have() -> None:
    short, long = audio_grid(48, 32), audio_grid(96, 32)
    tables = {grid: position_table(grid, 32, "sincos_2d") for grid in (short, long)}
    assert agree_where_both_know(tables[short], short, tables[long], long)
    assert agree_where_both_know(tables[long], long, tables[short], short)
    assert not agree_where_both_know(tables[long] + 0.1, long, tables[short], short)
    finer = audio_grid(48, 32, patch=(8, 16))
    assert not agree_where_both_know(position_table(finer, 32, "sincos_2d"), finer, tables[short], short)
    finer_and_shorter = audio_grid(24, 32, patch=(8, 16))
    table = position_table(finer_and_shorter, 32, "sincos_2d")
    assert not agree_where_both_know(tables[short], short, table, finer_and_shorter)
    # Audio-MAE's table is that of a grid laid out the other way [source].
    scrambled = position_table(TokenGrid((2, 6), (16, 16), 1), 32, "sincos_2d")
    assert not agree_where_both_know(scrambled, long, tables[short], short)


def test_overlapping_patches_lie_between_those_side_by_side() -> None:
    """Codes that are the middle of their patch, in steps and in mel bins: the middle of every other patch comes out."""
    side, over = TokenGrid.of((96, 32), (16, 16), 1), TokenGrid.of((96, 32), (16, 16), 1, (10, 10))

    def middles(grid: TokenGrid) -> torch.Tensor:
        stride = grid.stride or grid.patch
        ticks = [torch.arange(c) * float(d) + 8 for c, d in zip(grid.cells, stride, strict=True)]
        return torch.cartesian_prod(*ticks)[None]

    assert middles(over)[0, -1].tolist() == [88.0, 18.0]
    torch.testing.assert_close(resize_positions(middles(side), side, over), middles(over))
    within = TokenGrid.of((80, 16), (16, 16), 1)
    torch.testing.assert_close(resize_positions(middles(over), over, within), middles(within))
    shorter = TokenGrid.of((64, 32), (16, 16), 1, (10, 10))
    assert torch.equal(resize_positions(middles(over), over, shorter), middles(shorter))
    with pytest.raises(ValueError, match="known for 56 along axis 0 of the input, but it is 96"):
        resize_positions(middles(shorter), shorter, side)
