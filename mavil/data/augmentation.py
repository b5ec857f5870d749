"""What training does to sound, clip by clip: waveforms are rolled, spectrograms lose bands and get noise.

Every random number belongs to a clip's seed and a purpose of its own, so that one augmentation does not move another's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mavil.seeds import uniform_draws

LOUDEST_NOISE = 0.1
"""In units of the normalised spectrogram [source AST]."""
FARTHEST_STEPS = 10
"""Moves go from so many steps back to one less forward: the upper end of AST's draw is not reached [source AST]."""


def roll_waveforms(waveforms: Tensor, lengths: Tensor, draws: Tensor) -> Tensor:
    """Shift each clip circularly, within its own length, to the right by ``draws * length`` samples; padding stays.

    ``waveforms`` ``[B, L]``, ``lengths`` ``[B]`` on the same device, ``draws`` ``[B]`` in [0, 1) on any device.
    """
    # float64: with float32 a draw close to 1 could round up to a whole turn, and long clips would reach few offsets.
    offsets = (draws.to(lengths.device, non_blocking=True).double() * lengths).long()[:, None]
    places = torch.arange(waveforms.shape[1], device=waveforms.device)  # [L]
    sources = (places - offsets) % lengths.clamp(min=1)[:, None]  # [B, L]
    return waveforms.gather(1, torch.where(places < lengths[:, None], sources, places))


def mask_bands(spectrograms: Tensor, masked_steps: int, masked_mel_bins: int, seeds: Tensor) -> Tensor:
    """SpecAugment: one run of steps and one run of mel bins of each clip become 0 [source AST, Audio-MAE].

    The width of a run is uniform in [0, ``masked_steps``) and its place uniform, as torchaudio's TimeMasking and
    FrequencyMasking draw them; on a log-mel 0 is loud, as its padding is.

    Args:
        spectrograms: ``[B, S, M]``, before normalising.
        masked_steps: 0 masks none; no more than S count.
        masked_mel_bins: likewise.
        seeds: ``[B]``, on any device.
    """
    draws = uniform_draws(seeds, "spectrogram masks", 4).to(spectrograms.device, non_blocking=True)
    is_hidden = _runs(draws[:, :2], masked_steps, spectrograms.shape[1])[:, :, None]
    is_hidden = is_hidden | _runs(draws[:, 2:], masked_mel_bins, spectrograms.shape[2])[:, None, :]
    return spectrograms.masked_fill(is_hidden, 0.0)


def _runs(draws: Tensor, longest: int, size: int) -> Tensor:
    """``[B, 2]`` uniform numbers to ``[B, size]`` bool: True in a run shorter than ``longest``."""
    widths = draws[:, :1] * min(longest, size)
    first = (draws[:, 1:] * (size - widths)).long()
    places = torch.arange(size, device=draws.device)
    return (places >= first) & (places < first + widths.long())


def add_noise(spectrograms: Tensor, seeds: Tensor) -> Tensor:
    """Each value plus uniform noise, each clip's of another loudness, and all moved in time, what leaves comes in again.

    The noise is U(0, 1) per value times U(0, 1) per clip times 0.1, the move -10 to 9 steps [source AST].

    Args:
        spectrograms: ``[B, S, M]``, normalised.
        seeds: ``[B]``, on any device.
    """
    num_clips, num_steps, num_mel_bins = spectrograms.shape
    draws = uniform_draws(seeds, "audio noise", 2 + num_steps * num_mel_bins)
    draws = draws.to(spectrograms.device, non_blocking=True)
    loudness, moves = LOUDEST_NOISE * draws[:, 0], (draws[:, 1] * 2 * FARTHEST_STEPS).long() - FARTHEST_STEPS
    noisy = spectrograms + draws[:, 2:].view_as(spectrograms) * loudness[:, None, None]
    steps = torch.arange(num_steps, device=draws.device)
    sources = (steps - moves[:, None]) % num_steps  # [B, S]
    return noisy.gather(1, sources[:, :, None].expand(num_clips, num_steps, num_mel_bins))
