"""Waveforms of other sample rates to the one rate of the project, in bounded memory."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchaudio.functional import resample

from mavil.structs import SAMPLE_RATE

SAMPLES_AT_ONCE = 2**22
"""Of all rows together: the filter's products of a whole hour would take gigabytes."""
MARGIN_STEPS = 32
"""Periods of both rates taken along on either side of a piece; at the shortest of them, 3 samples at 48 kHz, the filter of
torchaudio reaches over 19 samples."""


def resampled(waveforms: Tensor, rate: int) -> Tensor:
    """``[B, L]`` at ``rate`` Hz to ``[B, L * 16000 // rate]`` at 16 kHz, as ``torchaudio.functional.resample`` of the whole."""
    if rate == SAMPLE_RATE:
        return waveforms
    common = math.gcd(rate, SAMPLE_RATE)
    period_in, period_out = rate // common, SAMPLE_RATE // common
    num_samples, num_out = waveforms.shape[1], waveforms.shape[1] * SAMPLE_RATE // rate
    periods = max(1, SAMPLES_AT_ONCE // (max(1, len(waveforms)) * period_in))
    pieces = []
    for begin in range(0, math.ceil(num_samples / period_in), periods):
        first = max(0, begin - MARGIN_STEPS)
        last = begin + periods + MARGIN_STEPS
        piece = resample(waveforms[:, first * period_in : last * period_in].float(), rate, SAMPLE_RATE)
        own = (begin - first) * period_out
        pieces.append(piece[:, own : own + periods * period_out])
    return torch.cat(pieces, dim=1)[:, :num_out]
