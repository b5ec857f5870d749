"""Position tables for inputs of another size: known positions keep their code."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mavil.models.tokens import in_order_of_input
from mavil.structs import TokenGrid


def resize_positions(table: Tensor, held: TokenGrid, wanted: TokenGrid) -> Tensor:
    """A table ``[1, c + N, D]`` made for the grid ``held``, for ``wanted``: ``[1, c + N', D]``; CLS rows (c) stay.

    Where the cells are as large as before a shorter input takes the first rows, exactly: a token keeps the code it was trained
    with [our choice; Audio-MAE's own cut keeps columns of a grid laid out the wrong way]. Finer or coarser cells get the
    linear interpolation between the known centres, and within half a cell of the border the nearest known code. Meant for
    learned tables and for those of other projects; our fixed ones are computed for any size.

    Raises:
        ValueError: the wanted grid reaches beyond what is known, or the table is not one for ``held``.
    """
    num_prefix = table.shape[1] - held.num_tokens
    if num_prefix not in (0, 1):
        raise ValueError(f"a table of {table.shape[1]} rows is none for a grid of {held.cells} cells")
    prefix, codes = table[:, :num_prefix], table[0, num_prefix:]
    spread = in_order_of_input(codes.T.reshape(-1, *held.cells), held)  # [D, *cells]
    for axis, (old, new) in enumerate(zip(_by_input_axis(held), _by_input_axis(wanted), strict=True)):
        if new.length > old.length:
            raise ValueError(
                f"positions are known for {old.length} along axis {axis} of the input, but it is {new.length} long: shorten "
                "the input, or use a fixed table, which is computed for any length"
            )
        spread = _resampled(spread, 1 + axis, old, new)
    if wanted.axes is not None:
        spread = spread.permute(0, *(1 + axis for axis in wanted.axes))
    return torch.cat([prefix, spread.flatten(1).T[None]], dim=1)


def agree_where_both_know(table: Tensor, held: TokenGrid, other: Tensor, wanted: TokenGrid) -> bool:
    """Whether two tables give the same code to every cell that both grids have, e.g. because both are computed alike.

    Cells of different size are never the same.
    """
    if (held.patch, held.stride, held.axes) != (wanted.patch, wanted.stride, wanted.axes):
        return False
    cells = tuple(min(a, b) for a, b in zip(held.cells, wanted.cells, strict=True))
    shared = TokenGrid(cells, held.patch, held.channels, held.axes, held.stride)
    first, second = resize_positions(table, held, shared), resize_positions(other, wanted, shared)
    # Tables are float32 of float64 sines, perhaps of another library.
    return first.shape == second.shape and torch.allclose(first.float(), second.float(), atol=1e-5, rtol=0)


@dataclass(frozen=True)
class _Axis:
    """One axis of the input: cells, the size of a patch, and from one to the next."""

    cells: int
    patch: int
    stride: int

    @property
    def length(self) -> int:
        """Of the input, up to the end of the last patch."""
        return (self.cells - 1) * self.stride + self.patch


def _by_input_axis(grid: TokenGrid) -> list[_Axis]:
    order = grid.axes or tuple(range(len(grid.cells)))
    axes = [_Axis(*of) for of in zip(grid.cells, grid.patch, grid.stride or grid.patch, strict=True)]
    return [axes[order.index(axis)] for axis in range(len(axes))]


def _resampled(spread: Tensor, axis: int, old: _Axis, new: _Axis) -> Tensor:
    """Linear interpolation along one axis at the centres of new cells, measured in old cells."""
    if (old.patch, old.stride) == (new.patch, new.stride):
        return spread.narrow(axis, 0, new.cells)
    last = spread.shape[axis] - 1
    centres = torch.arange(new.cells, dtype=torch.float64) * new.stride + (new.patch - old.patch) / 2
    centres = (centres / old.stride).clamp(0, last)
    below = centres.floor().long()
    share = (centres - below).to(spread.dtype).reshape(-1, *[1] * (spread.dim() - 1 - axis)).to(spread.device)
    low, high = (spread.index_select(axis, ids.to(spread.device)) for ids in (below, (below + 1).clamp(max=last)))
    return torch.lerp(low, high, share)
