"""From visible tokens to a prediction for every token: one decoder per modality, or one for both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mavil.models.layers import Presence, Stack, initialise, joint_key_mask
from mavil.models.lean import Dropout
from mavil.models.tokens import CONVOLUTIONAL, ConvolutionalPositions, add_positions, select
from mavil.models.windowed import PaddedGrid, build_windowed_blocks
from mavil.structs import MODALITIES, MaskedView, Modality, TokenGrid


class Decoder(nn.Module):
    """MAE's decoder [paper: 8 x 512 x 16 heads; source MAE: mask token, order, CLS kept inside], and its relatives.

    Args:
        grid: of the tokens to predict.
        encoder_width: channels of the tokens that come in.
        stack: its blocks.
        positions: kind of the position table, or ``convolutional``.
        out_values: predicted per token.
        has_cls: whether a CLS token comes first.
        window: cells of an attention window per axis of the grid; CLS is then left out before the first block, and blocks are
            those of Audio-MAE's released decoder. ``None``: attention over all tokens.
        shift: axes along which every odd windowed block is moved: ``all`` or ``time``.
        global_blocks: so many last blocks of a windowed decoder look at all tokens [recalled: "hybrid"].
        projects: a linear layer stands in front; without one the widths must agree [source MAE-AST].
        discriminates: a second head says which patch a token is, see :mod:`mavil.losses.patch_discrimination`.

    Raises:
        ValueError: without a projection the encoder has another width, or as :func:`mavil.models.windowed.build_windowed_blocks`.
    """

    pos_embed: Tensor | None

    def __init__(
        self,
        grid: TokenGrid,
        encoder_width: int,
        stack: Stack,
        positions: str,
        out_values: int,
        has_cls: bool = True,
        window: tuple[int, ...] | None = None,
        shift: Literal["all", "time"] = "all",
        global_blocks: int = 0,
        projects: bool = True,
        discriminates: bool = False,
    ) -> None:
        super().__init__()
        if not projects and encoder_width != stack.width:
            raise ValueError(
                f"without a projection a decoder of width {stack.width} cannot take {encoder_width} channels"
            )
        self.num_prefix = int(has_cls)
        self.windows = None if window is None else PaddedGrid(grid.cells, window)
        self.embed = nn.Linear(encoder_width, stack.width) if projects else nn.Identity()
        self.mask_token = nn.Parameter(torch.zeros(1, 1, stack.width))
        if positions == CONVOLUTIONAL:
            self.pos_embed, self.pos_conv = None, ConvolutionalPositions(stack.width)
        else:
            add_positions(self, "pos_embed", grid, stack.width, positions, self.num_prefix)
        self.input_norm = stack.input_norm()
        self.input_dropout = Dropout(stack.dropout)
        if window is None:
            self.blocks, self.num_windowed = stack.blocks(), 0
        else:
            self.num_windowed = stack.depth - global_blocks
            self.blocks = build_windowed_blocks(replace(stack, depth=self.num_windowed), grid, window, shift)
            self.blocks.extend(replace(stack, depth=global_blocks).blocks())
        self.norm = stack.norm()
        self.pred = nn.Linear(stack.width, out_values)
        self.discriminate = nn.Linear(stack.width, grid.patch_values) if discriminates else None
        for linear in (self.embed, self.pred, self.discriminate):
            if linear is not None:
                initialise(linear)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, tokens: Tensor, view: MaskedView) -> Tensor:
        """Predict ``[B, N, out_values]`` in token order from normalised visible tokens ``[B, c + K, D]``, CLS first."""
        return self.pred(self.decode(tokens, view))

    def decode(self, tokens: Tensor, view: MaskedView) -> Tensor:
        """What the heads look at, ``[B, N, E]`` in token order; arguments as :meth:`forward`."""
        tokens = filled(self.embed(tokens), self.mask_token, view, self.num_prefix)
        if self.pos_embed is not None:
            tokens = tokens + self.pos_embed
        else:
            positions = self.pos_conv(tokens[:, self.num_prefix :])
            tokens = tokens + F.pad(positions, (0, 0, self.num_prefix, 0))
        if self.windows is not None:
            tokens = tokens[:, self.num_prefix :]
        tokens = self.input_dropout(self.input_norm(tokens))
        if self.windows is not None:
            tokens = self.windows.pad(tokens)
            for block in self.blocks[: self.num_windowed]:
                tokens = block(tokens)
            tokens = self.windows.crop(tokens)
        for block in self.blocks[self.num_windowed :]:
            tokens = block(tokens)
        return self.norm(tokens if self.windows is not None else tokens[:, self.num_prefix :])


class JointDecoder(nn.Module):
    """One decoder over the complete tokens of both modalities, with one mask token and no CLS [source CAV-MAE].

    Args:
        grids: of each modality.
        encoder_width: channels of the tokens that come in.
        stack: its blocks.
        positions: kind of each position table.
        out_values: predicted per token of each modality.
        num_prefix: CLS tokens in front of what comes in; they are left out.
    """

    def __init__(
        self,
        grids: Mapping[Modality, TokenGrid],
        encoder_width: int,
        stack: Stack,
        positions: Mapping[Modality, str],
        out_values: Mapping[Modality, int],
        num_prefix: Mapping[Modality, int],
    ) -> None:
        super().__init__()
        self.num_prefix = dict(num_prefix)
        self.embed = nn.Linear(encoder_width, stack.width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, stack.width))
        self.audio_modality_embed = nn.Parameter(torch.zeros(1, 1, stack.width))
        self.video_modality_embed = nn.Parameter(torch.zeros(1, 1, stack.width))
        for modality, grid in grids.items():
            add_positions(self, f"{modality}_pos_embed", grid, stack.width, positions[modality], num_prefix=0)
        self.blocks = stack.blocks()
        self.norm = stack.norm()
        self.preds = nn.ModuleDict({m: nn.Linear(stack.width, values) for m, values in out_values.items()})
        for linear in (self.embed, *self.preds.values()):
            initialise(linear)
        for vector in (self.mask_token, self.audio_modality_embed, self.video_modality_embed):
            nn.init.normal_(vector, std=0.02)

    def forward(
        self, tokens: Mapping[Modality, Tensor], views: Mapping[Modality, MaskedView], present: Presence | None = None
    ) -> dict[Modality, Tensor]:
        """Predict ``[B, N, values]`` of each modality from normalised visible tokens ``[B, c + K, D]`` of both."""
        complete: dict[Modality, Tensor] = {}
        for modality in MODALITIES:
            visible = self.embed(tokens[modality][:, self.num_prefix[modality] :])
            values = filled(visible, self.mask_token, views[modality], num_prefix=0)
            positions = getattr(self, f"{modality}_pos_embed") + getattr(self, f"{modality}_modality_embed")
            complete[modality] = values + positions
        joint = torch.cat(list(complete.values()), dim=1)
        mask = joint_key_mask(complete, present)
        for block in self.blocks:
            joint = block(joint) if mask is None else block(joint, attn_mask=mask)
        parts = self.norm(joint).split([values.shape[1] for values in complete.values()], dim=1)
        return {m: self.preds[m](values) for m, values in zip(complete, parts, strict=True)}


def filled(tokens: Tensor, mask_token: Tensor, view: MaskedView, num_prefix: int) -> Tensor:
    """Visible tokens ``[B, c + K, E]`` and mask tokens for the rest, in token order behind the prefix: ``[B, c + N, E]``."""
    # The mask token takes the visible tokens' type: under autocast the linear layer may have left float32.
    hidden = mask_token.to(tokens.dtype).expand(*view.masked_ids.shape, -1)
    patches = select(torch.cat([tokens[:, num_prefix:], hidden], dim=1), view.restore_ids)
    return torch.cat([tokens[:, :num_prefix], patches], dim=1) if num_prefix else patches
