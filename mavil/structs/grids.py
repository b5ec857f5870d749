"""How an input is cut into tokens, and which of them a view shows."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class TokenGrid:
    """How one modality is cut into patches.

    ``cells`` counts patches per axis: ``(s, m)`` for audio, ``(t, h, w)`` for video. ``patch`` is the size of one patch
    per axis, in the same order. Tokens are numbered row-major, time first. ``axes`` says which axis of the input each of them
    is where that order is another one; ``None``: the input's own. ``stride`` goes from one patch to the next, per axis in the
    order of ``cells``; ``None``: patches lie side by side. ``rest`` is what of the input lies behind the last patch, likewise.
    """

    cells: tuple[int, ...]
    patch: tuple[int, ...]
    channels: int
    axes: tuple[int, ...] | None = None
    stride: tuple[int, ...] | None = None
    rest: tuple[int, ...] | None = None

    @classmethod
    def of(
        cls, size: tuple[int, ...], patch: tuple[int, ...], channels: int, stride: tuple[int, ...] | None = None
    ) -> TokenGrid:
        """Divide an input of ``size`` into whole patches. With a stride they overlap, and what is behind the last is left out.

        Raises:
            ValueError: without a stride, an axis is not a multiple of its patch size; a stride leaves gaps, or no patch fits.
        """
        if stride is None or tuple(stride) == tuple(patch):
            if any(s % p for s, p in zip(size, patch, strict=True)):
                raise ValueError(
                    f"an input of {size} cannot be cut into patches of {patch}: every axis must be a multiple"
                )
            return cls(tuple(s // p for s, p in zip(size, patch, strict=True)), tuple(patch), channels)
        if any(not 0 < step <= p <= s for s, p, step in zip(size, patch, stride, strict=True)):
            raise ValueError(
                f"an input of {size} cannot be cut into patches of {patch} every {stride}: a stride must be 1 to the patch's "
                "size, and a patch not larger than the input"
            )
        cells = tuple((s - p) // step + 1 for s, p, step in zip(size, patch, stride, strict=True))
        rest = tuple((s - p) % step for s, p, step in zip(size, patch, stride, strict=True))
        return cls(cells, tuple(patch), channels, stride=tuple(stride), rest=rest)

    def reordered(self, axes: tuple[int, ...]) -> TokenGrid:
        """The same cut with the input's axes taken in another order: ``(1, 0)`` numbers audio tokens mel band by mel band."""
        cells, patch, stride, rest = (
            None if values is None else tuple(values[axis] for axis in axes)
            for values in (self.cells, self.patch, self.stride, self.rest)
        )
        assert cells is not None
        assert patch is not None
        return TokenGrid(cells, patch, self.channels, axes, stride, rest)

    @property
    def size(self) -> tuple[int, ...]:
        """Of the input per axis, in the input's own order."""
        strides, rests = self.stride or self.patch, self.rest or (0,) * len(self.cells)
        sizes = [
            (cells - 1) * stride + patch + rest
            for cells, patch, stride, rest in zip(self.cells, self.patch, strides, rests, strict=True)
        ]
        order = self.axes or tuple(range(len(sizes)))
        return tuple(sizes[order.index(axis)] for axis in range(len(sizes)))

    @property
    def time_axis(self) -> int:
        """Which axis of ``cells`` is time: the first, unless the grid is reordered."""
        return 0 if self.axes is None else self.axes.index(0)

    @property
    def num_tokens(self) -> int:
        """N."""
        return math.prod(self.cells)

    @property
    def patch_values(self) -> int:
        """P: raw values in one patch."""
        return math.prod(self.patch) * self.channels

    def num_visible(self, mask_ratio: float) -> int:
        """K at a mask ratio: ``int(N * (1 - ratio))``, the rounding of MAE and Audio-MAE [source].

        Raises:
            ValueError: nothing would be left visible.
        """
        num_visible = int(self.num_tokens * (1.0 - mask_ratio))
        if num_visible == 0:
            raise ValueError(
                f"a mask ratio of {mask_ratio} of {self.num_tokens} tokens leaves no token visible: choose at most "
                f"{math.floor(1000 * (1 - 1 / self.num_tokens)) / 1000}"
            )
        return num_visible


@dataclass
class MaskedView:
    """One masked selection per clip. ``is_masked`` is the only polarity of the project: True = masked.

    ``visible_ids`` ``[B, K]`` and ``masked_ids`` ``[B, N-K]`` are token numbers; concatenated they are a permutation of
    ``0..N-1`` whose inverse is ``restore_ids`` ``[B, N]``.
    """

    visible_ids: Tensor
    masked_ids: Tensor
    restore_ids: Tensor

    @property
    def is_masked(self) -> Tensor:
        """``[B, N]`` bool."""
        return self.restore_ids >= self.visible_ids.shape[1]


@dataclass
class MaskedViews:
    """The views of one modality: those whose hidden tokens are predicted, and those whose pooled tokens are compared.

    A view may stand in both lists; it is then the same object, and is encoded once.
    """

    predicted: list[MaskedView]
    compared: list[MaskedView] = field(default_factory=list)

    def distinct(self) -> list[MaskedView]:
        """Each view once: the predicted ones first."""
        others = [view for view in self.compared if not any(view is one for one in self.predicted)]
        return [*self.predicted, *others]
