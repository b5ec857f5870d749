"""Waveforms -> normalised log-mel spectrograms, batched on the device, compatible with Kaldi.

One clip of a ragged batch comes out as ``torchaudio.compliance.kaldi.fbank`` gives it for that clip alone (htk_compat, no
energy, "hanning", no dither), which is what Audio-MAE, CAV-MAE and MAViL were trained on [source].
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mavil.seeds import uniform_draws
from mavil.structs import SAMPLE_RATE

WINDOW_SAMPLES = 400
"""25 ms: waveform samples under one spectrogram step."""
HOP_SAMPLES = 160
"""10 ms: waveform samples from one spectrogram step to the next."""
FFT_SAMPLES = 512
PRE_EMPHASIS = 0.97
LOW_HZ, HIGH_HZ = 20.0, SAMPLE_RATE / 2
FLOOR = torch.finfo(torch.float32).eps
"""Smallest mel energy before the logarithm: silence is log(FLOOR) = -15.94."""
CLIPS_AT_ONCE = 4
"""On a CPU: a whole batch of windows does not fit the cache, and every pass over them would fetch them from memory again."""


def num_spectrogram_steps(lengths: Tensor) -> Tensor:
    """How many whole windows fit into waveforms of ``lengths`` samples: 998 for 10 s, 0 below 25 ms."""
    return ((lengths - WINDOW_SAMPLES) // HOP_SAMPLES + 1).clamp(min=0)


def mel_filter_bank(num_mel_bins: int) -> Tensor:
    """``[M, 257]`` float32 weights of the FFT bins in each mel bin: triangles on the HTK mel scale, 20 Hz to 8 kHz.

    As in Kaldi the triangles are not normalised, and the bin at the Nyquist frequency counts for nothing.
    """
    low, high = _mel_scale(torch.tensor([LOW_HZ, HIGH_HZ], dtype=torch.float64)).tolist()
    corners = torch.linspace(low, high, num_mel_bins + 2, dtype=torch.float64)
    bins = _mel_scale(torch.arange(FFT_SAMPLES // 2, dtype=torch.float64) * (SAMPLE_RATE / FFT_SAMPLES))
    left, centre, right = (corners[i : num_mel_bins + i, None] for i in range(3))
    weights = torch.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)).clamp(min=0)
    return F.pad(weights, (0, 1)).float()


def _mel_scale(hertz: Tensor) -> Tensor:
    return 1127.0 * torch.log1p(hertz / 700.0)


def log_mel(waveforms: Tensor, lengths: Tensor, filter_bank: Tensor) -> Tensor:
    """Natural logarithm of the mel energies; zero in the steps beyond a clip's own end.

    Args:
        waveforms: ``[B, L]`` float32, 16 kHz; what lies beyond a clip's length is not looked at.
        lengths: ``[B]`` true lengths in samples, same device.
        filter_bank: ``[M, 257]`` from :func:`mel_filter_bank`, same device.

    Returns:
        ``[B, S, M]`` float32, ``S`` the number of whole windows in ``L`` samples (at least 1).
    """
    waveforms = F.pad(waveforms, (0, max(0, WINDOW_SAMPLES - waveforms.shape[1])))
    at_once = CLIPS_AT_ONCE if waveforms.device.type == "cpu" else len(waveforms)
    energies = torch.cat([_log_energies(clips, filter_bank) for clips in waveforms.split(max(1, at_once))])
    is_real = torch.arange(energies.shape[1], device=lengths.device) < num_spectrogram_steps(lengths)[:, None]
    return energies * is_real[..., None]


def _log_energies(waveforms: Tensor, filter_bank: Tensor) -> Tensor:
    """``[B, L]`` to ``[B, S, M]``."""
    windows = waveforms.unfold(1, WINDOW_SAMPLES, HOP_SAMPLES)  # [B, S, 400]
    windows = windows - windows.mean(dim=2, keepdim=True)
    # Pre-emphasis starts anew in every window. What precedes the first sample does not matter: the Hann window is zero there.
    windows = windows - PRE_EMPHASIS * F.pad(windows[..., :-1], (1, 0))
    windows = windows * torch.hann_window(WINDOW_SAMPLES, periodic=False, device=waveforms.device)
    spectrum = torch.fft.rfft(windows, n=FFT_SAMPLES)  # [B, S, 257]
    power = spectrum.real.square() + spectrum.imag.square()  # abs() would take a root only to square it again
    return (power @ filter_bank.T).clamp(min=FLOOR).log()


class AudioFrontEnd(nn.Module):
    """Ragged waveforms -> ``[B, 1, S, M]``; in training mode with a random roll and gain per clip.

    Args:
        num_steps: S, steps of 10 ms; longer clips are cut, shorter ones padded, both at the end.
        num_mel_bins: M.
        mean: of the training set's log-mel values.
        std: their deviation; the output is ``(x - mean) / (2 std)``. Padding is zero *before* that, so that padded steps
            are louder than silence [source Audio-MAE].
        roll: in training, shift circularly by a random offset [Audio-MAE's intent; its code never rolls].
        gain: in training, multiply by Beta(10, 10) + 0.5 [source Audio-MAE].
    """

    filter_bank: Tensor

    def __init__(self, num_steps: int, num_mel_bins: int, mean: float, std: float, roll: bool, gain: bool) -> None:
        super().__init__()
        self.num_steps = num_steps
        self.mean = mean
        self.std = std
        self.roll = roll
        self.gain = gain
        self.register_buffer("filter_bank", mel_filter_bank(num_mel_bins), persistent=False)

    def forward(self, waveforms: Tensor, lengths: Tensor, seeds: Tensor) -> Tensor:
        """``waveforms`` ``[B, L]`` zero-padded, ``lengths`` ``[B]``, ``seeds`` ``[B]`` -> ``[B, 1, S, M]`` on this device.

        ``seeds`` are best left on the CPU: reading them from a GPU waits for everything queued there.
        """
        device = self.filter_bank.device
        waveforms, lengths = waveforms.to(device, non_blocking=True), lengths.to(device, non_blocking=True)
        if self.training and self.roll:
            waveforms = roll_waveforms(waveforms, lengths, uniform_draws(seeds, "audio roll", 1)[:, 0])
        if self.training and self.gain:
            # The middle one of 19 uniform numbers is Beta(10, 10) distributed.
            draws = uniform_draws(seeds, "audio gain", 19).median(dim=1).values
            waveforms = waveforms * (draws + 0.5).to(device, non_blocking=True)[:, None]
        # As all parents do, though log_mel takes the mean off every window anyway. The padding is zero: it adds nothing.
        waveforms = waveforms - (waveforms.sum(dim=1) / lengths.clamp(min=1))[:, None]
        needed = (self.num_steps - 1) * HOP_SAMPLES + WINDOW_SAMPLES
        spectrograms = log_mel(waveforms[:, :needed], lengths, self.filter_bank)
        spectrograms = F.pad(spectrograms, (0, 0, 0, self.num_steps - spectrograms.shape[1]))  # [B, S, M]
        return ((spectrograms - self.mean) / (2 * self.std)).unsqueeze(1)


def roll_waveforms(waveforms: Tensor, lengths: Tensor, draws: Tensor) -> Tensor:
    """Shift each clip circularly, within its own length, to the right by ``draws * length`` samples; padding stays.

    ``waveforms`` ``[B, L]``, ``lengths`` ``[B]`` on the same device, ``draws`` ``[B]`` in [0, 1) on any device.
    """
    # float64: with float32 a draw close to 1 could round up to a whole turn, and long clips would reach few offsets.
    offsets = (draws.to(lengths.device, non_blocking=True).double() * lengths).long()[:, None]
    places = torch.arange(waveforms.shape[1], device=waveforms.device)  # [L]
    sources = (places - offsets) % lengths.clamp(min=1)[:, None]  # [B, L]
    return waveforms.gather(1, torch.where(places < lengths[:, None], sources, places))
