"""Settings of the video side: from frames to tubelet tokens, and what training does to them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from mavil.config.base import Positive, Settings, Share, increasing
from mavil.config.model import Branch
from mavil.structs import TokenGrid


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
