"""Transformer blocks: a thin layer over timm's, with the family's conventions in one place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mavil.models.lean import LeanMlp, SelfAttention
from mavil.structs import MODALITIES, Modality

LAYER_NORM_EPS = 1e-6
"""Of every LayerNorm where nothing else is said [source MAE, Audio-MAE, MAViL copy]."""

Presence = Mapping[Modality, Tensor | None]
"""Which clips have a modality, ``[B]`` bool; ``None``, or no entry, where all have it."""


@dataclass(frozen=True)
class Stack:
    """A row of blocks with QKV bias, exact GELU and fused attention, and the norms that go with it.

    Attributes:
        width: channels per token.
        depth: blocks.
        num_heads: attention heads.
        mlp_ratio: hidden channels of the MLP per channel.
        layer_norm_eps: of every LayerNorm.
        drop_path: stochastic depth of the last block; it grows linearly from 0.
        post_norm: blocks are :class:`PostNormBlock` and a norm stands before the first; otherwise they are timm's pre-norm blocks
            and a norm stands after the last.
        key_bias: without it only queries and values have a bias [source MSM-MAE].
        dropout: of what enters, of attention, of what leaves attention and MLP.
        layer_drop: probability that training leaves a block out.
    """

    width: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0
    layer_norm_eps: float = LAYER_NORM_EPS
    drop_path: float = 0.0
    post_norm: bool = False
    key_bias: bool = True
    dropout: float = 0.0
    layer_drop: float = 0.0

    def blocks(self, alone_norms: bool = False) -> nn.ModuleList:
        """The blocks, initialised; with ``alone_norms`` they are :class:`SharedBlock`.

        Raises:
            ValueError: ``alone_norms`` with post-norm blocks, of which there is no such kind.
        """
        if alone_norms and self.post_norm:
            raise ValueError(
                "blocks with norms for modalities that pass alone are pre-norm ones: post_norm must be off"
            )
        rates = [self.drop_path * i / max(1, self.depth - 1) for i in range(self.depth)]
        kind = SharedBlock if alone_norms else PostNormBlock if self.post_norm else PreNormBlock
        blocks = nn.ModuleList(kind(self, rate) for rate in rates)
        blocks.apply(initialise_like_bert if self.post_norm else initialise)
        return blocks

    def input_norm(self) -> nn.Module:
        """What stands before the first block: a LayerNorm for post-norm blocks, else nothing."""
        return self.layer_norm(self.width) if self.post_norm else nn.Identity()

    def norm(self) -> nn.Module:
        """What stands after the last block: a LayerNorm for pre-norm blocks; the others end with one."""
        return nn.Identity() if self.post_norm else self.layer_norm(self.width)

    def attention(self) -> SelfAttention:
        """One block's attention."""
        kind = SelfAttention if self.key_bias else KeylessBiasAttention
        return kind(self.width, self.num_heads, qkv_bias=self.key_bias, attn_drop=self.dropout, proj_drop=self.dropout)

    @property
    def layer_norm(self) -> partial[nn.LayerNorm]:
        """Makes a LayerNorm of some width."""
        return partial(nn.LayerNorm, eps=self.layer_norm_eps)


class PreNormBlock(Block):
    """``x += attention(norm1(x))``, then ``x += mlp(norm2(x))`` [source MAE]: timm's block with what a stack asks for.

    Attributes:
        always_computed: also where it is left out, so that its gradients are ready in the order of all other times.
    """

    always_computed = False

    def __init__(self, stack: Stack, drop_path: float = 0.0) -> None:
        super().__init__(
            stack.width,
            stack.num_heads,
            stack.mlp_ratio,
            qkv_bias=True,
            proj_drop=stack.dropout,
            attn_drop=stack.dropout,
            drop_path=drop_path,
            norm_layer=stack.layer_norm,  # type: ignore[arg-type]
            mlp_layer=LeanMlp,
            attn_layer=SelfAttention,
        )
        if not stack.key_bias:
            self.attn = stack.attention()
        self.layer_drop = stack.layer_drop

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """``[B, K, D]`` to the same; ``attn_mask`` as in torch's attention."""
        return _perhaps_left_out(self, x, lambda: super(PreNormBlock, self).forward(x, attn_mask=attn_mask))


