"""Patches, their embedding and their positions: from a spectrogram or frames to tokens, and exactly back."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mavil.structs import TokenGrid


def patchify(values: Tensor, grid: TokenGrid) -> Tensor:
    """Cut ``[B, C, *size]`` into ``[B, N, P]``.

    Tokens are row-major, time first; inside a patch the order is the axes' order with the channel last (MAE's target
    order). ``size`` is ``(S, M)`` for audio, ``(T, H, Wd)`` for video. A reordered grid takes the axes in its own order.

    Raises:
        ValueError: the input is not what the grid was made for.
    """
    expected = (grid.channels, *grid.size)
    if tuple(values.shape[1:]) != expected:
        raise ValueError(f"an input of {tuple(values.shape[1:])} does not fit a grid of {expected} (channels first)")
    axes = len(grid.cells)
    if grid.axes is not None:
        values = values.permute(0, 1, *(2 + axis for axis in grid.axes))
    split = values.reshape(values.shape[0], grid.channels, *sum(zip(grid.cells, grid.patch, strict=True), ()))
    cells, insides = [2 + 2 * i for i in range(axes)], [3 + 2 * i for i in range(axes)]
    return split.permute(0, *cells, *insides, 1).reshape(values.shape[0], grid.num_tokens, grid.patch_values)


def unpatchify(patches: Tensor, grid: TokenGrid) -> Tensor:
    """The exact inverse of :func:`patchify`: ``[B, N, P]`` to ``[B, C, *size]``."""
    axes = len(grid.cells)
    split = patches.reshape(patches.shape[0], *grid.cells, *grid.patch, grid.channels)
    order = [0, 2 * axes + 1, *(axis for i in range(axes) for axis in (1 + i, 1 + axes + i))]
    size = [c * p for c, p in zip(grid.cells, grid.patch, strict=True)]
    return in_order_of_input(split.permute(*order).reshape(patches.shape[0], grid.channels, *size), grid)


def in_order_of_input(values: Tensor, grid: TokenGrid) -> Tensor:
    """The last axes of ``[..., *cells or *size]`` from the grid's order to that of the input it was cut from."""
    if grid.axes is None:
        return values
    first = values.ndim - len(grid.axes)
    return values.permute(*range(first), *(first + grid.axes.index(axis) for axis in range(len(grid.axes))))


def select(tokens: Tensor, ids: Tensor) -> Tensor:
    """Rows ``ids`` ``[B, K]`` of ``[B, N, X]`` (or of one table ``[1, N, X]`` for all clips): ``[B, K, X]``."""
    tokens = tokens.expand(ids.shape[0], -1, -1)
    return tokens.gather(1, ids.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


class PatchEmbed(nn.Module):
    """Linear embedding of patches that are already cut out, so that only visible ones are ever embedded.

    ``proj`` is a convolution only in name and weight shape (``[D, C, *patch]``), which lets public MAE-family checkpoints
    load; stride equals kernel, so applying it to a cut-out patch is a matrix product.
    """

    def __init__(self, grid: TokenGrid, width: int) -> None:
        super().__init__()
        convolution = nn.Conv2d if len(grid.patch) == 2 else nn.Conv3d
        self.proj = convolution(grid.channels, width, kernel_size=grid.patch, stride=grid.patch)  # type: ignore[arg-type]
        # MAE initialises the kernel like a linear layer over the flattened patch [source].
        nn.init.xavier_uniform_(self.proj.weight.view(width, -1))
        nn.init.zeros_(self.proj.bias)  # type: ignore[arg-type]

    def forward(self, patches: Tensor) -> Tensor:
        """``[B, K, P]`` to ``[B, K, D]``."""
        kernel = self.proj.weight.movedim(1, -1).flatten(1)  # [D, C, *patch] -> [D, P], channel last as in patchify
        return F.linear(patches, kernel, self.proj.bias)


def sincos_1d(positions: Tensor, width: int) -> Tensor:
    """``[n]`` positions to ``[n, width]``: sines, then cosines, of position x 10000^(-k / (width / 2)) [source MAE]."""
    frequencies = 10000.0 ** (-torch.arange(width // 2, dtype=torch.float64) / (width / 2))
    angles = positions.double()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def sincos_2d(rows: int, columns: int, width: int) -> Tensor:
    """``[rows * columns, width]``, row-major; the first half of the channels encodes the column [source MAE]."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    halves = [sincos_1d(column.flatten(), width // 2), sincos_1d(row.flatten(), width // 2)]
    return torch.cat(halves, dim=1)


def sincos_3d(times: int, rows: int, columns: int, width: int) -> Tensor:
    """``[times * rows * columns, width]``: a quarter of the channels for time, the rest a 2-D table [source AV-SUPERB copy]."""
    time = sincos_1d(torch.arange(times), width // 4).repeat_interleave(rows * columns, dim=0)
    return torch.cat([time, sincos_2d(rows, columns, width - width // 4).repeat(times, 1)], dim=1)


def position_table(grid: TokenGrid, width: int, kind: str, num_prefix: int = 1) -> Tensor:
    """Fixed positions ``[1, c + N, width]`` float32; the ``num_prefix`` first rows belong to CLS and are zero [source MAE].

    ``kind`` ``sincos_2d`` fits audio; ``sincos_3d`` and ``tiled_2d`` (the image table repeated over time, blind to the
    temporal index as in MAViL's conversion code) fit video.
    """
    if kind == "sincos_2d":
        table = sincos_2d(grid.cells[0], grid.cells[1], width)
    elif kind == "sincos_3d":
        table = sincos_3d(grid.cells[0], grid.cells[1], grid.cells[2], width)
    elif kind == "tiled_2d":
        table = sincos_2d(grid.cells[1], grid.cells[2], width).repeat(grid.cells[0], 1)
    else:
        raise ValueError(f"{kind!r} is no kind of position table; there are sincos_2d, sincos_3d and tiled_2d")
    return torch.cat([torch.zeros(num_prefix, width), table.float()])[None]


def add_positions(
    module: nn.Module, name: str, grid: TokenGrid, width: int, kind: str, num_prefix: int, is_trained: bool = False
) -> None:
    """Give ``module`` a position table of that name: a buffer, saved with the weights, or a parameter if it is trained."""
    table = position_table(grid, width, kind, num_prefix)
    if is_trained:
        module.register_parameter(name, nn.Parameter(table))
    else:
        module.register_buffer(name, table)
