"""Masks and noise of training: torchaudio's masks for the same random numbers, AST's noise, and nothing else is moved."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torchaudio

from mavil.data.augmentation import add_noise, mask_bands, roll_waveforms
from mavil.data.spectrogram import AudioFrontEnd
from mavil.seeds import uniform_draws


def test_roll_is_circular_within_the_true_length() -> None:
    waveforms = torch.zeros(3, 10)
    waveforms[0, :10] = torch.arange(10)
    waveforms[1, :4] = torch.arange(4)
    rolled = roll_waveforms(waveforms, torch.tensor([10, 4, 0]), torch.tensor([0.35, 0.9999, 0.5]))
    assert rolled[0].tolist() == waveforms[0].roll(3).tolist()
    assert rolled[1].tolist() == [1, 2, 3, 0, 0, 0, 0, 0, 0, 0]
    assert rolled[2].eq(0).all()


def test_masks_are_torchaudios(monkeypatch: pytest.MonkeyPatch) -> None:
    spectrograms, seeds = torch.randn(30, 40, 16), torch.arange(30)
    out = mask_bands(spectrograms, masked_steps=25, masked_mel_bins=9, seeds=seeds)
    numbers: Iterator[torch.Tensor] = iter(uniform_draws(seeds, "spectrogram masks", 4).flatten().split(1))
    monkeypatch.setattr(torch, "rand", lambda *_sizes, **_options: next(numbers))
    mask_steps, mask_mel_bins = torchaudio.transforms.FrequencyMasking(25), torchaudio.transforms.TimeMasking(9)
    for row, spectrogram in zip(out, spectrograms, strict=True):
        # [1, steps, mel bins]: torchaudio's frequency is the second last axis.
        assert torch.equal(row, mask_mel_bins(mask_steps(spectrogram[None]))[0])


def test_masks_wider_than_the_spectrogram_leave_it_possible() -> None:
    hidden = mask_bands(torch.ones(500, 8, 4), 100, 0, torch.arange(500)).eq(0).all(2).sum(1)
    assert set(hidden.tolist()) == set(range(8))
    assert torch.equal(mask_bands(torch.ones(3, 8, 4), 0, 0, torch.arange(3)), torch.ones(3, 8, 4))


def test_noise_is_uniform_and_steps_move_in_a_circle() -> None:
    steps = 40
    ramp = torch.arange(steps).float()[None, :, None].expand(400, -1, 6)
    noise = add_noise(torch.zeros(400, steps, 6), torch.arange(400)).flatten(1)
    assert noise.min() >= 0
    assert noise.max() < 0.1
    # Uniform: the mean is half of the highest; that differs by clip, again uniformly.
    torch.testing.assert_close(noise.mean(1) / noise.max(1).values, torch.full((400,), 0.5), atol=0.08, rtol=0)
    assert noise.max(1).values.mean().item() == pytest.approx(0.05, abs=0.004)
    assert noise.max(1).values.min() < 0.005 < 0.095 < noise.max(1).values.max()
    moved = add_noise(ramp, torch.arange(400)).floor()[..., 0].long()
    moves = (-moved[:, 0]) % steps
    assert set(torch.where(moves > 20, moves - steps, moves).tolist()) == set(range(-10, 10))
    assert torch.equal(moved, torch.stack([torch.arange(steps).roll(int(move)) for move in moves]))


def test_each_augmentation_draws_for_itself() -> None:
    """Masks change what they hide and nothing else; noise comes last, and all of it only in training."""
    clips, lengths, seeds = torch.randn(4, 6000), torch.full((4,), 6000), torch.arange(4)
    plain = AudioFrontEnd(36, 32, -4.0, 2.0, roll=True, gain=True)
    masking = AudioFrontEnd(36, 32, -4.0, 2.0, roll=True, gain=True, masked_steps=20, masked_mel_bins=10)
    noisy = AudioFrontEnd(36, 32, -4.0, 2.0, roll=True, gain=True, noise=True)
    before, after = plain.train()(clips, lengths, seeds), masking.train()(clips, lengths, seeds)
    is_hidden = after != before
    assert is_hidden.any()
    assert not is_hidden.all()
    assert after[is_hidden].eq(1.0).all()  # 0 before (x + 4) / 4
    assert torch.equal(noisy.train()(clips, lengths, seeds)[:, 0], add_noise(before[:, 0], seeds))
    for front_end in (masking, noisy):
        assert torch.equal(front_end.eval()(clips, lengths, seeds), plain.eval()(clips, lengths, seeds))
