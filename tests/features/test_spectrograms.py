from __future__ import annotations

import pytest
import torch

from mavil.data.spectrogram import num_spectrogram_steps
from tests.features.conftest import make_features, noise

LENGTHS = torch.tensor([16_000, 9_777, 4_900])


@pytest.mark.parametrize("grid", ["patches", "mel_first", "frames"])
def test_pieces_are_those_of_the_whole(grid: str) -> None:
    """Also at both edges of a piece, where centred windows look across, and where a clip ends inside a piece."""
    spectrograms = make_features(grid).spectrograms
    waveforms = noise(3, 16_000) * (torch.arange(16_000) < LENGTHS[:, None])
    rows = torch.arange(3)
    num_steps = int(num_spectrogram_steps(LENGTHS, spectrograms.timing.spectrogram).max())
    whole = spectrograms(waveforms, LENGTHS, rows, 0, num_steps)
    for start in range(0, num_steps, 13):
        piece = spectrograms(waveforms, LENGTHS, rows, start, min(start + 13, num_steps))
        torch.testing.assert_close(
            piece, whole[:, start : start + 13], atol=2e-4, rtol=0
        )  # float32 noise in quiet bins
    assert (whole[2, int(num_spectrogram_steps(LENGTHS, spectrograms.timing.spectrogram)[2]) :] == 0).all()


def test_statistics_are_those_of_all_steps_that_exist() -> None:
    spectrograms = make_features("mel_first").spectrograms
    waveforms = noise(3, 16_000) * (torch.arange(16_000) < LENGTHS[:, None])
    whole = spectrograms(waveforms, LENGTHS, torch.arange(3), 0, 101)
    real = torch.cat(
        [whole[row, :steps] for row, steps in enumerate(num_spectrogram_steps(LENGTHS, "slaney").tolist())]
    )
    mean, std = spectrograms.statistics(waveforms, LENGTHS, steps_at_once=17)
    assert mean == pytest.approx(real.mean().item(), abs=1e-4)
    assert std == pytest.approx(real.std(correction=0).item(), abs=1e-4)
