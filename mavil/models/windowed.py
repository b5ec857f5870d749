"""Decoder blocks with attention inside windows of the token grid, shifted along time in every other block.

What Audio-MAE's released decoder does [source Audio-MAE, decoder mode 1]: post-norm blocks, cosine attention with a temperature
per head, and a bias per pair of cells that a small network computes from their offset. Its names and ours, below
``decoder_blocks.{i}`` there and ``blocks.{i}`` here: ``attn.tau`` is ``attn.temperature``, ``attn.meta_mlp.fc1`` and ``fc2`` are
``attn.offset_bias.fc1`` and ``fc2``; ``attn.qkv``, ``attn.proj``, ``norm1``, ``norm2``, ``mlp.fc1`` and ``mlp.fc2`` are the same.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from torch import Tensor, nn

from mavil.models.layers import Stack, initialise
from mavil.structs import TokenGrid

MIN_TEMPERATURE = 0.01
"""A smaller temperature counts as this one [source Audio-MAE]."""
OFFSET_WIDTH, OFFSET_DROPOUT = 384, 0.1
"""Hidden channels and, in training, dropout of the network that gives the bias of an offset [source Audio-MAE]."""
EPSILON = 1e-12
"""A shorter query counts as this long; torch's own for ``normalize``."""
APART = -100.0
"""Added to the logit of two cells that meet in a window only because the shift wraps around [source Audio-MAE]."""


