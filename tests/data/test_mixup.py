"""Mixing: who with whom and in which shares, what comes of sound, pixels and targets, and who is left alone."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from mavil.data.augmentation import roll_waveforms
from mavil.data.frames import FrameFrontEnd
from mavil.data.loading.batches import stack_samples
from mavil.data.mixup import Mixing, draw_mixing, mix_rows, mix_waveforms
from mavil.data.prepare import Prepare
from mavil.data.spectrogram import AudioFrontEnd
from mavil.seeds import uniform_draws
from mavil.structs import Batch, Inputs, Sample


def drawn(mixing: Mixing | None) -> Mixing:
    assert mixing is not None
    return mixing


@pytest.mark.parametrize("beta", [0.4, 1.0, 10.0])
def test_shares_are_beta_distributed(beta: float) -> None:
    shares = drawn(draw_mixing(torch.arange(4000), 1.0, beta)).shares
    assert shares.mean().item() == pytest.approx(0.5, abs=0.02)
    assert shares.var().item() == pytest.approx(1 / (4 * (2 * beta + 1)), rel=0.06)
    assert 0 <= shares.min() < shares.max() <= 1


def test_partners_are_any_other_clip_and_some_clips_stay_alone() -> None:
    pairs = set()
    for first in range(0, 800, 4):
        mixing = drawn(draw_mixing(torch.arange(first, first + 4), 1.0, 10.0))
        assert mixing.is_mixed.all()
        pairs |= set(enumerate(mixing.partners.tolist()))
    assert pairs == {(row, other) for row in range(4) for other in range(4) if row != other}
    mixing = drawn(draw_mixing(torch.arange(2000), 0.3, 10.0))
    assert mixing.is_mixed.float().mean().item() == pytest.approx(0.3, abs=0.03)
    assert mixing.shares[~mixing.is_mixed].eq(1).all()
    assert draw_mixing(torch.arange(2000), 0.0, 10.0) is None
    assert draw_mixing(torch.tensor([5]), 1.0, 10.0) is None


def test_only_clips_that_may_are_mixed_and_mixed_in() -> None:
    may_mix = torch.arange(60) % 3 > 0
    mixing = drawn(draw_mixing(torch.arange(60), 1.0, 10.0, may_mix))
    assert torch.equal(mixing.is_mixed, may_mix)
    assert may_mix[mixing.partners[may_mix]].all()
    assert draw_mixing(torch.arange(60), 1.0, 10.0, torch.arange(60) == 7) is None


def test_waveforms_are_centred_mixed_and_centred_again() -> None:
    lengths = torch.tensor([700, 400, 900])
    waveforms = (torch.randn(3, 900) + 0.5).masked_fill(torch.arange(900) >= lengths[:, None], 0.0)
    mixing = Mixing(torch.tensor([1, 2, 2]), torch.tensor([0.3, 0.6, 1.0]))
    out = mix_waveforms(waveforms, lengths, mixing)
    for row in range(2):
        own, partner = (waveforms[r, : lengths[r]].double() for r in (row, row + 1))
        own, partner = own - own.mean(), partner - partner.mean()
        partner = torch.nn.functional.pad(partner, (0, 900))[: len(own)]
        mixed = mixing.shares[row].double() * own + (1 - mixing.shares[row].double()) * partner
        torch.testing.assert_close(out[row, : len(own)].double(), mixed - mixed.mean(), atol=1e-6, rtol=0)
        assert out[row, len(own) :].eq(0).all()
    assert torch.equal(out[2], waveforms[2])


def test_what_is_mixed_has_been_rolled_and_amplified_each_with_its_own_draws() -> None:
    lengths, seeds = torch.tensor([4000, 3000]), torch.tensor([3, 4])
    waveforms = torch.randn(2, 4000).masked_fill(torch.arange(4000) >= lengths[:, None], 0.0)
    mixing = Mixing(torch.tensor([1, 0]), torch.tensor([0.4, 0.6]))
    front_end = AudioFrontEnd(24, 32, -4.0, 4.0, roll=True, gain=True)
    out = front_end.train()(waveforms, lengths, seeds, mixing=mixing)
    gains = uniform_draws(seeds, "audio gain", 19).median(dim=1).values + 0.5
    louder = roll_waveforms(waveforms, lengths, uniform_draws(seeds, "audio roll", 1)[:, 0]) * gains[:, None]
    expected = front_end.eval()(mix_waveforms(louder, lengths, mixing), lengths, seeds)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)


def test_rows_are_mixed_in_their_shares() -> None:
    targets = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0], [0.0, 0.0, 0.3]])
    mixed = mix_rows(targets, Mixing(torch.tensor([1, 0, 2]), torch.tensor([0.75, 0.5, 1.0])))
    torch.testing.assert_close(mixed, torch.tensor([[0.75, 0.25, 1.0], [0.5, 0.5, 1.0], [0.0, 0.0, 0.3]]))


SEEDS = (11, 12, 13, 14)


def samples() -> list[Sample]:
    noise = torch.Generator().manual_seed(0)
    return [
        Sample(
            key=str(seed),
            seed=seed,
            waveform=torch.randn(3000 + 400 * (seed % 3), generator=noise),
            frames=torch.randint(0, 256, (2, 3, 20 + seed, 24), dtype=torch.uint8, generator=noise),
        )
        for seed in SEEDS
    ]


def batch_of(clips: list[Sample]) -> Batch:
    batch = stack_samples(clips, None)
    batch.targets = torch.eye(len(clips))
    return batch


def prepare(training: bool, probability: float) -> Prepare:
    audio = AudioFrontEnd(24, 32, -4.0, 4.0, roll=True, gain=True)
    video = FrameFrontEnd(16, (0.4, 0.5, 0.5), (0.2, 0.2, 0.3), crop_scale=(0.3, 1.0), flip=0.5)
    return Prepare(audio, video, training, mixup_probability=probability, mixup_beta=1.0)


def values(inputs: Inputs) -> list[Tensor]:
    assert inputs.targets is not None
    return [inputs.of("audio"), inputs.of("video"), inputs.targets]


def test_sound_frames_and_targets_share_partner_and_shares() -> None:
    batch = batch_of(samples())
    mixing = drawn(draw_mixing(batch.seeds, 0.7, 1.0))
    assert 0 < mixing.is_mixed.sum() < len(SEEDS)  # or these seeds test nothing
    plain, mixed = prepare(True, 0.0)(batch), prepare(True, 0.7)(batch)
    for one, other in zip(values(plain), values(mixed), strict=True):
        differs = (one != other).flatten(1).any(1)
        assert torch.equal(differs, mixing.is_mixed)
    torch.testing.assert_close(mixed.targets, mix_rows(torch.eye(len(SEEDS)), mixing))
    # Normalising is linear and shares add up to one: mixed pixels are mixed normalised pixels.
    torch.testing.assert_close(mixed.of("video"), mix_rows(plain.of("video"), mixing), atol=1e-5, rtol=0)
    for row in mixing.is_mixed.nonzero()[:, 0]:
        loudest = torch.maximum(plain.of("audio")[row], plain.of("audio")[mixing.partners[row]])
        assert mixed.of("audio")[row].mean() < loudest.mean()


def test_evaluation_and_a_batch_of_one_are_not_mixed() -> None:
    batch, alone = batch_of(samples()), batch_of(samples()[:1])
    for given, training in ((batch, False), (alone, True)):
        plain, mixed = prepare(training, 0.0)(given), prepare(training, 1.0)(given)
        assert all(torch.equal(one, other) for one, other in zip(values(plain), values(mixed), strict=True))


def test_a_clip_that_lacks_a_modality_is_left_alone() -> None:
    clips = samples()
    clips[1] = dataclasses.replace(clips[1], frames=None)
    plain, mixed = prepare(True, 0.0)(batch_of(clips)), prepare(True, 1.0)(batch_of(clips))
    for one, other in zip(values(plain), values(mixed), strict=True):
        assert (one != other).flatten(1).any(1).tolist() == [True, False, True, True]
    assert mixed.targets is not None
    assert mixed.targets[:, 1].tolist() == [0, 1, 0, 0]
    sound_only = Prepare(prepare(True, 0.0).audio, None, True, mixup_probability=1.0)(batch_of(clips))
    assert sound_only.targets is not None
    assert (sound_only.targets.diagonal() < 1).all()
