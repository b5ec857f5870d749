"""Patches, their embedding and their positions: from a spectrogram or frames to tokens, and exactly back."""

from __future__ import annotations

import math
from dataclasses import replace

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
    if grid.stride is not None:
        for axis, (size, step) in enumerate(zip(grid.patch, grid.stride, strict=True)):
            values = values.unfold(2 + axis, size, step)  # the patch's own axes gather at the end
        order = (0, *range(2, 2 + 2 * axes), 1)
        return values.permute(order).reshape(values.shape[0], grid.num_tokens, grid.patch_values)
    split = values.reshape(values.shape[0], grid.channels, *sum(zip(grid.cells, grid.patch, strict=True), ()))
    cells, insides = [2 + 2 * i for i in range(axes)], [3 + 2 * i for i in range(axes)]
    return split.permute(0, *cells, *insides, 1).reshape(values.shape[0], grid.num_tokens, grid.patch_values)


def unpatchify(patches: Tensor, grid: TokenGrid) -> Tensor:
    """The inverse of :func:`patchify`: ``[B, N, P]`` to ``[B, C, *size]``.

    Exact where patches lie side by side. Where they overlap it is their mean, and what lies behind the last one is 0.
    """
    if grid.stride is not None:
        return _overlapping_mean(patches, grid)
    axes = len(grid.cells)
    split = patches.reshape(patches.shape[0], *grid.cells, *grid.patch, grid.channels)
    order = [0, 2 * axes + 1, *(axis for i in range(axes) for axis in (1 + i, 1 + axes + i))]
    size = [c * p for c, p in zip(grid.cells, grid.patch, strict=True)]
    return in_order_of_input(split.permute(*order).reshape(patches.shape[0], grid.channels, *size), grid)


def _overlapping_mean(patches: Tensor, grid: TokenGrid) -> Tensor:
    places = torch.arange(math.prod(grid.size), device=patches.device, dtype=torch.float64).reshape(1, 1, *grid.size)
    ids = patchify(places, replace(grid, channels=1)).long().flatten()  # which number of the input each patch value is
    values = patches.unflatten(2, (-1, grid.channels)).permute(0, 3, 1, 2).flatten(2)
    sums = values.new_zeros(*values.shape[:2], places.numel()).index_add(2, ids, values)
    counts = values.new_zeros(places.numel()).index_add(0, ids, values.new_ones(len(ids)))
    return (sums / counts.clamp(min=1)).unflatten(2, grid.size)


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


TABLES = ("sincos_2d", "transposed_2d", "sincos_1d", "sincos_3d", "tiled_2d")
"""Kinds of position tables."""
CONVOLUTIONAL = "convolutional"
"""The one kind of positions that is no table."""


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


def interleaved_1d(count: int, width: int) -> Tensor:
    """``[count, width]``: sine and cosine of each frequency in turn, over token numbers [source MAE-AST, MSM-MAE's decoder]."""
    table = sincos_1d(torch.arange(count), width)
    return torch.stack(table.chunk(2, dim=1), dim=2).flatten(1)


def position_table(grid: TokenGrid, width: int, kind: str, num_prefix: int = 1) -> Tensor:
    """Fixed positions ``[1, c + N, width]`` float32; the ``num_prefix`` first rows belong to CLS and are zero [source MAE].

    ``kind`` ``sincos_2d`` fits audio; so does ``transposed_2d``, the table of a grid whose axes are exchanged, put on the tokens
    in order: positions stay unique, their geometry is scrambled, and Audio-MAE's released weights want it [source Audio-MAE].
    ``sincos_3d`` and ``tiled_2d`` (the image table repeated over time, blind to the temporal index as in MAViL's conversion
    code) fit video. ``sincos_1d`` is :func:`interleaved_1d` over the numbers of the tokens, whatever the grid.
    """
    if kind == "sincos_1d":
        table = interleaved_1d(grid.num_tokens, width)
    elif kind == "transposed_2d":
        table = sincos_2d(grid.cells[1], grid.cells[0], width)
    elif kind == "sincos_2d":
        table = sincos_2d(grid.cells[0], grid.cells[1], width)
    elif kind == "sincos_3d":
        table = sincos_3d(grid.cells[0], grid.cells[1], grid.cells[2], width)
    elif kind == "tiled_2d":
        table = sincos_2d(grid.cells[1], grid.cells[2], width).repeat(grid.cells[0], 1)
    else:
        raise ValueError(f"{kind!r} is no kind of position table; there are {', '.join(TABLES)}")
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


class ConvolutionalPositions(nn.Module):
    """Positions from a convolution over the row of tokens, then GELU [wav2vec 2.0; an option of MAE-AST].

    Kernel 128 in 16 groups with a normalised weight, as there; where there are fewer tokens, most of the kernel sees zeros.
    """

    KERNEL, GROUPS = 128, 16

    def __init__(self, width: int) -> None:
        super().__init__()
        convolution = nn.Conv1d(width, width, self.KERNEL, padding=self.KERNEL // 2, groups=self.GROUPS)
        nn.init.normal_(convolution.weight, std=math.sqrt(4 / (self.KERNEL * width)))
        nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
        self.conv = nn.utils.parametrizations.weight_norm(convolution, dim=2)

    def forward(self, tokens: Tensor) -> Tensor:
        """``[B, N, D]``, all tokens in order, to what is added to them, ``[B, N, D]``."""
        # An even kernel gives one token more than it was given.
        return F.gelu(self.conv(tokens.transpose(1, 2))[..., :-1]).transpose(1, 2)

    def of_visible(self, tokens: Tensor, visible_ids: Tensor, num_tokens: int) -> Tensor:
        """Of visible tokens ``[B, K, D]`` alone; hidden ones are zero for the convolution [our reading]."""
        ids = visible_ids.unsqueeze(-1).expand_as(tokens)
        complete = tokens.new_zeros(len(tokens), num_tokens, tokens.shape[-1]).scatter(1, ids, tokens)
        return self(complete).gather(1, ids)