def by_window(tokens: Tensor, cells: tuple[int, ...], window: tuple[int, ...]) -> Tensor:
    """``[B, N, *rest]`` in the order of the grid to a view ``[B, *counts, *window, *rest]``: the windows along each axis, then
    the cells of one."""
    sizes = [part for count, size in zip(cells, window, strict=True) for part in (count // size, size)]
    axes, num_rest = range(len(cells)), tokens.ndim - 2
    rest = range(1 + 2 * len(cells), 1 + 2 * len(cells) + num_rest)
    return tokens.unflatten(1, sizes).permute(0, *(1 + 2 * i for i in axes), *(2 + 2 * i for i in axes), *rest)


def by_cell(windows: Tensor, cells: tuple[int, ...]) -> Tensor:
    """The exact inverse of :func:`by_window`: ``[B, *counts, *window, *rest]`` to ``[B, N, *rest]``."""
    axes, num_rest = len(cells), windows.ndim - 1 - 2 * len(cells)
    order = [0, *(1 + i + inside * axes for i in range(axes) for inside in (0, 1))]
    return windows.permute(*order, *range(1 + 2 * axes, 1 + 2 * axes + num_rest)).flatten(1, 2 * axes)


def offsets_within(window: tuple[int, ...]) -> Tensor:
    """``[n, n, axes]`` float32: sign(d) log(1 + |d|) of the query's cell minus the key's, per axis [source Audio-MAE]."""
    places = torch.cartesian_prod(*(torch.arange(size) for size in window)).reshape(-1, len(window)).double()
    offsets = places[:, None] - places[None]
    return (offsets.sign() * offsets.abs().log1p()).float()


def wrapped_apart(cells: tuple[int, ...], window: tuple[int, ...], shift: tuple[int, ...]) -> Tensor:
    """``[W, n, n]`` float32: what to add so that cells from the two ends of a shifted axis hardly see each other, else 0."""
    part = torch.zeros(cells, dtype=torch.long)
    for axis, (count, moved) in enumerate(zip(cells, shift, strict=True)):
        is_wrapped = torch.arange(count) >= count - moved
        part = 2 * part + is_wrapped.reshape([-1 if one == axis else 1 for one in range(len(cells))])
    parts = by_window(part.reshape(1, -1), cells, window).reshape(-1, math.prod(window))
    return APART * (parts[:, :, None] != parts[:, None]).float()


class WindowAttention(nn.Module):
    """Cosine attention among the cells of one window, with a temperature per head and a bias per offset [source Audio-MAE].

    ``temperature`` is kept as it is, not as its logarithm, because the released weights and their weight decay do so.
    """

    offsets: Tensor

    def __init__(self, width: int, num_heads: int, grid_cells: tuple[int, ...], window: tuple[int, ...]) -> None:
        super().__init__()
        self.num_heads, self.grid_cells, self.window = num_heads, grid_cells, window
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.temperature = nn.Parameter(torch.ones(num_heads))
        self.offset_bias = Mlp(len(window), OFFSET_WIDTH, num_heads, act_layer=nn.ReLU, drop=OFFSET_DROPOUT)
        self.register_buffer("offsets", offsets_within(window), persistent=False)

    def forward(self, tokens: Tensor, apart: Tensor | None) -> Tensor:
        """``[B, N, E]`` in the order of the grid to the same; ``apart`` ``[W, n, n]`` is added to the logits."""
        # One copy per tensor cuts windows and heads, and one joins them: the linear layers do not mind the order.
        qkv = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1))
        queries, keys, values = (self._cut(part) for part in qkv.unbind(2))  # [B W heads, n, head width] each
        # Logits are few, so that a query's length is divided out of them. Keys are normalised themselves: the product of two long
        # vectors could overflow in fp16.
        keys = F.normalize(keys, dim=-1).to(values.dtype)
        logits = torch.bmm(queries, keys.mT).unflatten(0, (len(tokens), -1, self.num_heads))
        lengths = torch.linalg.vector_norm(
            queries, dim=-1, keepdim=True, dtype=torch.promote_types(queries.dtype, torch.float32)
        )
        temperature = self.temperature.clamp(min=MIN_TEMPERATURE)[:, None, None]
        cosine = logits * lengths.clamp(min=EPSILON).reciprocal().unflatten(0, logits.shape[:3])
        bias = self.offset_bias(self.offsets).permute(2, 0, 1)  # [heads, n, n]
        if apart is not None:
            bias = bias + apart[:, None]
        weights = (cosine / temperature + bias).softmax(dim=-1).flatten(0, 2).to(values.dtype)
        return self.proj(self._joined(torch.bmm(weights, values), len(tokens)))

    def _cut(self, part: Tensor) -> Tensor:
        """``[B, N, heads, d]`` to ``[B W heads, n, d]``: W windows of n cells, both row-major."""
        axes = len(self.window)
        windows = by_window(part, self.grid_cells, self.window).movedim(-2, 1 + axes)
        return windows.flatten(0, 1 + axes).flatten(1, axes)

    def _joined(self, mixed: Tensor, batch: int) -> Tensor:
        """``[B W heads, n, d]`` to ``[B, N, heads d]``."""
        axes = len(self.window)
        counts = [count // size for count, size in zip(self.grid_cells, self.window, strict=True)]
        windows = mixed.unflatten(1, self.window).unflatten(0, (batch, *counts, self.num_heads)).movedim(1 + axes, -2)
        return by_cell(windows, self.grid_cells).flatten(-2)


class WindowedBlock(nn.Module):
    """A post-norm block: ``x += norm1(attention(x))`` in shifted windows, then ``x += norm2(mlp(x))`` [source Audio-MAE].

    Works on complete grids of any number of axes, without CLS.

    Args:
        width: channels E.
        num_heads: attention heads.
        grid_cells: cells per axis of the token grid, in the order the tokens are numbered in.
        window: cells per axis of a window.
        shift: by how many cells the windows are moved, per axis.
        mlp_ratio: hidden channels of the MLP per channel.
        layer_norm_eps: of both LayerNorms.

    Raises:
        ValueError: windows that do not divide the grid, or a shift that is not smaller than the window.
    """

    apart: Tensor | None

    def __init__(
        self,
        width: int,
        num_heads: int,
        grid_cells: tuple[int, ...],
        window: tuple[int, ...],
        shift: tuple[int, ...],
        mlp_ratio: float = 4.0,
        layer_norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        _check_window(grid_cells, window, shift)
        self.grid_cells, self.shift = grid_cells, shift
        norm = partial(nn.LayerNorm, eps=layer_norm_eps)
        self.attn = WindowAttention(width, num_heads, grid_cells, window)
        self.norm1 = norm(width)
        # Not the lean one: sixteen narrow blocks, where computing GELU again costs 5 % of a pass.
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.norm2 = norm(width)
        self.register_buffer(
            "apart", wrapped_apart(grid_cells, window, shift) if any(shift) else None, persistent=False
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """All tokens of the grid ``[B, N, E]``, in its order, to the same."""
        tokens = tokens + self.norm1(self._attend(tokens))
        return tokens + self.norm2(self.mlp(tokens))

    def _attend(self, tokens: Tensor) -> Tensor:
        return self._rolled(self.attn(self._rolled(tokens, -1), self.apart), 1)

    def _rolled(self, tokens: Tensor, direction: int) -> Tensor:
        """The grid moved around its ends by the shift, back for -1."""
        if not any(self.shift):
            return tokens
        grid = tokens.unflatten(1, self.grid_cells)
        moves = [direction * moved for moved in self.shift]
        return grid.roll(moves, dims=list(range(1, 1 + len(moves)))).flatten(1, len(moves))


class PaddedGrid:
    """A token grid made larger at the end of its axes until windows divide it; what is added is zeros [our choice].

    Audio-MAE's code adds a row to its 101 x 12 grid of overlapping patches and leaves its predictions out [source Audio-MAE].

    Raises:
        ValueError: a window is larger than the grid.
    """

    def __init__(self, cells: tuple[int, ...], window: tuple[int, ...]) -> None:
        if len(cells) != len(window) or any(size > count for count, size in zip(cells, window, strict=True)):
            raise ValueError(f"windows of {window} cells do not fit into a token grid of {cells}")
        self.real = cells
        self.cells = tuple(-(-count // size) * size for count, size in zip(cells, window, strict=True))

    def pad(self, tokens: Tensor) -> Tensor:
        """All tokens of the real grid ``[B, N, E]`` to those of the larger one."""
        if self.cells == self.real:
            return tokens
        missing = [count - real for count, real in zip(self.cells, self.real, strict=True)]
        ends = [value for count in reversed(missing) for value in (0, count)]
        return F.pad(tokens.unflatten(1, self.real), (0, 0, *ends)).flatten(1, len(self.real))

    def crop(self, tokens: Tensor) -> Tensor:
        """The real tokens of what :meth:`pad` made."""
        if self.cells == self.real:
            return tokens
        grid = tokens.unflatten(1, self.cells)
        for axis, count in enumerate(self.real):
            grid = grid.narrow(1 + axis, 0, count)
        return grid.flatten(1, len(self.real))


def build_windowed_blocks(
    stack: Stack, grid: TokenGrid, window: tuple[int, ...], shift: Literal["all", "time"] = "all"
) -> nn.ModuleList:
    """Blocks of which every odd one has its windows moved by half a window.

    Along all axes, as the paper's figure has it [recalled], or along time alone [source Audio-MAE]. ``window`` counts cells per
    axis of the grid, which must be padded as :class:`PaddedGrid` does. Windows as long as the grid are not moved: they already
    see everything. There is no stochastic depth.

    Raises:
        ValueError: windows that are larger than the grid.
    """
    cells = PaddedGrid(grid.cells, window).cells
    unmoved = (0,) * len(cells)
    moved = tuple(
        size // 2 if (shift == "all" or axis == grid.time_axis) and size < count else 0
        for axis, (size, count) in enumerate(zip(window, cells, strict=True))
    )
    blocks = nn.ModuleList(
        WindowedBlock(
            stack.width,
            stack.num_heads,
            cells,
            window,
            moved if i % 2 else unmoved,
            stack.mlp_ratio,
            stack.layer_norm_eps,
        )
        for i in range(stack.depth)
    )
    blocks.apply(initialise)
    return blocks


def _check_window(cells: tuple[int, ...], window: tuple[int, ...], shift: tuple[int, ...]) -> None:
    if len(cells) != len(window) or any(count % size for count, size in zip(cells, window, strict=True)):
        raise ValueError(
            f"windows of {window} cells do not divide a token grid of {cells}: every axis must be a multiple"
        )
    if len(cells) != len(shift) or any(not 0 <= moved < size for moved, size in zip(shift, window, strict=True)):
        raise ValueError(f"a shift of {shift} cells does not fit windows of {window}: it must be smaller on every axis")
