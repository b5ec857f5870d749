"""One modality's encoder: visible patches in, tokens out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mavil.models.layers import build_blocks, layer_norm
from mavil.models.tokens import PatchEmbed, position_table, select
from mavil.structs import TokenGrid


class Encoder(nn.Module):
    """ViT over the patches it is given, with one CLS token in front [paper: ViT-B; source: CLS joins after masking].

    ``forward`` returns raw block outputs, because fusion takes those (the only public MAViL code has no norm in between);
    ``norm`` belongs to the paths that leave the encoder for good: pooling and decoding without fusion.
    """

    pos_embed: Tensor

    def __init__(
        self, grid: TokenGrid, width: int, depth: int, num_heads: int, positions: str, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.grid = grid
        self.width = width
        self.patch_embed = PatchEmbed(grid, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("pos_embed", position_table(grid, width, positions))
        self.blocks = build_blocks(width, depth, num_heads, drop_path)
        self.norm = layer_norm(width)
        nn.init.normal_(self.cls_token, std=0.02)

    def forward(self, patches: Tensor, visible_ids: Tensor | None = None) -> Tensor:
        """Encode ``[B, K, P]`` patches whose token numbers are ``visible_ids`` ``[B, K]``: ``[B, 1 + K, D]``, CLS first.

        Without ids the patches are all of them, in order.
        """
        positions = self.pos_embed[:, 1:]
        if visible_ids is not None:
            positions = select(positions, visible_ids)
        tokens = self.patch_embed(patches) + positions
        cls_token = (self.cls_token + self.pos_embed[:, :1]).expand(len(tokens), -1, -1)
        tokens = torch.cat([cls_token, tokens], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens

    def pool(self, tokens: Tensor) -> Tensor:
        """``[B, 1 + K, D]`` from :meth:`forward` to ``[B, D]``: mean of the normalised patch tokens, CLS left out [recalled]."""
        return self.norm(tokens[:, 1:]).mean(dim=1)
