"""Cutting: which steps and pixels are another clip's, what targets become, who is left alone, who is mixed instead."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from mavil.data.cutmix import Cuts, draw_cuts
from mavil.data.frames import FrameFrontEnd
from mavil.data.loading.batches import stack_samples
from mavil.data.mixup import draw_mixing
from mavil.data.prepare import Prepare
from mavil.data.spectrogram import AudioFrontEnd
from mavil.structs import Batch, Inputs, Sample

SEEDS = tuple(range(20, 30))
SIDE = 16


def drawn(cuts: Cuts | None) -> Cuts:
    assert cuts is not None
    return cuts


def samples() -> list[Sample]:
    """Of 15 to 35 spectrogram steps, of which the front end below takes 30."""
    noise = torch.Generator().manual_seed(0)
    return [
        Sample(
            key=str(seed),
            seed=seed,
            waveform=torch.randn(2700 + 1000 * (seed % 4), generator=noise),
            frames=torch.randint(0, 256, (2, 3, 20 + seed % 5, 24), dtype=torch.uint8, generator=noise),
        )
        for seed in SEEDS
    ]


def batch_of(clips: list[Sample]) -> Batch:
    batch = stack_samples(clips, None)
    batch.targets = torch.eye(len(clips))
    return batch


def prepare(probability: float, training: bool = True, shown: str = "audio video", **settings: Any) -> Prepare:
    audio = AudioFrontEnd(30, 32, -4.0, 4.0, roll=True, gain=True, masked_mel_bins=settings.pop("masked", 0))
    video = FrameFrontEnd(SIDE, (0.4, 0.5, 0.5), (0.2, 0.2, 0.3), crop_scale=(0.3, 1.0), flip=0.5)
    front_ends = audio if "audio" in shown else None, video if "video" in shown else None
    return Prepare(*front_ends, training, cutmix_probability=probability, **settings)


def true_steps(clip: Sample) -> int:
    assert clip.waveform is not None
    return min(30, (len(clip.waveform) - 400) // 160 + 1)


def values(inputs: Inputs) -> list[Tensor]:
    assert inputs.targets is not None
    return [v for v in (inputs.audio, inputs.video, inputs.targets) if v is not None]


def run_of(differs: Tensor) -> tuple[int, int]:
    """First and number of the true entries, which must follow each other."""
    places = differs.nonzero()[:, 0].tolist()
    if not places:
        return 0, 0
    assert places == list(range(places[0], places[0] + len(places)))
    return places[0], len(places)


@pytest.mark.parametrize("shown", ["audio video", "audio", "video"])
def test_pieces_are_the_partners_and_targets_are_what_was_pasted(shown: str) -> None:
    clips = samples()
    plain, cut = prepare(0.0, shown=shown)(batch_of(clips)), prepare(1.0, shown=shown)(batch_of(clips))
    assert cut.targets is not None
    num_cut = 0
    for row, clip in enumerate(clips):
        (partner,) = [other for other in range(len(clips)) if other != row and cut.targets[row, other] > 0] or [row]
        shares = []
        if cut.audio is not None and plain.audio is not None:
            own, theirs, found = (v[0] for v in (plain.audio[row], plain.audio[partner], cut.audio[row]))
            first, count = run_of((found != own).any(dim=1))
            # Only what both truly have is exchanged, over all bins; the rest is as it was.
            assert first + count <= min(true_steps(clip), true_steps(clips[partner]))
            assert torch.equal(found[first : first + count], theirs[first : first + count])
            assert torch.equal(found[:first], own[:first])
            assert torch.equal(found[first + count :], own[first + count :])
            shares.append(count / true_steps(clip))
        if cut.video is not None and plain.video is not None:
            differs = cut.video[row] != plain.video[row]  # [3, T, H, Wd]
            (top, height), (left, width) = run_of(differs.any((0, 1, 3))), run_of(differs.any((0, 1, 2)))
            box = (..., slice(top, top + height), slice(left, left + width))
            expected = plain.video[row].clone()
            expected[box] = plain.video[partner][box]
            assert torch.equal(cut.video[row], expected)
            shares.append(height * width / SIDE**2)
        assert max(shares) - min(shares) <= 1 / (2 * SIDE)
        replaced = sum(shares) / len(shares)
        wanted = torch.zeros(len(clips))
        wanted[partner] = replaced
        wanted[row] = 1 - replaced
        torch.testing.assert_close(cut.targets[row], wanted)
        num_cut += replaced > 0
    assert num_cut >= 8


def test_shares_partners_and_places_are_drawn_as_they_should() -> None:
    num_clips = 4000
    everybody = torch.ones(num_clips, dtype=torch.bool)
    steps = torch.full((num_clips,), 1000)
    cuts = drawn(draw_cuts(torch.arange(num_clips), 1.0, 1.0, steps, 224, everybody, everybody))
    kept = cuts.mixing.shares
    assert kept.mean().item() == pytest.approx(0.5, abs=0.02)
    assert kept.var().item() == pytest.approx(1 / 12, rel=0.06)
    first, count = cuts.steps.unbind(1)
    room = 1000 - count
    assert (first / room.clamp(min=1))[room > 100].mean().item() == pytest.approx(0.5, abs=0.02)
    top, left, height, width = cuts.boxes.unbind(1)
    assert ((top + height <= 224) & (left + width <= 224)).all()
    assert (height - width).abs()[height > 30].max() <= 2  # square but for rounding
    assert len(cuts.mixing.partners.unique()) > 0.6 * num_clips
    assert cuts.mixing.is_mixed.all()
    rare = drawn(draw_cuts(torch.arange(num_clips), 0.3, 0.2, steps, None, everybody, everybody))
    assert rare.mixing.is_mixed.float().mean().item() == pytest.approx(0.3, abs=0.03)
    assert rare.mixing.shares[rare.mixing.is_mixed].var().item() == pytest.approx(1 / (4 * 1.4), rel=0.06)
    assert not rare.boxes.any()
    assert rare.steps[~rare.mixing.is_mixed].eq(0).all()


def test_what_is_drawn_is_the_clips_own() -> None:
    """The same seed cuts the same places, whoever else is in the batch."""
    everybody, steps = torch.ones(6, dtype=torch.bool), torch.full((6,), 100)
    seeds = torch.arange(6)
    one, other = (drawn(draw_cuts(s, 0.7, 1.0, steps, 32, everybody, everybody)) for s in (seeds, seeds.flip(0)))
    assert torch.equal(one.steps, other.steps.flip(0))
    assert torch.equal(one.boxes, other.boxes.flip(0))
    assert torch.equal(one.mixing.shares, other.mixing.shares.flip(0))
    assert 0 < one.mixing.is_mixed.sum() < 6  # or these seeds test nothing


def test_evaluation_a_batch_of_one_and_probability_zero_change_nothing() -> None:
    everything, alone = batch_of(samples()), batch_of(samples()[:1])
    for batch, training in ((everything, False), (alone, True)):
        found = prepare(1.0, training)(batch)
        assert all(torch.equal(a, b) for a, b in zip(values(found), values(prepare(0.0, training)(batch)), strict=True))


def test_a_clip_that_lacks_a_modality_neither_gets_nor_gives() -> None:
    clips = samples()
    clips[3] = dataclasses.replace(clips[3], frames=None)
    clips[7] = dataclasses.replace(clips[7], waveform=None)
    plain, cut = prepare(0.0)(batch_of(clips)), prepare(1.0)(batch_of(clips))
    assert cut.targets is not None
    for row in (3, 7):
        assert cut.targets[row, row] == 1
        assert cut.targets[:, row].sum() == 1
        assert all(torch.equal(a[row], b[row]) for a, b in zip(values(plain), values(cut), strict=True))
    assert (cut.targets.diagonal() < 1).sum() >= 6


def test_a_clip_is_mixed_or_cut_and_mixed_ones_are_as_without_cutting() -> None:
    batch = batch_of(samples())
    mixing = draw_mixing(batch.seeds, 0.4, 1.0)
    assert mixing is not None
    settings: dict[str, Any] = {"mixup_probability": 0.4, "mixup_beta": 1.0}
    mixed, both = prepare(0.0, **settings)(batch), prepare(0.6, **settings)(batch)
    changed = [(one != other).flatten(1).any(1) for one, other in zip(values(mixed), values(both), strict=True)]
    assert not changed[0][mixing.is_mixed].any()
    assert torch.equal(changed[0] | mixing.is_mixed, torch.ones(len(SEEDS), dtype=torch.bool))
    assert torch.equal(changed[0], changed[1])
    # A partner that is mixed gives its mixed targets, in the share that its steps have.
    _, cuts = prepare(0.6, **settings)._drawn(batch)
    cuts = drawn(cuts)
    rows = (cuts.mixing.is_mixed & mixing.is_mixed[cuts.mixing.partners]).nonzero()[:, 0]
    assert len(rows)
    assert mixed.targets is not None
    assert both.targets is not None
    for row in rows:
        share, partner = cuts.mixing.shares[row], cuts.mixing.partners[row]
        torch.testing.assert_close(both.targets[row], share * mixed.targets[row] + (1 - share) * mixed.targets[partner])


def test_the_probability_counts_all_clips_also_beside_mixup() -> None:
    seeds = torch.arange(3000)
    batch = Batch(keys=[str(seed) for seed in seeds.tolist()], seeds=seeds)
    mixing, cuts = prepare(0.3, shown="video", mixup_probability=0.5)._drawn(batch)
    assert mixing is not None
    assert not (mixing.is_mixed & drawn(cuts).mixing.is_mixed).any()
    assert drawn(cuts).mixing.is_mixed.float().mean().item() == pytest.approx(0.3, abs=0.03)
    with pytest.raises(ValueError, match="mixed or cut, never both"):
        prepare(0.6, mixup_probability=0.5)


def test_masked_bands_are_the_clips_own_over_what_was_pasted() -> None:
    """Pasting comes first: a band that is masked is masked in the pasted steps too."""
    plain, cut = prepare(0.0, masked=20)(batch_of(samples())), prepare(1.0, masked=20)(batch_of(samples()))
    masked = 0.5  # (0 - mean) / (2 std)
    for one, other in zip(plain.of("audio")[:, 0], cut.of("audio")[:, 0], strict=True):
        bands = (one == masked).all(dim=0)
        assert torch.equal((other == masked).all(dim=0), bands)
    assert (plain.of("audio") == masked).all(dim=2).any()
