"""How the picture of a span is encoded anew: the settings of the H.264 encoder, kept and for training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

# More frames per second than wanted are left out only where they are clearly more: 30 is often 30.3 or 31.
_RATE_TOLERANCE = 1.05


@dataclass(frozen=True)
class SpanEncoding:
    """How the picture of a span is encoded anew.

    Attributes:
        preset, quality: x264's preset and constant rate factor.
        key_frame_every: frames; ``None`` is a second of them.
        short_side: a larger picture is shrunk to it, pixels; ``None`` keeps the size. Never enlarged.
        frames_per_second: where there are clearly more, frames are left out, evenly; ``None`` keeps all.
        options: further options of the encoder.
    """

    preset: str = "veryfast"
    quality: int = 20
    key_frame_every: int | None = None
    short_side: int | None = None
    frames_per_second: float | None = None
    options: Mapping[str, str] = field(default_factory=dict)

    def x264_options(self, rate: Fraction) -> dict[str, str]:
        """For a picture of so many frames per second."""
        every = self.key_frame_every or max(1, round(rate))
        return {"preset": self.preset, "crf": str(self.quality), "g": str(every), **self.options}

    def spacing(self, rate: Fraction | None) -> float:
        """Seconds that must lie between two frames; 0 where none is to be left out."""
        if not self.frames_per_second or (rate and rate <= self.frames_per_second * _RATE_TOLERANCE):
            return 0.0
        return 1 / (self.frames_per_second * _RATE_TOLERANCE)


KEEP_PICTURE = SpanEncoding()
TRAINING = SpanEncoding(
    quality=23,
    key_frame_every=16,
    short_side=256,
    frames_per_second=30.0,
    # Fixed groups of 16 frames that need nothing outside (no scene cuts, closed), three of four frames are B-frames that
    # no other frame refers to, so that a decoder that wants 2 frames per second leaves most of them out; no deblocking and
    # no arithmetic coding (fastdecode). Eight frames of a 10-s clip decode in half the time of the plain preset's, for a few
    # per cent more bytes; a slower preset was neither smaller nor quicker to decode [measured, docs/experiments.md].
    options={
        "tune": "fastdecode",
        "x264-params": "min-keyint=16:scenecut=0:open-gop=0:bframes=3:b-adapt=0:b-pyramid=none",
    },
)
"""For clips that are read many times at a few frames per second."""
