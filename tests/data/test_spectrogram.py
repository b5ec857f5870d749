"""The three kinds of spectrogram against torchaudio, numpy and torch's BatchNorm, clip by clip in ragged batches."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torchaudio
from torch import Tensor, nn

from mavil.data.spectrogram import (
    FLOOR,
    AudioFrontEnd,
    SpectrogramKind,
    log_mel,
    mel_filter_bank,
    num_spectrogram_steps,
    reflect_at_ends,
)

KINDS: tuple[SpectrogramKind, ...] = ("kaldi_hann", "kaldi_povey", "slaney")
LENGTHS = [16000, 8321, 560, 400, 399, 201, 200, 30, 1, 0]


def ragged(lengths: list[int] = LENGTHS, beyond: float = 0.0) -> tuple[Tensor, Tensor]:
    """Noise with an offset, from loud to quiet; ``beyond`` stands behind each clip's end."""
    counts = torch.tensor(lengths)
    waveforms = (torch.randn(len(lengths), max(lengths)) + 0.3) * torch.logspace(0, -3, len(lengths))[:, None]
    return waveforms.masked_fill(torch.arange(max(lengths)) >= counts[:, None], beyond), counts


def plain_kaldi(clip: Tensor, num_mel_bins: int) -> Tensor:
    """MAE-AST's call: every other option is Kaldi's default, the Povey window among them."""
    return torchaudio.compliance.kaldi.fbank(
        clip[None], num_mel_bins=num_mel_bins, use_energy=False, sample_frequency=16000
    )


