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

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Tower:
        if self.width % self.num_heads or self.width % 16:
            raise ValueError(f"width {self.width} must be a multiple of num_heads {self.num_heads} and of 16")
        return self


class AudioAugment(Settings):
    """What training does to a waveform. Drawn per clip from (seed, epoch, key)."""

    roll: bool = Field(True, description="circular shift by a random offset [Audio-MAE's intent; its code never rolls]")
    gain: bool = Field(True, description="times Beta(10, 10) + 0.5 [source Audio-MAE]")


class AudioBranch(Settings):
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
    mask_ratio: float = Field(0.8, gt=0, lt=1, description="share of tokens hidden in pre-training [recalled]")
    augment: AudioAugment = AudioAugment()
    encoder: Tower = Tower()
    decoder: Tower = Tower(width=512, depth=8, num_heads=16)

    @model_validator(mode="after")
    def _mean_goes_with_std(self) -> AudioBranch:
        if (self.mean is None) != (self.std is None):
            alone, other = ("mean", "std") if self.std is None else ("std", "mean")
            raise ValueError(f"{alone} is set without {other}: give both, or neither to have them found")
        return self

    def grid(self) -> TokenGrid:
        """Tokens of the whole spectrogram."""
        return TokenGrid.of((self.num_steps, self.num_mel_bins), self.patch, channels=1)


class VideoAugment(Settings):
    """What training does to frames. Drawn per clip from (seed, epoch, key); one crop for all frames of a clip."""

    crop_scale: Annotated[tuple[Share, Share], AfterValidator(increasing)] = Field(
        (0.5, 1.0), description="area of the random crop as a share of the frame [recalled]"
    )
    flip: float = Field(0.5, ge=0, le=1, description="probability of a left-right mirror [recalled]")


class VideoBranch(Settings):
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
    mask_ratio: float = Field(0.8, gt=0, lt=1, description="share of tokens hidden in pre-training [recalled]")
    augment: VideoAugment = VideoAugment()
    encoder: Tower = Tower()
    decoder: Tower = Tower(width=512, depth=8, num_heads=16)

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


class BottleneckFusion(Settings):
    """The modalities meet only in a few bottleneck tokens (MBT)."""

    kind: Literal["bottleneck"] = "bottleneck"
    depth: int = Field(2, gt=0, description="blocks [paper]")
    num_tokens: int = Field(4, gt=0, description="bottleneck tokens [recalled, weak: as in MBT]")
