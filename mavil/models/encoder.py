"""One modality's encoder: visible patches in, tokens out."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from mavil.models.layers import Stack, padding_mask
from mavil.models.lean import Dropout
from mavil.models.tokens import CONVOLUTIONAL, ConvolutionalPositions, PatchEmbed, add_positions, select
from mavil.structs import TokenGrid


class Encoder(nn.Module):
    """ViT over the patches it is given, with one CLS token in front [paper: ViT-B; source: CLS joins after masking].

    ``forward`` returns raw block outputs, because fusion takes those (the only public MAViL code has no norm in between);
    ``norm`` belongs to the paths that leave the encoder for good: pooling and decoding without fusion.

    Args:
        grid: how the input is cut.
        stack: its blocks.
        positions: kind of the position table, see :func:`mavil.models.tokens.position_table`, or ``convolutional``.
        cls_token: without it no token stands in front and ``num_prefix`` is 0 [source CAV-MAE, MAE-AST].
        modality_embedding: a learned vector is added to every patch token [source CAV-MAE].
        trained_positions: the table is a parameter.
    """

    pos_embed: Tensor | None

    def __init__(
        self,
        grid: TokenGrid,
        stack: Stack,
        positions: str,
        cls_token: bool = True,
        modality_embedding: bool = False,
        trained_positions: bool = False,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.stack = stack
        self.num_prefix = int(cls_token)
        self.patch_embed = PatchEmbed(grid, stack.width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, stack.width)) if cls_token else None
        self.modality_embed = nn.Parameter(torch.zeros(1, 1, stack.width)) if modality_embedding else None
        if positions == CONVOLUTIONAL:
            self.pos_embed, self.pos_conv = None, ConvolutionalPositions(stack.width)
        else:
            add_positions(self, "pos_embed", grid, stack.width, positions, self.num_prefix, trained_positions)
        self.input_norm = stack.input_norm()
        self.input_dropout = Dropout(stack.dropout)
        self.blocks = stack.blocks()
        self.norm = stack.norm()
        for vector in (self.cls_token, self.modality_embed):
            if vector is not None:
                nn.init.normal_(vector, std=0.02)

    @property
    def width(self) -> int:
        """Channels per token."""
        return self.stack.width

    def forward(self, patches: Tensor, visible_ids: Tensor | None = None, is_padding: Tensor | None = None) -> Tensor:
        """Encode ``[B, K, P]`` patches whose token numbers are ``visible_ids`` ``[B, K]``: ``[B, c + K, D]``, CLS first.

        ``c`` is ``num_prefix``. Without ids the patches are all of them, in order. ``is_padding`` ``[B, K]`` bool: these have no
        position and no token attends to them; what comes out in their place means nothing [source MAE-AST].
        """
        tokens = self.embed(patches, visible_ids, is_padding)
        mask = padding_mask(is_padding, self.num_prefix)
        for block in self.blocks:
            tokens = block(tokens) if mask is None else block(tokens, attn_mask=mask)
        return tokens

    def layers(self, patches: Tensor, is_padding: Tensor | None = None) -> Iterator[Tensor]:
        """What enters the first block, then what leaves each one, of a complete input: ``[B, c + N, D]`` each."""
        tokens = self.embed(patches, is_padding=is_padding)
        mask = padding_mask(is_padding, self.num_prefix)
        yield tokens
        for block in self.blocks:
            tokens = block(tokens) if mask is None else block(tokens, attn_mask=mask)
            yield tokens

    def embed(self, patches: Tensor, visible_ids: Tensor | None = None, is_padding: Tensor | None = None) -> Tensor:
        """What enters the first block, as :meth:`forward`."""
        tokens = self.patch_embed(patches)
        tokens = tokens + self._positions(tokens, visible_ids, is_padding)
        if self.modality_embed is not None:
            tokens = tokens + self.modality_embed
        if self.cls_token is not None:
            cls_token = self.cls_token if self.pos_embed is None else self.cls_token + self.pos_embed[:, :1]
            tokens = torch.cat([cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        return self.input_dropout(self.input_norm(tokens))

    def _positions(self, tokens: Tensor, visible_ids: Tensor | None, is_padding: Tensor | None) -> Tensor:
        """What is added to embedded patches, ``[B or 1, K, D]``."""
        if self.pos_embed is None:
            tokens = tokens if is_padding is None else tokens.masked_fill(is_padding[..., None], 0.0)
            if visible_ids is None:
                return self.pos_conv(tokens)
            return self.pos_conv.of_visible(tokens, visible_ids, self.grid.num_tokens)
        positions = self.pos_embed[:, self.num_prefix :]
        if visible_ids is not None:
            positions = select(positions, visible_ids)
        return positions if is_padding is None else positions.masked_fill(is_padding[..., None], 0.0)