class PostNormBlock(nn.Module):
    """``x = norm1(x + attention(x))``, then ``x = norm2(x + mlp(x))``: BERT's and wav2vec 2.0's block [source MAE-AST].

    Attributes:
        always_computed: as :class:`PreNormBlock`'s.
    """

    always_computed = False

    def __init__(self, stack: Stack, drop_path: float = 0.0) -> None:
        super().__init__()
        self.attn = stack.attention()
        self.norm1 = stack.layer_norm(stack.width)
        self.mlp = LeanMlp(stack.width, int(stack.width * stack.mlp_ratio), drop=(0.0, stack.dropout))
        self.norm2 = stack.layer_norm(stack.width)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.layer_drop = stack.layer_drop

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """``[B, K, D]`` to the same; ``attn_mask`` as in torch's attention."""
        return _perhaps_left_out(self, x, lambda: self._passed(x, attn_mask))

    def _passed(self, x: Tensor, attn_mask: Tensor | None) -> Tensor:
        attended = self.norm1(x + self.drop_path(self.attn(x, attn_mask=attn_mask)))
        return self.norm2(attended + self.drop_path(self.mlp(attended)))


class KeylessBiasAttention(SelfAttention):
    """Attention whose queries and values have a bias and whose keys have none; names as in BEiT [source MSM-MAE]."""

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool, attn_drop: float, proj_drop: float) -> None:
        super().__init__(dim, num_heads, qkv_bias=qkv_bias, attn_drop=attn_drop, proj_drop=proj_drop)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))

    def _project(self, x: Tensor) -> Tensor:
        return F.linear(x, self.qkv.weight, torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias]))


def _perhaps_left_out(block: PreNormBlock | PostNormBlock, x: Tensor, passed: Callable[[], Tensor]) -> Tensor:
    """What leaves a block, or with its probability in training what enters it, for the whole batch.

    Every parameter of a block that is left out has a gradient, zero: other ranks may not leave it out.
    """
    # By the CPU's random numbers: for a GPU's one would have to wait.
    if not (block.training and block.layer_drop > 0 and torch.rand((), device="cpu").item() < block.layer_drop):
        return passed()
    if block.always_computed:
        return torch.where(torch.ones((), dtype=torch.bool, device=x.device), x, passed())
    return x + 0.0 * torch.stack([parameter.sum() for parameter in block.parameters()]).sum()


class SharedBlock(PreNormBlock):
    """A block for the joint sequence and for each modality by itself, with norms of its own for each use [source CAV-MAE]."""

    def __init__(self, stack: Stack, drop_path: float = 0.0) -> None:
        super().__init__(stack, drop_path)
        norm, width = stack.layer_norm, stack.width
        self.alone_norms = nn.ModuleDict(
            {m: nn.ModuleDict({"norm1": norm(width), "norm2": norm(width)}) for m in MODALITIES}
        )

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, alone: Modality | None = None) -> Tensor:  # type: ignore[override]
        """``[B, K, D]`` to the same; ``alone`` names the modality whose norms are used, none is the joint sequence."""
        norm1, norm2 = self.norm1, self.norm2
        if alone is not None:
            norms = cast(nn.ModuleDict, self.alone_norms[alone])
            norm1, norm2 = norms["norm1"], norms["norm2"]

        def passed() -> Tensor:
            attended = x + self.drop_path1(self.attn(norm1(x), attn_mask=attn_mask))
            return attended + self.drop_path2(self.mlp(norm2(attended)))

        return _perhaps_left_out(self, x, passed)


def joint_key_mask(tokens: Mapping[Modality, Tensor], present: Presence | None) -> Tensor | None:
    """Which keys of a joint sequence attention may see, ``[B, 1, 1, keys]`` bool, from the modalities' ``[B, K, D]`` tokens.

    ``None``, the fast case, where every clip has everything.
    """
    flags = {m: present.get(m) if present else None for m in tokens}
    if all(flag is None for flag in flags.values()):
        return None
    parts = []
    for modality, values in tokens.items():
        flag = flags[modality]
        if flag is None:
            flag = torch.ones(len(values), dtype=torch.bool, device=values.device)
        parts.append(flag[:, None, None, None].expand(-1, 1, 1, values.shape[1]))
    return torch.cat(parts, dim=-1)


def initialise(module: nn.Module) -> None:
    """MAE's initialisation: Linear xavier-uniform with zero bias, LayerNorm one and zero [source MAE]."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm) and module.elementwise_affine:
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)


def initialise_like_bert(module: nn.Module) -> None:
    """BERT's initialisation: Linear N(0, 0.02) with zero bias, LayerNorm one and zero [source MAE-AST]."""
    initialise(module)
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)


def padding_mask(is_padding: Tensor | None, num_prefix: int) -> Tensor | None:
    """Which keys attention may see, ``[B, 1, 1, c + N]`` bool, of sequences whose patch tokens ``[B, N]`` may be padding."""
    if is_padding is None:
        return None
    return F.pad(~is_padding, (num_prefix, 0), value=True)[:, None, None]
