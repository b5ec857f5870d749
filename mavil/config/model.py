"""Settings of the network: the two branches with their inputs, and the fusion of both."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from mavil.config.base import Positive, Settings, Share, increasing
from mavil.structs import TokenGrid


class Tower(Settings):
    """A stack of transformer blocks."""

    width: int = Field(768, gt=0, description="channels per token [paper: ViT-B]")
    depth: int = Field(12, gt=0, description="blocks [paper: ViT-B]")
    num_heads: int = Field(12, gt=0, description="attention heads [paper: ViT-B]")
    mlp_ratio: float = Field(4.0, gt=0, description="hidden channels of a block's MLP per channel [paper: ViT-B]")
    layer_norm_eps: float = Field(1e-6, gt=0, description="epsilon of every LayerNorm [source MAE; 1e-5 in CAV-MAE]")

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
        "video [our choice]; odd blocks are shifted by half a window along time",
    )

    @model_validator(mode="after")
    def _window_needs_windows(self) -> DecoderTower:
        if self.window is not None and self.attention == "global":
            raise ValueError(f"window {list(self.window)} belongs to attention windowed, but attention is global")
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


class AudioAugment(Settings):
    """What training does to a waveform. Drawn per clip from (seed, epoch, key)."""

    roll: bool = Field(True, description="circular shift by a random offset [Audio-MAE's intent; its code never rolls]")
    gain: bool = Field(True, description="times Beta(10, 10) + 0.5 [source Audio-MAE]")


class AudioBranch(Branch):
    """The audio side: waveform to spectrogram to tokens, encoder and decoder."""

    seconds: float = Field(10.0, gt=0, description="length of waveform taken from a clip, s [paper]")
    num_steps: int = Field(1024, gt=0, description="spectrogram steps of 10 ms, zero-padded or cut at the end [paper]")
    num_mel_bins: int = Field(128, gt=0, description="mel bins, 20 Hz to 8 kHz [paper]")
    mean: float | None = Field(
        None,
        strict=True,
        description="log-mel mean; none: as measured by mavil shards stats, else AudioSet's [source Audio-MAE]",
    )
    std: float | None = Field(
        None,
        gt=0,
        strict=True,
        description="log-mel deviation, found likewise; values become (x - mean) / (2 std) [source Audio-MAE]",
    )
    patch: tuple[int, int] = Field((16, 16), description="patch: steps, mel bins [paper]")
    token_order: Literal["time_first", "mel_first"] = Field(
        "time_first",
        description="number tokens along mel bins within a time step [source AV-SUPERB copy], or along time within a band, "
        "with patches, kernels and targets transposed likewise [source CAV-MAE, MSM-MAE]",
    )
    augment: AudioAugment = AudioAugment()

    @model_validator(mode="after")
    def _mean_goes_with_std(self) -> AudioBranch:
        if (self.mean is None) != (self.std is None):
            alone, other = ("mean", "std") if self.std is None else ("std", "mean")
            raise ValueError(f"{alone} is set without {other}: give both, or neither to have them found")
        return self

    def grid(self) -> TokenGrid:
        """Tokens of the whole spectrogram."""
        grid = TokenGrid.of((self.num_steps, self.num_mel_bins), self.patch, channels=1)
        return grid if self.token_order == "time_first" else grid.reordered((1, 0))


class VideoAugment(Settings):
    """What training does to frames. Drawn per clip from (seed, epoch, key); one crop for all frames of a clip."""

    crop_scale: Annotated[tuple[Share, Share], AfterValidator(increasing)] = Field(
        (0.5, 1.0), description="area of the random crop as a share of the frame [recalled]"
    )
    flip: float = Field(0.5, ge=0, le=1, description="probability of a left-right mirror [recalled]")


class VideoBranch(Branch):
    """The video side: frames to tubelet tokens, encoder and decoder."""

    num_frames: int = Field(8, gt=0, description="frames given to the model [source AV-SUPERB copy]")
    frames_per_second: float = Field(2.0, gt=0, description="sampling rate of those frames, Hz [source AV-SUPERB copy]")
    size: int = Field(224, gt=0, description="frame side after cropping, pixels [source AV-SUPERB copy]")
    decode_short_side: int = Field(
        256, gt=0, description="workers shrink larger frames to this short side, pixels [our choice]"
    )
    mean: tuple[float, float, float] = Field((0.485, 0.456, 0.406), description="ImageNet [source AV-SUPERB copy]")
    std: tuple[Positive, Positive, Positive] = Field(
        (0.229, 0.224, 0.225), description="ImageNet [source AV-SUPERB copy]"
    )
    patch: tuple[int, int, int] = Field(
        (2, 16, 16), description="tubelet: frames, rows, columns [source AV-SUPERB copy]"
    )
    positions: Literal["sincos_3d", "tiled_2d"] = Field(
        "sincos_3d",
        description="separable 3-D table, or the image MAE's 2-D table repeated over time [source, both exist]",
    )
    augment: VideoAugment = VideoAugment()

    @property
    def seconds(self) -> float:
        """Length of the window the frames are taken from, s."""
        return self.num_frames / self.frames_per_second

    def grid(self) -> TokenGrid:
        """Tokens of the whole window."""
        return TokenGrid.of((self.num_frames, self.size, self.size), self.patch, channels=3)


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
