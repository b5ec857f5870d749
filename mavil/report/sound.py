"""From a log-mel spectrogram back to something one can listen to, and waveforms as WAV bytes.

Inverts the front ends of the project, all with 25 ms windows every 10 ms, power spectrum and natural logarithm:

- ``kaldi_hann`` [paper: section 2.1] and ``kaldi_povey`` [source MAE-AST]: pre-emphasis 0.97, Hann window or that to the power
  of 0.85, FFT 512, HTK mel bins from 20 Hz to 8 kHz, floored at float32's epsilon, no padding at the edges;
- ``slaney`` [source MSM-MAE]: no pre-emphasis, FFT 400, Slaney's mel bins from 50 Hz to 8 kHz, each of area 1, plus float32's
  epsilon, windows centred on their step.
"""

from __future__ import annotations

import io
import math
import wave
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchaudio.compliance.kaldi import get_mel_banks
from torchaudio.functional import griffinlim, melscale_fbanks

from mavil.structs import SAMPLE_RATE

_WINDOW = SAMPLE_RATE * 25 // 1000
_HOP = SAMPLE_RATE * 10 // 1000
_FFT = {"kaldi_hann": 512, "kaldi_povey": 512, "slaney": _WINDOW}
_PRE_EMPHASIS = 0.97
_POVEY_POWER = 0.85
_LOW_HZ, _SLANEY_LOW_HZ, _HIGH_HZ = 20.0, 50.0, 8000.0
_FLOOR = torch.finfo(torch.float32).eps
"""The power that the front end's logarithm is floored at, or that is added to all (slaney): silence."""
_MEL_ROUNDS = 100
"""Updates of the spectrum; more do not change what is heard [our choice]."""
_PHASE_ROUNDS = 60
"""Griffin-Lim iterations [our choice]."""

Kind = Literal["kaldi_hann", "kaldi_povey", "slaney"]


def num_steps_of(num_samples: int, spectrogram: Kind = "kaldi_hann") -> int:
    """How many spectrogram steps a waveform fills: one per 10 ms, as long as a whole 25 ms window fits or, where windows are
    centred (slaney), from the first sample to the last.
    """
    if spectrogram == "slaney":
        return 1 + num_samples // _HOP if num_samples > 0 else 0
    return max(0, 1 + (num_samples - _WINDOW) // _HOP)


def num_samples_of(num_steps: int, spectrogram: Kind = "kaldi_hann") -> int:
    """How many samples a waveform of that many spectrogram steps has at least."""
    if spectrogram == "slaney":
        return max(1, (num_steps - 1) * _HOP)
    return (num_steps - 1) * _HOP + _WINDOW


def spectrogram_to_sound(
    log_mel: Tensor, num_samples: int | None = None, seed: int = 0, spectrogram: Kind = "kaldi_hann"
) -> Tensor:
    """A waveform ``[L]`` float32 in [-1, 1] at 16 kHz whose log-mel power spectrogram resembles ``log_mel`` ``[S, M]``.

    Level and pitch are those of the spectrogram; the phases are not in it and are made up by Griffin-Lim from a start drawn
    with ``seed``, so even an original sounds hollow: compare reconstructions with an original that went the same way.

    Args:
        log_mel: natural logarithm of power, not normalised.
        num_samples: true length of the clip; the padding beyond it is cut off first. None: all steps are sound.
        seed: of the starting phases.
        spectrogram: the front end it comes from.

    Raises:
        ValueError: fewer than three steps of sound.
    """
    if num_samples is not None:
        log_mel = log_mel[: num_steps_of(num_samples, spectrogram)]
    if len(log_mel) < 3:
        raise ValueError(f"{len(log_mel)} spectrogram steps are too few to make sound of: at least 3 (45 ms)")
    # The spectrum's values span ten orders of magnitude.
    power = _spectrum(log_mel.detach().double().cpu(), _mel_banks(log_mel.shape[1], spectrogram))
    if spectrogram != "slaney":
        power = power / _pre_emphasis_power()
    window, fft = _window(spectrogram), _FFT[spectrogram]
    # torchaudio draws the phases from the global generator: leave that one as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        middle = griffinlim(power.T, window, fft, _HOP, _WINDOW, 2.0, _PHASE_ROUNDS, 0.99, None, True)
    # Step 0 is centred on sample 0 of what Griffin-Lim returns, but in Kaldi's spectrograms on sample 200 of the clip.
    waveform = middle if spectrogram == "slaney" else F.pad(middle, (_WINDOW // 2, _WINDOW // 2))
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


def _window(spectrogram: Kind) -> Tensor:
    window = torch.hann_window(_WINDOW, periodic=spectrogram == "slaney", dtype=torch.float64)
    return window.pow(_POVEY_POWER) if spectrogram == "kaldi_povey" else window


def _mel_banks(num_mel_bins: int, spectrogram: Kind) -> Tensor:
    """``[M, F]`` float64."""
    if spectrogram == "slaney":
        num_bins = _FFT[spectrogram] // 2 + 1
        banks = melscale_fbanks(num_bins, _SLANEY_LOW_HZ, _HIGH_HZ, num_mel_bins, SAMPLE_RATE, "slaney", "slaney")
        return banks.T.double()
    fft = _FFT[spectrogram]
    banks, _ = get_mel_banks(num_mel_bins, fft, float(SAMPLE_RATE), _LOW_HZ, _HIGH_HZ, 100.0, -500.0, 1.0)
    return F.pad(banks.double(), (0, 1))  # Kaldi leaves the highest FFT bin out


def _spectrum(log_mel: Tensor, banks: Tensor) -> Tensor:
    """The non-negative power spectrum ``[S, F]`` whose mel bins ``banks`` ``[M, F]`` come closest to ``log_mel`` ``[S, M]``.

    Closest in the Kullback-Leibler sense (multiplicative updates of Lee and Seung): quiet bins count relative to their own
    level, where least squares would only fit the loudest.
    """
    mel = (log_mel.exp() - _FLOOR).clamp(min=0)
    reach = banks.sum(0)
    spectrum = (mel @ banks) / reach.clamp(min=1e-12)
    for _ in range(_MEL_ROUNDS):
        ratio = mel / (spectrum @ banks.T).clamp(min=1e-20)
        spectrum = spectrum * (ratio @ banks) / reach.clamp(min=1e-12)
    return spectrum


def _pre_emphasis_power() -> Tensor:
    """``[257]``: what ``x[n] - 0.97 x[n - 1]`` multiplies the power of each FFT bin with."""
    fft = _FFT["kaldi_hann"]
    angle = torch.arange(fft // 2 + 1, dtype=torch.float64) * (2 * math.pi / fft)
    return 1 + _PRE_EMPHASIS**2 - 2 * _PRE_EMPHASIS * angle.cos()
