"""Waveforms of one length to log-mel spectrograms by matrix products, for graphs that other programs run.

The numbers are those of :class:`mavil.data.spectrogram.AudioFrontEnd` in evaluation mode. That one splits batches, looks at
each clip's length and takes Fourier transforms, and exporters and run times differ in what they make of these. Here windows
are cut by slices and the transform is a product with a table of cosines and sines [our choice].
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mavil.config import AudioBranch
from mavil.data.spectrogram import (
    BATCH_VARIANCE_EPS,
    FFT_SAMPLES,
    FLOOR,
    HOP_SAMPLES,
    MARGIN_SAMPLES,
    POVEY_POWER,
    PRE_EMPHASIS,
    WINDOW_SAMPLES,
    SpectrogramKind,
    mel_filter_bank,
    num_spectrogram_steps,
)
from mavil.structs import SAMPLE_RATE, UserError

BLOCK_SAMPLES = math.gcd(WINDOW_SAMPLES, HOP_SAMPLES)
"""Windows begin and end at multiples of this."""


class WaveformFrontEnd(nn.Module):
    """``[B, L]`` waveforms of one length, 16 kHz, to ``[B, 1, S, M]`` normalised log-mel values.

    Args:
        num_samples: L.
        num_steps: S; what L does not fill is zero before normalising, as in training.
        num_mel_bins: M.
        mean: of the training set's log-mel values.
        scale: values become ``(x - mean) / scale``.
        kind: of spectrogram.
        scale_factor: ``None``, or mean and deviation are those of each clip instead, the deviation times this number.

    Raises:
        UserError: so short a window that it holds no step, or less than what is mirrored at its ends.
    """

    fourier: Tensor
    filter_bank: Tensor

    def __init__(
        self,
        num_samples: int,
        num_steps: int,
        num_mel_bins: int,
        mean: float,
        scale: float,
        kind: SpectrogramKind = "kaldi_hann",
        scale_factor: float | None = None,
    ) -> None:
        super().__init__()
        shortest = MARGIN_SAMPLES + 1 if kind == "slaney" else WINDOW_SAMPLES
        if num_samples < shortest:
            raise UserError(f"audio.seconds gives windows of {num_samples} samples; a graph needs at least {shortest}")
        self.num_samples, self.num_steps, self.kind = num_samples, num_steps, kind
        self.mean, self.scale, self.scale_factor = mean, scale, scale_factor
        filled = int(num_spectrogram_steps(torch.tensor(num_samples), kind))
        self.num_filled = min(num_steps, filled)
        self.register_buffer("fourier", fourier_table(kind), persistent=False)
        self.register_buffer("filter_bank", mel_filter_bank(num_mel_bins, kind).T.contiguous(), persistent=False)

    def forward(self, waveforms: Tensor) -> Tensor:
        """Of float32 samples in [-1, 1]."""
        values = self._log_energies(waveforms)
        values = F.pad(values, (0, 0, 0, self.num_steps - self.num_filled))  # [B, S, M]
        if self.scale_factor is None:
            return ((values - self.mean) / self.scale).unsqueeze(1)
        variance, mean = torch.var_mean(values, dim=(1, 2), correction=0, keepdim=True)
        return ((values - mean) / (self.scale_factor * (variance + BATCH_VARIANCE_EPS).sqrt())).unsqueeze(1)

    def _log_energies(self, waveforms: Tensor) -> Tensor:
        if self.kind == "slaney":
            waveforms = F.pad(waveforms.unsqueeze(1), (MARGIN_SAMPLES, MARGIN_SAMPLES), mode="reflect").squeeze(1)
            return (self._power(self._windows(waveforms)) @ self.filter_bank + FLOOR).log()
        windows = self._windows(waveforms)
        windows = windows - windows.mean(dim=2, keepdim=True)  # and with it the clip's, which training takes off before
        # Not part of the table: what it takes off loud low tones would be the difference of large numbers there.
        windows = windows - PRE_EMPHASIS * F.pad(windows[..., :-1], (1, 0))
        return (self._power(windows) @ self.filter_bank).clamp(min=FLOOR).log()

    def _windows(self, waveforms: Tensor) -> Tensor:
        """``[B, filled steps, 400]``."""
        hop, length = HOP_SAMPLES // BLOCK_SAMPLES, WINDOW_SAMPLES // BLOCK_SAMPLES
        count = self.num_filled
        needed = ((count - 1) * hop + length) * BLOCK_SAMPLES
        blocks = waveforms[:, :needed].unflatten(1, (-1, BLOCK_SAMPLES))
        return torch.cat([blocks[:, i : i + (count - 1) * hop + 1 : hop] for i in range(length)], dim=2)

    def _power(self, windows: Tensor) -> Tensor:
        """``[B, S, 400]`` to ``[B, S, F]``."""
        real, imaginary = (windows @ self.fourier).chunk(2, dim=2)
        return real.square() + imaginary.square()


def front_end_of(audio: AudioBranch) -> WaveformFrontEnd:
    """The front end of a complete recipe, for waveforms of ``audio.seconds``: as many as training takes from a clip."""
    assert audio.mean is not None  # an export is complete
    assert audio.std is not None
    return WaveformFrontEnd(
        round(audio.seconds * SAMPLE_RATE),
        audio.num_steps,
        audio.num_mel_bins,
        audio.mean,
        audio.std_factor * audio.std,
        audio.spectrogram,
        audio.std_factor if audio.batch_statistics == "evaluation" else None,
    )


def fourier_table(kind: SpectrogramKind) -> Tensor:
    """``[400, 2 F]`` float32: the window's shape times cosines, then times sines, of every frequency."""
    size = FFT_SAMPLES[kind]
    samples = torch.arange(WINDOW_SAMPLES, dtype=torch.float64)
    angles = samples[:, None] * torch.arange(size // 2 + 1) * (2 * math.pi / size)
    shape = torch.hann_window(WINDOW_SAMPLES, periodic=kind == "slaney", dtype=torch.float64)
    if kind == "kaldi_povey":
        shape = shape.pow(POVEY_POWER)
    return (shape[:, None] * torch.cat([angles.cos(), angles.sin()], dim=1)).float()
