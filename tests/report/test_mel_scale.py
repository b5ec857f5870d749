"""The frequency axis against the front ends' own filters."""

from __future__ import annotations

import math

import pytest

from mavil.data.spectrogram import FFT_SAMPLES, mel_filter_bank
from mavil.report.mel_scale import centre_frequencies
from mavil.structs import SAMPLE_RATE


@pytest.mark.parametrize("kind", ["kaldi_hann", "kaldi_povey", "slaney"])
@pytest.mark.parametrize("num_mel_bins", [64, 80])
def test_centres_are_where_the_filters_peak(kind: str, num_mel_bins: int) -> None:
    bank = mel_filter_bank(num_mel_bins, kind)  # type: ignore[arg-type]
    hertz_per_bin = SAMPLE_RATE / FFT_SAMPLES[kind]  # type: ignore[index]
    centres = centre_frequencies(num_mel_bins, kind)
    assert (centres.diff() > 0).all()
    wide = centres > 1500  # lower filters are narrower than the FFT's bins
    assert wide.sum() > 20
    assert ((bank.argmax(dim=1) * hertz_per_bin - centres)[wide].abs() <= hertz_per_bin).all()


def test_known_frequencies() -> None:
    # librosa: 0.75 and 45.2456 mel are 50 Hz and 8 kHz, 15 mel are 1 kHz, and 27 more are 6.4 times as much
    assert centre_frequencies(1, "slaney").item() == pytest.approx(1000 * 6.4 ** ((22.9978 - 15) / 27), abs=0.5)
    # torchaudio.compliance.kaldi: 31.7483 and 2840.0377 mel are 20 Hz and 8 kHz
    assert centre_frequencies(1, "kaldi_hann").item() == pytest.approx(700 * (math.e ** (1435.893 / 1127) - 1), abs=0.5)
    with pytest.raises(ValueError, match="'bark' is no kind of spectrogram"):
        centre_frequencies(80, "bark")
