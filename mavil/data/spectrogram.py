"""Waveforms -> normalised log-mel spectrograms, batched on the device, in the three ways of the public models.

One clip of a ragged batch comes out as it does alone:

- ``kaldi_hann``: as ``torchaudio.compliance.kaldi.fbank`` gives it (htk_compat, no energy, "hanning", no dither), which is
  what AST, Audio-MAE, CAV-MAE and MAViL were trained on [source].
- ``kaldi_povey``: the same with Kaldi's own window, the default there [source MAE-AST].
- ``slaney``: Slaney's mel scale and area normalisation, windows centred on their step with the clip reflected at both its
  ends, logarithm of the energy plus epsilon: nnAudio's and librosa's conventions [source MSM-MAE].
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mavil.data.augmentation import add_noise, mask_bands, roll_waveforms
from mavil.data.cutmix import Cuts, paste_steps
from mavil.data.mixup import Mixing, mix_waveforms
from mavil.seeds import uniform_draws
from mavil.structs import SAMPLE_RATE

SpectrogramKind = Literal["kaldi_hann", "kaldi_povey", "slaney"]

WINDOW_SAMPLES = 400
"""25 ms: waveform samples under one spectrogram step."""
HOP_SAMPLES = 160
"""10 ms: waveform samples from one spectrogram step to the next."""
MARGIN_SAMPLES = WINDOW_SAMPLES // 2
"""What a centred window reaches beyond its step, before and after."""
PRE_EMPHASIS = 0.97
POVEY_POWER = 0.85
"""Kaldi's window is the Hann window to this power."""
FFT_SAMPLES: dict[SpectrogramKind, int] = {"kaldi_hann": 512, "kaldi_povey": 512, "slaney": WINDOW_SAMPLES}
BAND_HZ: dict[SpectrogramKind, tuple[float, float]] = {
    "kaldi_hann": (20.0, SAMPLE_RATE / 2),
    "kaldi_povey": (20.0, SAMPLE_RATE / 2),
    "slaney": (50.0, SAMPLE_RATE / 2),
}
"""Lowest and highest frequency of the mel bins."""
FLOOR = torch.finfo(torch.float32).eps
"""Smallest mel energy before the logarithm, or what is added to all (slaney): silence is log(FLOOR) = -15.94."""
BATCH_VARIANCE_EPS = 1e-5
"""Added to the variance of a batch [source MAE-AST: torch's BatchNorm]."""
CLIPS_AT_ONCE = 4
"""On a CPU: a whole batch of windows does not fit the cache, and every pass over them would fetch them from memory again."""


