"""The batches an audit makes: the clips to be judged are untouched, everything around them is not."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from torch import Tensor

from mavil.commands.audit_batches import NEIGHBOUR, Compositions, samples_of
from mavil.data.loading.batches import stack_samples
from mavil.structs import Batch, Sample

KEYS = [f"clip{i}" for i in range(5)]


def sample(number: int) -> Sample:
    """Lengths and frame sizes differ; the third lacks sound."""
    generator = torch.Generator().manual_seed(number)
    waveform = None if number == 2 else torch.randn(100 + 10 * number, generator=generator)
    frames = torch.randint(1, 256, (2, 3, 8, 6 + number), generator=generator, dtype=torch.uint8)
    return Sample(KEYS[number], number, waveform, frames)


SAMPLES = [sample(number) for number in range(len(KEYS))]


@pytest.fixture
def compositions() -> Compositions:
    """Batches of three and of two."""
    targets = {key: torch.eye(5)[number] for number, key in enumerate(KEYS)}
    return Compositions(SAMPLES, targets, {}, 3)


def equal(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other if one is None or other is None else torch.equal(one, other)


def judged(batches: Iterable[Batch]) -> list[str]:
    """Keys of the clips to be judged, after a look that they are what they were."""
    keys = []
    for batch in batches:
        for row, one in enumerate(samples_of(batch)):
            if one.key != NEIGHBOUR:
                original = SAMPLES[KEYS.index(one.key)]
                assert equal(one.waveform, original.waveform)
                assert equal(one.frames, original.frames)
                assert one.seed == original.seed
                assert batch.targets is not None
                assert batch.targets[row].argmax() == KEYS.index(one.key)
                keys.append(one.key)
    return keys


def test_a_batch_is_taken_apart() -> None:
    for one, original in zip(samples_of(stack_samples(SAMPLES, None)), SAMPLES, strict=True):
        assert equal(one.waveform, original.waveform)
        assert equal(one.frames, original.frames)


def test_every_composition_shows_the_clips_unchanged(compositions: Compositions) -> None:
    assert judged(compositions.reversed()) == KEYS[::-1]
    assert judged(compositions.beside_longer()) == KEYS
    assert judged(compositions.padded()) == KEYS
    assert judged(compositions.doubled()) == [*KEYS[:3], *KEYS[:3], *KEYS[3:], *KEYS[3:]]
    for others in (compositions.half_silent(), compositions.beside_incomplete()):
        assert sorted(judged(others)) == KEYS


def test_what_surrounds_them_is_what_the_name_says(compositions: Compositions) -> None:
    for batch, longest in zip(compositions.beside_longer(), (110, 140), strict=True):
        assert batch.keys[-1] == NEIGHBOUR
        assert batch.waveforms is not None
        assert batch.frames is not None
        assert batch.waveforms.shape[1] == 2 * longest
        assert batch.waveforms[-1].std() > 0.1
        assert batch.frames.shape[-2] == 24
    for batch, longest in zip(compositions.padded(), (110, 140), strict=True):
        assert batch.waveforms is not None
        assert batch.frames is not None
        assert batch.waveforms.shape[1] == 2 * longest
        assert batch.frames.shape[-2] == 24
    silent = [one for batch in compositions.half_silent() for one in samples_of(batch) if one.key == NEIGHBOUR]
    assert len(silent) == len(KEYS)
    assert not any(bool(one.waveform.any()) for one in silent if one.waveform is not None)
    assert not any(bool(one.frames.any()) for one in silent if one.frames is not None)
    incomplete = [
        one for batch in compositions.beside_incomplete() for one in samples_of(batch) if one.key == NEIGHBOUR
    ]
    assert {(one.waveform is None, one.frames is None) for one in incomplete} == {(True, False), (False, True)}
