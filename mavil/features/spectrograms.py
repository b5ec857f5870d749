"""Spectrograms of long waveforms piece by piece: every step as if the whole had been computed at once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mavil.data.spectrogram import (
    BATCH_VARIANCE_EPS,
    HOP_SAMPLES,
    WINDOW_SAMPLES,
    AudioFrontEnd,
    num_spectrogram_steps,
)
from mavil.features.timing import Timing

MARGIN_STEPS = 2
"""Steps of a centred front end that see beyond their piece's edge: half a window is 1.25 steps."""


class PieceByPiece(nn.Module):
    """Log-mel values of any steps of a ragged batch.

    Args:
        front_end: makes log-mel values as they are: mean 0, deviation 1, statistics of nobody else.
        timing: which samples a step looks at.
    """

    def __init__(self, front_end: AudioFrontEnd, timing: Timing) -> None:
        super().__init__()
        self.front_end = front_end
        self.timing = timing

    def train(self, mode: bool = True) -> PieceByPiece:
        """Stays in evaluation mode: whoever fine-tunes on features wants the sound as it is, not rolled or louder."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, waveforms: Tensor, lengths: Tensor, rows: Tensor, start: int, stop: int) -> Tensor:
        """Steps ``start`` to ``stop`` of some clips: ``[b, stop - start, M]`` float32, zero beyond each clip's own end.

        Args:
            waveforms: ``[B, L]``, zero beyond the clips' ends; anywhere.
            lengths: ``[B]`` true lengths in samples, on the CPU.
            rows: ``[b]`` which clips, on the CPU.
            start, stop: steps.
        """
        margin = min(start, MARGIN_STEPS) if self.timing.is_centred else 0
        first = (start - margin) * HOP_SAMPLES
        # A centred step sees half a window to the right; the whole one that the others see is enough.
        end = (stop - 1) * HOP_SAMPLES + WINDOW_SAMPLES
        piece = waveforms[:, first:end][rows.to(waveforms.device)].float()
        remaining = (lengths[rows] - first).clamp(0, piece.shape[1])
        self.front_end.num_steps = stop - start + margin
        seeds = torch.zeros(len(piece), dtype=torch.int64)  # nothing is drawn outside training
        with torch.autocast(self.front_end.filter_bank.device.type, enabled=False):
            return self.front_end(piece, remaining, seeds)[:, 0, margin:]

    def statistics(self, waveforms: Tensor, lengths: Tensor, steps_at_once: int) -> tuple[float, float]:
        """Mean and deviation (biased, never 0) of all log-mel values of a ragged batch, without padding; arguments as above."""
        count, total, squares = 0, 0.0, 0.0
        num_steps = num_spectrogram_steps(lengths, self.front_end.spectrogram)
        for start in range(0, int(num_steps.max()), steps_at_once):
            rows = (num_steps > start).nonzero().flatten()
            values = self(waveforms, lengths, rows, start, start + steps_at_once).double()
            # Steps beyond a clip's end are zero, and add nothing to either sum.
            count += int((num_steps - start).clamp(0, steps_at_once).sum()) * values.shape[2]
            total += float(values.sum())
            squares += float(values.square().sum())
        mean = total / count
        return mean, (max(squares / count - mean**2, 0.0) + BATCH_VARIANCE_EPS) ** 0.5
