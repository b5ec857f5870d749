"""What every other struct is about: the modalities, the one sample rate, and how a person's mistake is told."""

from __future__ import annotations

from typing import Literal

Modality = Literal["audio", "video"]
MODALITIES: tuple[Modality, ...] = ("audio", "video")
SAMPLE_RATE = 16_000
"""Hz. The one waveform rate of the project; media.py resamples everything to it [paper: 16 kHz mono]."""


class UserError(ValueError):
    """Something the person at the keyboard can mend: one line with what is wrong, the value, and what to do.

    The command line prints it without a traceback and exits with code 2; everything else that escapes is our bug.
    """
