"""Which frequency a mel bin stands for: the axis beside a spectrogram."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_LOW_HZ = {"kaldi_hann": 20.0, "kaldi_povey": 20.0, "slaney": 50.0}
_HIGH_HZ = 8000.0
_KALDI_MEL, _KALDI_HZ = 1127.0, 700.0
_SLANEY_HZ_PER_MEL, _SLANEY_CORNER_HZ, _SLANEY_LOG_STEP = 200.0 / 3, 1000.0, math.log(6.4) / 27


def centre_frequencies(num_mel_bins: int, spectrogram: str) -> Tensor:
    """``[M]`` float64: where each mel filter has its peak, Hz, rising [source Kaldi; Slaney's Auditory Toolbox, librosa].

    ``spectrogram`` is the front end's kind: ``kaldi_hann`` and ``kaldi_povey`` divide 20 Hz to 8 kHz evenly on Kaldi's mel
    scale, ``slaney`` 50 Hz to 8 kHz on Slaney's, which is linear below 1 kHz.

    Raises:
        ValueError: another kind.
    """
    if spectrogram not in _LOW_HZ:
        raise ValueError(f"{spectrogram!r} is no kind of spectrogram; there are {', '.join(_LOW_HZ)}")
    to_mel, to_hz = (_slaney_mel, _slaney_hz) if spectrogram == "slaney" else (_kaldi_mel, _kaldi_hz)
    ends = to_mel(torch.tensor([_LOW_HZ[spectrogram], _HIGH_HZ], dtype=torch.float64))
    # Triangles overlap by half: with their outer feet there are two more edges than peaks.
    edges = torch.linspace(ends[0].item(), ends[1].item(), num_mel_bins + 2, dtype=torch.float64)
    return to_hz(edges[1:-1])


def _kaldi_mel(hz: Tensor) -> Tensor:
    return _KALDI_MEL * (hz / _KALDI_HZ).log1p()


def _kaldi_hz(mel: Tensor) -> Tensor:
    return _KALDI_HZ * (mel / _KALDI_MEL).expm1()


def _slaney_mel(hz: Tensor) -> Tensor:
    corner = _SLANEY_CORNER_HZ / _SLANEY_HZ_PER_MEL
    above = corner + (hz.clamp(min=_SLANEY_CORNER_HZ) / _SLANEY_CORNER_HZ).log() / _SLANEY_LOG_STEP
    return torch.where(hz < _SLANEY_CORNER_HZ, hz / _SLANEY_HZ_PER_MEL, above)


def _slaney_hz(mel: Tensor) -> Tensor:
    corner = _SLANEY_CORNER_HZ / _SLANEY_HZ_PER_MEL
    above = _SLANEY_CORNER_HZ * ((mel.clamp(min=corner) - corner) * _SLANEY_LOG_STEP).exp()
    return torch.where(mel < corner, mel * _SLANEY_HZ_PER_MEL, above)
