"""From a log-mel spectrogram back to something one can listen to, and waveforms as WAV bytes.

Inverts the Kaldi-style front end of the project: pre-emphasis 0.97, 25 ms Hann window every 10 ms, FFT 512, power, HTK mel
bins from 20 Hz to 8 kHz, natural logarithm floored at float32's epsilon; no padding at the edges [paper: section 2.1].
"""

from __future__ import annotations

import io
import math
import wave

import torch
import torch.nn.functional as F
from torch import Tensor
from torchaudio.compliance.kaldi import get_mel_banks
from torchaudio.functional import griffinlim

from mavil.structs import SAMPLE_RATE

_WINDOW = SAMPLE_RATE * 25 // 1000
_HOP = SAMPLE_RATE * 10 // 1000
_FFT = 512
_PRE_EMPHASIS = 0.97
_LOW_HZ, _HIGH_HZ = 20.0, 8000.0
_FLOOR = torch.finfo(torch.float32).eps
"""The power that the front end's logarithm is floored at: silence."""
_MEL_ROUNDS = 100
"""Updates of the spectrum; more do not change what is heard [our choice]."""
_PHASE_ROUNDS = 60
"""Griffin-Lim iterations [our choice]."""


def num_steps_of(num_samples: int) -> int:
    """How many spectrogram steps a waveform fills: one per 10 ms, as long as a whole 25 ms window fits."""
    return max(0, 1 + (num_samples - _WINDOW) // _HOP)


def num_samples_of(num_steps: int) -> int:
    """How many samples of a waveform that many spectrogram steps span."""
    return (num_steps - 1) * _HOP + _WINDOW


def spectrogram_to_sound(log_mel: Tensor, num_samples: int | None = None, seed: int = 0) -> Tensor:
    """A waveform ``[L]`` float32 in [-1, 1] at 16 kHz whose log-mel power spectrogram resembles ``log_mel`` ``[S, M]``.

    Level and pitch are those of the spectrogram; the phases are not in it and are made up by Griffin-Lim from a start drawn
    with ``seed``, so even an original sounds hollow: compare reconstructions with an original that went the same way.

    Args:
        log_mel: natural logarithm of power, not normalised.
        num_samples: true length of the clip; the padding beyond it is cut off first. None: all steps are sound.
        seed: of the starting phases.

    Raises:
        ValueError: less than one window of sound.
    """
    if num_samples is not None:
        log_mel = log_mel[: num_steps_of(num_samples)]
    if len(log_mel) < 3:
        raise ValueError(f"{len(log_mel)} spectrogram steps are too few to make sound of: at least 3 (45 ms)")
    # The spectrum's values span ten orders of magnitude.
    power = _spectrum(log_mel.detach().double().cpu()) / _pre_emphasis_power()
    window = torch.hann_window(_WINDOW, periodic=False, dtype=torch.float64)
    # torchaudio draws the phases from the global generator: leave that one as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        middle = griffinlim(power.T, window, _FFT, _HOP, _WINDOW, 2.0, _PHASE_ROUNDS, 0.99, None, True)
    # Step 0 is centred on sample 200 of the clip, and on sample 0 of what Griffin-Lim returns.
    waveform = F.pad(middle, (_WINDOW // 2, _WINDOW // 2))
    if num_samples is not None:
        waveform = F.pad(waveform, (0, num_samples - len(waveform)))
    return (waveform / waveform.abs().max().clamp(min=1.0)).float()


def wav_bytes(waveform: Tensor) -> bytes:
    """``[L]`` in [-1, 1] at 16 kHz as a mono WAV file of 16-bit samples; values outside are clipped."""
    samples = (waveform.detach().cpu().float().clamp(-1, 1) * 32767).round().to(torch.int16)
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(samples.numpy().astype("<i2").tobytes())
    return stream.getvalue()


def _spectrum(log_mel: Tensor) -> Tensor:
    """The non-negative power spectrum ``[S, 257]`` whose mel bins come closest to ``log_mel`` ``[S, M]``.

    Closest in the Kullback-Leibler sense (multiplicative updates of Lee and Seung): quiet bins count relative to their own
    level, where least squares would only fit the loudest.
    """
    banks, _ = get_mel_banks(log_mel.shape[1], _FFT, float(SAMPLE_RATE), _LOW_HZ, _HIGH_HZ, 100.0, -500.0, 1.0)
    banks = F.pad(banks.double(), (0, 1))  # Kaldi leaves the highest FFT bin out
    mel = (log_mel.exp() - _FLOOR).clamp(min=0)
    reach = banks.sum(0)
    spectrum = (mel @ banks) / reach.clamp(min=1e-12)
    for _ in range(_MEL_ROUNDS):
        ratio = mel / (spectrum @ banks.T).clamp(min=1e-20)
        spectrum = spectrum * (ratio @ banks) / reach.clamp(min=1e-12)
    return spectrum


def _pre_emphasis_power() -> Tensor:
    """``[257]``: what ``x[n] - 0.97 x[n - 1]`` multiplies the power of each FFT bin with."""
    angle = torch.arange(_FFT // 2 + 1, dtype=torch.float64) * (2 * math.pi / _FFT)
    return 1 + _PRE_EMPHASIS**2 - 2 * _PRE_EMPHASIS * angle.cos()