def num_spectrogram_steps(lengths: Tensor, kind: SpectrogramKind = "kaldi_hann") -> Tensor:
    """How many steps waveforms of ``lengths`` samples have.

    Kaldi counts the whole windows that fit: 998 for 10 s, 0 below 25 ms. Centred windows (slaney) stand on every tenth
    millisecond from the first sample on: 1001 for 10 s, 1 below 10 ms, 0 for no sample at all.
    """
    if kind == "slaney":
        return torch.where(lengths > 0, lengths // HOP_SAMPLES + 1, 0)
    return ((lengths - WINDOW_SAMPLES) // HOP_SAMPLES + 1).clamp(min=0)


def num_samples_seen(num_steps: int, kind: SpectrogramKind = "kaldi_hann") -> int:
    """How many samples of a clip its first ``num_steps`` steps look at."""
    return (num_steps - 1) * HOP_SAMPLES + (MARGIN_SAMPLES if kind == "slaney" else WINDOW_SAMPLES)


def mel_filter_bank(num_mel_bins: int, kind: SpectrogramKind = "kaldi_hann") -> Tensor:
    """``[M, F]`` float32 weights of the FFT bins (257, slaney: 201) in each mel bin.

    Kaldi's are triangles on the HTK mel scale, not normalised, and the bin at the Nyquist frequency counts for nothing.
    Slaney's are triangles over Hz with corners on Slaney's scale (linear to 1 kHz, logarithmic above), each of area 1.
    """
    fft_samples, (low, high) = FFT_SAMPLES[kind], BAND_HZ[kind]
    hertz = torch.arange(fft_samples // 2 + 1, dtype=torch.float64) * (SAMPLE_RATE / fft_samples)
    if kind == "slaney":
        low, high = _slaney_scale(low), _slaney_scale(high)
        corners = _slaney_hertz(torch.linspace(low, high, num_mel_bins + 2, dtype=torch.float64))
        weights = _triangles(corners, hertz)
        return (weights * (2 / (corners[2:] - corners[:-2]))[:, None]).float()
    low, high = _mel_scale(torch.tensor([low, high], dtype=torch.float64)).tolist()
    corners = torch.linspace(low, high, num_mel_bins + 2, dtype=torch.float64)
    return F.pad(_triangles(corners, _mel_scale(hertz[:-1])), (0, 1)).float()


def _triangles(corners: Tensor, places: Tensor) -> Tensor:
    """``[M + 2]`` corners and ``[F]`` places -> ``[M, F]``: from 0 at a corner to 1 at the next to 0 at the one after."""
    left, centre, right = (corners[i : len(corners) - 2 + i, None] for i in range(3))
    return torch.minimum((places - left) / (centre - left), (right - places) / (right - centre)).clamp(min=0)


def _mel_scale(hertz: Tensor) -> Tensor:
    return 1127.0 * torch.log1p(hertz / 700.0)


def _slaney_scale(hertz: float) -> float:
    """Three mels per 200 Hz up to 1 kHz, then 27 for every factor of 6.4 [Slaney's Auditory Toolbox]."""
    return hertz * 3 / 200 if hertz < 1000 else 15 + 27 * math.log(hertz / 1000) / math.log(6.4)


def _slaney_hertz(mels: Tensor) -> Tensor:
    return torch.where(mels < 15, mels * 200 / 3, 1000 * torch.exp((mels - 15) * (math.log(6.4) / 27)))


def log_mel(waveforms: Tensor, lengths: Tensor, filter_bank: Tensor, kind: SpectrogramKind = "kaldi_hann") -> Tensor:
    """Natural logarithm of the mel energies; zero in the steps beyond a clip's own end.

    Args:
        waveforms: ``[B, L]`` float32, 16 kHz; what lies beyond a clip's length is not looked at.
        lengths: ``[B]`` true lengths in samples, same device.
        filter_bank: ``[M, F]`` from :func:`mel_filter_bank` of the same kind, same device.
        kind: see the module.

    Returns:
        ``[B, S, M]`` float32, ``S`` the number of steps of ``L`` samples (at least 1).
    """
    if kind == "slaney":
        waveforms = reflect_at_ends(F.pad(waveforms, (0, max(0, 1 - waveforms.shape[1]))), lengths)
    else:
        waveforms = F.pad(waveforms, (0, max(0, WINDOW_SAMPLES - waveforms.shape[1])))
    at_once = CLIPS_AT_ONCE if waveforms.device.type == "cpu" else len(waveforms)
    energies = torch.cat([_log_energies(clips, filter_bank, kind) for clips in waveforms.split(max(1, at_once))])
    is_real = torch.arange(energies.shape[1], device=lengths.device) < num_spectrogram_steps(lengths, kind)[:, None]
    return energies * is_real[..., None]


def reflect_at_ends(waveforms: Tensor, lengths: Tensor) -> Tensor:
    """``[B, L]`` to ``[B, L + 400]``: 200 samples before each clip and behind its own end are the clip backwards.

    The end samples are not repeated, and a clip shorter than the margin goes to and fro, as in numpy's ``reflect``.
    """
    lengths = lengths.clamp(max=waveforms.shape[1])
    margin = torch.arange(MARGIN_SAMPLES, device=waveforms.device)
    before, after = margin - MARGIN_SAMPLES, lengths[:, None] + margin  # [200], [B, 200]
    padded = F.pad(waveforms, (MARGIN_SAMPLES, MARGIN_SAMPLES))
    padded[:, :MARGIN_SAMPLES] = waveforms.gather(1, _mirrored(before.expand(len(waveforms), -1), lengths))
    return padded.scatter_(1, after + MARGIN_SAMPLES, waveforms.gather(1, _mirrored(after, lengths)))


def _mirrored(places: Tensor, lengths: Tensor) -> Tensor:
    """Which sample stands at ``places`` ``[B, n]`` beyond the ends of clips of ``lengths`` ``[B]``."""
    last = (lengths - 1).clamp(min=0)[:, None]
    folded = places.remainder((2 * last).clamp(min=1))
    return torch.minimum(folded, 2 * last - folded)


def _log_energies(waveforms: Tensor, filter_bank: Tensor, kind: SpectrogramKind) -> Tensor:
    """``[B, L]`` (slaney: with its margins) to ``[B, S, M]``."""
    windows = waveforms.unfold(1, WINDOW_SAMPLES, HOP_SAMPLES)  # [B, S, 400]
    if kind == "slaney":
        windows = windows * torch.hann_window(WINDOW_SAMPLES, device=waveforms.device)
        return (_power(windows, kind) @ filter_bank.T + FLOOR).log()
    windows = windows - windows.mean(dim=2, keepdim=True)
    # Pre-emphasis starts anew in every window. What precedes the first sample does not matter: both windows are zero there.
    windows = windows - PRE_EMPHASIS * F.pad(windows[..., :-1], (1, 0))
    shape = torch.hann_window(WINDOW_SAMPLES, periodic=False, device=waveforms.device)
    windows = windows * (shape if kind == "kaldi_hann" else shape.pow(POVEY_POWER))
    return (_power(windows, kind) @ filter_bank.T).clamp(min=FLOOR).log()


def _power(windows: Tensor, kind: SpectrogramKind) -> Tensor:
    """``[B, S, 400]`` to ``[B, S, F]``."""
    spectrum = torch.fft.rfft(windows, n=FFT_SAMPLES[kind])
    return spectrum.real.square() + spectrum.imag.square()  # abs() would take a root only to square it again


class AudioFrontEnd(nn.Module):
    """Ragged waveforms -> ``[B, 1, S, M]``; in training mode with the augmentation that is asked for, drawn per clip.

    Args:
        num_steps: S, steps of 10 ms; longer clips are cut, shorter ones padded, both at the end.
        num_mel_bins: M.
        mean: of the training set's log-mel values.
        std: their deviation; the output is ``(x - mean) / (std_factor std)``. Padding is zero *before* that, so that padded
            steps are louder than silence [source Audio-MAE, MAE-AST, MSM-MAE].
        roll: in training, shift circularly by a random offset [Audio-MAE's intent; its code never rolls].
        gain: in training, multiply by Beta(10, 10) + 0.5 [source Audio-MAE].
        noise: in training, add noise and move by a few steps after normalising [source AST], see :func:`add_noise`.
        masked_steps: in training, up to so many steps in a row become 0 before normalising, see :func:`mask_bands`.
        masked_mel_bins: likewise mel bins.
        spectrogram: see the module.
        std_factor: 2 for AST, Audio-MAE and MAE-AST; 1 for CAV-MAE and MSM-MAE [source].
        batch_statistics: when mean and deviation are those of the batch at hand instead (all its values, padding included,
            biased variance plus 1e-5): ``training`` [source MAE-AST] or ``evaluation`` [source MSM-MAE]. What a clip becomes
            then depends on the other clips of its batch: a louder neighbour makes it quieter, and its embedding changes with
            the batch size and the order. Each rank takes its own batch's. Public code does so; ``never`` is our choice.
    """

    filter_bank: Tensor

    def __init__(
        self,
        num_steps: int,
        num_mel_bins: int,
        mean: float,
        std: float,
        roll: bool,
        gain: bool,
        noise: bool = False,
        masked_steps: int = 0,
        masked_mel_bins: int = 0,
        spectrogram: SpectrogramKind = "kaldi_hann",
        std_factor: float = 2.0,
        batch_statistics: Literal["never", "training", "evaluation"] = "never",
    ) -> None:
        super().__init__()
        self.num_steps = num_steps
        self.mean = mean
        self.std = std
        self.roll = roll
        self.gain = gain
        self.noise = noise
        self.masked_steps = masked_steps
        self.masked_mel_bins = masked_mel_bins
        self.spectrogram: SpectrogramKind = spectrogram
        self.std_factor = std_factor
        self.batch_statistics = batch_statistics
        self.register_buffer("filter_bank", mel_filter_bank(num_mel_bins, spectrogram), persistent=False)

    def forward(
        self,
        waveforms: Tensor,
        lengths: Tensor,
        seeds: Tensor,
        present: Tensor | None = None,
        mixing: Mixing | None = None,
        cuts: Cuts | None = None,
    ) -> Tensor:
        """``waveforms`` ``[B, L]`` zero-padded, ``lengths`` ``[B]``, ``seeds`` ``[B]`` -> ``[B, 1, S, M]`` on this device.

        ``seeds`` are best left on the CPU: reading them from a GPU waits for everything queued there. ``present`` ``[B]`` bool
        tells which clips count for batch statistics; ``None``: all. ``mixing`` mixes the augmented waveforms, ``cuts``
        pastes steps of the log-mel spectrograms before any of them are masked.
        """
        device = self.filter_bank.device
        waveforms, lengths = waveforms.to(device, non_blocking=True), lengths.to(device, non_blocking=True)
        if self.training:
            waveforms = self._augmented(waveforms, lengths, seeds)
        if mixing is not None:
            waveforms = mix_waveforms(waveforms, lengths, mixing)
        if self.spectrogram == "kaldi_hann":
            # As its parents do, though log_mel takes the mean off every window anyway. The padding is zero: it adds nothing.
            waveforms = waveforms - (waveforms.sum(dim=1) / lengths.clamp(min=1))[:, None]
        seen = num_samples_seen(self.num_steps, self.spectrogram)
        spectrograms = log_mel(waveforms[:, :seen], lengths, self.filter_bank, self.spectrogram)
        spectrograms = F.pad(spectrograms, (0, 0, 0, self.num_steps - spectrograms.shape[1]))  # [B, S, M]
        if cuts is not None:
            spectrograms = paste_steps(spectrograms, cuts)
        if self.training and (self.masked_steps or self.masked_mel_bins):
            spectrograms = mask_bands(spectrograms, self.masked_steps, self.masked_mel_bins, seeds)
        spectrograms = self._normalised(spectrograms, present)
        if self.training and self.noise:
            spectrograms = add_noise(spectrograms, seeds)
        return spectrograms.unsqueeze(1)

    def true_steps(self, lengths: Tensor) -> Tensor:
        """How many steps of the spectrograms of waveforms of ``lengths`` samples are not padding."""
        return num_spectrogram_steps(lengths, self.spectrogram).clamp(min=0, max=self.num_steps)

    def _augmented(self, waveforms: Tensor, lengths: Tensor, seeds: Tensor) -> Tensor:
        if self.roll:
            waveforms = roll_waveforms(waveforms, lengths, uniform_draws(seeds, "audio roll", 1)[:, 0])
        if self.gain:
            # The middle one of 19 uniform numbers is Beta(10, 10) distributed.
            draws = uniform_draws(seeds, "audio gain", 19).median(dim=1).values
            waveforms = waveforms * (draws + 0.5).to(waveforms.device, non_blocking=True)[:, None]
        return waveforms

    def _normalised(self, spectrograms: Tensor, present: Tensor | None) -> Tensor:
        if self.batch_statistics == ("training" if self.training else "evaluation"):
            counted = spectrograms if present is None else spectrograms[present]
            if len(counted):
                deviation = (counted.var(correction=0) + BATCH_VARIANCE_EPS).sqrt()
                return (spectrograms - counted.mean()) / (self.std_factor * deviation)
        return (spectrograms - self.mean) / (self.std_factor * self.std)
