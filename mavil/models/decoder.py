"""One modality's decoder: visible tokens in, a prediction for every token out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mavil.models.layers import build_blocks, initialise, layer_norm
from mavil.models.tokens import position_table, select
from mavil.structs import MaskedView, TokenGrid


class Decoder(nn.Module):
    """MAE's decoder with global attention [paper: 8 x 512 x 16 heads; source MAE: mask token, order, CLS kept inside]."""

    pos_embed: Tensor

    def __init__(
        self,
        grid: TokenGrid,
        encoder_width: int,
        width: int,
        depth: int,
        num_heads: int,
        positions: str,
        out_values: int,
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(encoder_width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("pos_embed", position_table(grid, width, positions))
        self.blocks = build_blocks(width, depth, num_heads)
        self.norm = layer_norm(width)
        self.pred = nn.Linear(width, out_values)
        for linear in (self.embed, self.pred):
            initialise(linear)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, tokens: Tensor, view: MaskedView) -> Tensor:
        """Predict ``[B, N, out_values]`` in token order from normalised visible tokens ``[B, 1 + K, D]``, CLS first."""
        tokens = self.embed(tokens)
        # The mask token takes the visible tokens' type: under autocast the linear layer may have left float32.
        hidden = self.mask_token.to(tokens.dtype).expand(*view.masked_ids.shape, -1)
        patches = select(torch.cat([tokens[:, 1:], hidden], dim=1), view.restore_ids)
        tokens = torch.cat([tokens[:, :1], patches], dim=1) + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens)
        return self.pred(self.norm(tokens[:, 1:]))