def plain_slaney(clip: Tensor, num_mel_bins: int) -> Tensor:
    """float64, with numpy's reflection and librosa's filters as torchaudio has them."""
    samples = np.pad(clip.double().numpy(), 200, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(samples, 400)[::160]
    power = np.abs(np.fft.rfft(windows * np.hanning(401)[:400])) ** 2
    bank = torchaudio.functional.melscale_fbanks(
        201, 50.0, 8000.0, num_mel_bins, 16000, norm="slaney", mel_scale="slaney"
    )
    return torch.from_numpy(np.log(power @ bank.double().numpy() + FLOOR)).float()


def front_end(num_steps: int = 60, kind: SpectrogramKind = "kaldi_hann", **options: object) -> AudioFrontEnd:
    """Without normalising, unless asked: mean 0, deviation 1/2."""
    settings = {"mean": 0.0, "std": 0.5, "roll": False, "gain": False, "spectrogram": kind, **options}
    return AudioFrontEnd(num_steps, 40, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("num_mel_bins", [40, 80, 128])
def test_slaneys_filters_are_librosas(num_mel_bins: int) -> None:
    bank = torchaudio.functional.melscale_fbanks(201, 50.0, 8000.0, num_mel_bins, 16000, "slaney", "slaney")
    torch.testing.assert_close(mel_filter_bank(num_mel_bins, "slaney"), bank.T, atol=1e-6, rtol=0)


def test_povey_windows_are_kaldis_default() -> None:
    waveforms, lengths = ragged()
    out = log_mel(waveforms, lengths, mel_filter_bank(128, "kaldi_povey"), "kaldi_povey")
    for row, length in zip(range(4), LENGTHS, strict=False):
        expected = plain_kaldi(waveforms[row, :length], 128)
        assert len(expected) == num_spectrogram_steps(lengths, "kaldi_povey")[row]
        torch.testing.assert_close(out[row, : len(expected)], expected, atol=1e-3, rtol=0)
        assert out[row, len(expected) :].eq(0).all()
    hann = log_mel(waveforms, lengths, mel_filter_bank(128), "kaldi_hann")
    assert (out[0] - hann[0]).abs().max() > 0.5
    assert out[4:].eq(0).all()


def test_centred_windows_reflect_each_clip_at_its_own_end() -> None:
    waveforms, lengths = ragged(beyond=9.0)
    out = log_mel(waveforms, lengths, mel_filter_bank(80, "slaney"), "slaney")
    for row, length in enumerate(LENGTHS):
        steps = int(num_spectrogram_steps(lengths, "slaney")[row])
        if length:
            expected = plain_slaney(waveforms[row, :length], 80)
            assert len(expected) == steps == length // 160 + 1
            torch.testing.assert_close(out[row, :steps], expected, atol=2e-3, rtol=0)
        assert out[row, steps:].eq(0).all()
    assert num_spectrogram_steps(torch.tensor([160000, 1, 0]), "slaney").tolist() == [1001, 1, 0]


def test_reflection_goes_to_and_fro_in_short_clips() -> None:
    waveforms, lengths = ragged([401, 201, 200, 2, 1], beyond=9.0)
    for row, length in enumerate(lengths.tolist()):
        expected = np.pad(waveforms[row, :length].numpy(), 200, mode="reflect")
        assert np.array_equal(reflect_at_ends(waveforms, lengths)[row, : length + 400].numpy(), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_steps", [20, 101, 130])
def test_longer_clips_are_cut_and_shorter_padded_whatever_the_batch(kind: SpectrogramKind, num_steps: int) -> None:
    """Cutting looks at no reflection that the whole clip does not have."""
    waveforms, lengths = ragged()
    prepare = front_end(num_steps, kind, mean=-4.0, std=2.0).eval()
    whole = prepare(waveforms, lengths, torch.arange(len(lengths)))[:, 0]
    steps = log_mel(waveforms, lengths, mel_filter_bank(40, kind), kind)[:, :num_steps]
    expected = nn.functional.pad(steps, (0, 0, 0, num_steps - steps.shape[1]))
    torch.testing.assert_close(whole, (expected + 4) / 4, atol=2e-3, rtol=0)
    for row, length in enumerate(LENGTHS):
        alone = prepare(waveforms[row : row + 1, :length], lengths[row : row + 1], torch.zeros(1, dtype=torch.int64))
        torch.testing.assert_close(alone[0, 0], whole[row], atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_silence_is_the_floor_in_every_kind(kind: SpectrogramKind) -> None:
    out = log_mel(torch.zeros(1, 4000), torch.tensor([4000]), mel_filter_bank(64, kind), kind)
    torch.testing.assert_close(out, torch.full_like(out, math.log(FLOOR)))


def test_statistics_of_the_batch_are_batch_norms() -> None:
    waveforms, lengths = ragged()
    seeds = torch.arange(len(lengths))
    plain = front_end(kind="kaldi_povey").eval()(waveforms, lengths, seeds)
    takes = front_end(kind="kaldi_povey", mean=-3.0, std=4.0, batch_statistics="training")
    expected = 0.5 * nn.BatchNorm2d(1, affine=False).train()(plain)
    torch.testing.assert_close(takes.train()(waveforms, lengths, seeds), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(takes.eval()(waveforms, lengths, seeds), (plain + 3) / 8)
    reverse = front_end(kind="kaldi_povey", mean=-3.0, std=4.0, batch_statistics="evaluation", std_factor=1.0)
    torch.testing.assert_close(reverse.eval()(waveforms, lengths, seeds), 2 * expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(reverse.train()(waveforms, lengths, seeds), (plain + 3) / 4)


def test_absent_clips_do_not_count_for_the_statistics_of_the_batch() -> None:
    waveforms, lengths = ragged([4000, 3000, 0, 0])
    prepare = front_end(batch_statistics="training").train()
    present = torch.tensor([True, True, False, False])
    some = prepare(waveforms, lengths, torch.arange(4), present)
    alone = prepare(waveforms[:2], lengths[:2], torch.arange(2))
    torch.testing.assert_close(some[:2], alone)
    nobody = prepare(waveforms, lengths, torch.arange(4), torch.zeros(4, dtype=torch.bool))
    torch.testing.assert_close(nobody, front_end().eval()(waveforms, lengths, torch.arange(4)))


def test_a_silent_batch_has_statistics_too() -> None:
    silent = front_end(10, batch_statistics="training").train()(
        torch.zeros(2, 4000), torch.tensor([4000, 4000]), torch.arange(2)
    )
    assert silent.abs().max() < 1e-3  # rounding, over the root of 1e-5
