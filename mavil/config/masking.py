"""Settings of how pre-training chooses the tokens it hides; how many, says the branch's ``mask_ratio``."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from mavil.config.base import Settings
from mavil.structs import TokenGrid

DrawnPer = Literal["clip", "batch"]


class _CountedMasking(Settings):
    """What the kinds have in common whose number of hidden tokens is the branch's ``mask_ratio``."""

    def num_visible(self, grid: TokenGrid, mask_ratio: float) -> int:
        """K.

        Raises:
            ValueError: nothing would be left visible.
        """
        return grid.num_visible(mask_ratio)


class RandomMasking(_CountedMasking):
    """Each token by itself."""

    kind: Literal["random"] = "random"
    drawn_per: DrawnPer = Field(
        "clip", description="a mask per clip [paper], or one for the batch [option of MAE-AST's code]"
    )


class StructuredMasking(Settings):
    """Whole time steps and mel bands of the token grid [source Audio-MAE]; ``mask_ratio`` follows from the two."""

    kind: Literal["structured"] = "structured"
    time_ratio: float = Field(0.7, ge=0, lt=1, description="share of the grid's time steps [source Audio-MAE]")
    mel_ratio: float = Field(0.3, ge=0, lt=1, description="share of the grid's mel bands [source Audio-MAE]")

    def visible_rows(self, grid: TokenGrid) -> tuple[int, int]:
        """How many rows stay along each axis of the grid; see :func:`visible_rows`."""
        return visible_rows(grid, self.time_ratio, self.mel_ratio)

    def num_visible(self, grid: TokenGrid, mask_ratio: float) -> int:
        """K, the crossings of what stays; ``mask_ratio`` has no part in it.

        Raises:
            ValueError: nothing would be left visible.
        """
        return math.prod(self.visible_rows(grid))


class ChunkMasking(_CountedMasking):
    """Squares of tokens, until enough are hidden [source SSAST, MAE-AST]."""

    kind: Literal["chunks"] = "chunks"
    sides: tuple[Annotated[int, Field(gt=0)], ...] = Field(
        (3, 4, 5), min_length=1, description="tokens along a square's side, one of these per mask [source MAE-AST]"
    )
    wraps: bool = Field(
        False,
        description="squares that leave the grid go on in the next time step [source MAE-AST's code]; else the rim cuts them off",
    )
    drawn_per: DrawnPer = Field(
        "clip", description="a mask per clip [source SSAST], or one for the batch [source MAE-AST]"
    )


class SpanMasking(_CountedMasking):
    """Runs of consecutive tokens, until enough are hidden [wav2vec 2.0]."""

    kind: Literal["spans"] = "spans"
    length: int = Field(10, gt=0, description="tokens of a span [source MAE-AST]")
    inverted: bool = Field(
        False, description="the spans are what stays visible instead [source MAE-AST's code, against its README]"
    )
    drawn_per: DrawnPer = Field("clip", description="a mask per clip, or one for the batch")


Masking = RandomMasking | StructuredMasking | ChunkMasking | SpanMasking


def visible_rows(grid: TokenGrid, time_ratio: float, mel_ratio: float) -> tuple[int, int]:
    """How many rows of an audio grid stay along each of its axes, in their order: ``int(cells (1 - ratio))`` [source Audio-MAE].

    Raises:
        ValueError: no time step or no mel band would be left.
    """
    ratios = {"time_ratio": time_ratio, "mel_ratio": mel_ratio}
    names = list(ratios) if grid.time_axis == 0 else list(reversed(ratios))
    rows = []
    for name, cells in zip(names, grid.cells, strict=True):
        rows.append(int(cells * (1.0 - ratios[name])))
        if rows[-1] == 0:
            what = "time steps" if name == "time_ratio" else "mel bands"
            raise ValueError(
                f"{name}={ratios[name]} of {cells} {what} of the token grid leaves none: choose at most "
                f"{math.floor(1000 * (1 - 1 / cells)) / 1000}"
            )
    return rows[0], rows[1]
