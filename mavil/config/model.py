"""Settings of the network: rows of blocks, what both branches have, and the fusion of both."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from mavil.config.base import Settings

Positions = Literal["sincos_2d", "transposed_2d", "sincos_1d", "convolutional", "sincos_3d", "tiled_2d"]


class Tower(Settings):
    """A stack of transformer blocks."""

    width: int = Field(768, gt=0, description="channels per token [paper: ViT-B]")
    depth: int = Field(12, gt=0, description="blocks [paper: ViT-B]")
    num_heads: int = Field(12, gt=0, description="attention heads [paper: ViT-B]")
    mlp_ratio: float = Field(4.0, gt=0, description="hidden channels of a block's MLP per channel [paper: ViT-B]")
    layer_norm_eps: float = Field(
        1e-6, gt=0, description="epsilon of every LayerNorm [source MAE; 1e-5 in CAV-MAE, MAE-AST]"
    )
    norm: Literal["pre", "post"] = Field(
        "pre",
        description="LayerNorm before attention and MLP, and after the last block [source MAE]; or after each of them, and "
        "before the first block [source MAE-AST]",
    )
    key_bias: bool = Field(True, description="keys have a bias, as queries and values do [source MAE; false: MSM-MAE]")
    dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="of what enters, of attention, of what leaves attention and MLP [0.1: source MAE-AST]",
    )
    layer_drop: float = Field(
        0.0, ge=0, lt=1, description="probability that training leaves a block out for a batch [0.05: source MAE-AST]"
    )

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Tower:
        if self.width % self.num_heads or self.width % 16:
            raise ValueError(f"width {self.width} must be a multiple of num_heads {self.num_heads} and of 16")
        return self


class DecoderTower(Tower):
    """A decoder's stack: global attention, or attention in windows of the token grid as in Audio-MAE's released code."""

    attention: Literal["global", "windowed"] = Field(
        "global",
        description="all tokens, or shifted windows with post-norm blocks and cosine attention [recalled: global; "
        "source Audio-MAE: windowed, 16 blocks]",
    )
    window: tuple[int, ...] | None = Field(
        None,
        description="cells of a window per axis of the token grid; none: (4, 4) for sound [source Audio-MAE], (2, 7, 7) for "
        "video [our choice]",
    )
    shift: Literal["all", "time"] = Field(
        "all",
        description="odd windowed blocks are moved by half a window along every axis [recalled], or along time alone "
        "[source Audio-MAE]",
    )
    global_blocks: int = Field(
        0, ge=0, description="of a windowed decoder, so many last blocks look at all tokens: hybrid [recalled]"
    )
    projection: bool = Field(
        True,
        description="a linear layer between encoder and decoder [source MAE; none in MAE-AST, widths must then agree]",
    )
    positions: Positions | None = Field(
        None, description="kind of the position table; none: the encoder's [source MAE]"
    )

    @model_validator(mode="after")
    def _window_needs_windows(self) -> DecoderTower:
        if self.window is not None and self.attention == "global":
            raise ValueError(f"window {list(self.window)} belongs to attention windowed, but attention is global")
        if self.global_blocks > 0 and (self.attention == "global" or self.global_blocks >= self.depth):
            raise ValueError(
                f"global_blocks is {self.global_blocks}: it counts the last of {self.depth} blocks of a windowed decoder, but "
                f"attention is {self.attention}; set attention=windowed and fewer global_blocks than depth, or 0"
            )
        return self


class Branch(Settings):
    """What both sides have: masking, tokens, encoder and decoder."""

    mask_ratio: float = Field(0.8, gt=0, lt=1, description="share of tokens hidden in pre-training [recalled]")
    cls_token: bool = Field(
        True, description="a CLS token in front of the patches [source AV-SUPERB copy; none in CAV-MAE]"
    )
    modality_embedding: bool = Field(
        False,
        description="a learned vector of the modality added to every token [source CAV-MAE; none in AV-SUPERB copy]",
    )
    trained_positions: bool = Field(
        False, description="the position table is trained too, from its fixed values [source CAV-MAE's fine-tuning]"
    )
    encoder: Tower = Tower()
    decoder: DecoderTower = DecoderTower(width=512, depth=8, num_heads=16)


class JointFusion(Settings):
    """Self-attention over the concatenated audio and video tokens ("vanilla" in the paper)."""

    kind: Literal["joint"] = "joint"
    depth: int = Field(2, gt=0, description="blocks [paper]")
    input_norm: bool = Field(
        False, description="a LayerNorm per modality between encoder and fusion [unknown; none in AV-SUPERB copy]"
    )
    alone_norms: bool = Field(
        False,
        description="a modality that passes the fusion by itself has norms of its own there; the rest of each block is shared "
        "[source CAV-MAE]",
    )


class BottleneckFusion(Settings):
    """The modalities meet only in a few bottleneck tokens (MBT)."""

    kind: Literal["bottleneck"] = "bottleneck"
    depth: int = Field(2, gt=0, description="blocks [paper]")
    num_tokens: int = Field(4, gt=0, description="bottleneck tokens [recalled, weak: as in MBT]")
    input_norm: bool = Field(
        False, description="a LayerNorm per modality between encoder and fusion [unknown; none in AV-SUPERB copy]"
    )
