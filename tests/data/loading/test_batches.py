"""Samples as one batch: padding, and what stands for a modality that a clip lacks."""

from __future__ import annotations

from typing import Any

import torch

from mavil.data.labels import Vocabulary
from mavil.data.loading.batches import stack_samples
from mavil.structs import Modality, Sample

BLANKS: dict[Modality, torch.Tensor] = {
    "audio": torch.zeros(1),
    "video": torch.zeros(2, 3, 1, 1, dtype=torch.uint8),
}


def sample(key: str, length: int | None, size: tuple[int, int] | None) -> Sample:
    waveform = None if length is None else torch.arange(1.0, length + 1)
    frames = None if size is None else torch.full((2, 3, *size), 7, dtype=torch.uint8)
    return Sample(key, len(key), waveform, frames)


def test_whole_samples_have_no_flags() -> None:
    batch = stack_samples([sample("a", 3, (4, 6)), sample("b", 5, (2, 8))], None, BLANKS)
    assert batch.audio_present is None
    assert batch.video_present is None
    assert batch.waveforms is not None
    assert batch.waveforms.tolist() == [[1, 2, 3, 0, 0], [1, 2, 3, 4, 5]]
    assert batch.frames is not None
    assert batch.frames.shape == (2, 2, 3, 4, 8)


def test_a_sample_without_a_modality_is_zeros_and_flagged() -> None:
    batch = stack_samples([sample("a", None, (4, 6)), sample("b", 5, None), sample("c", 2, (2, 8))], None, BLANKS)
    assert batch.audio_present is not None
    assert batch.audio_present.tolist() == [False, True, True]
    assert batch.video_present is not None
    assert batch.video_present.tolist() == [True, False, True]
    assert batch.waveforms is not None
    assert batch.waveforms.tolist() == [[0] * 5, [1, 2, 3, 4, 5], [1, 2, 0, 0, 0]]
    assert batch.waveform_lengths is not None
    assert batch.waveform_lengths.tolist() == [0, 5, 2]
    assert batch.frames is not None
    assert batch.frames.flatten(1).sum(1).tolist() == [7 * 6 * 24, 0, 7 * 6 * 16]
    # A box can be drawn in every row, also in one without a picture.
    assert batch.frame_sizes is not None
    assert batch.frame_sizes.tolist() == [[4, 6], [4, 8], [2, 8]]


def test_what_nobody_has_keeps_its_kind_of_tensor() -> None:
    samples = [sample("a", None, (4, 6)), sample("b", None, (4, 6))]
    batch = stack_samples(samples, Vocabulary(("x", "y")), BLANKS)
    assert batch.waveforms is not None
    assert batch.waveforms.tolist() == [[0], [0]]
    assert batch.waveforms.dtype == torch.float32
    assert batch.audio_present is not None
    assert batch.audio_present.tolist() == [False, False]
    silent: Any = stack_samples([sample("a", 3, None)], None, BLANKS)
    assert silent.frames.shape == (1, 2, 3, 1, 1)
    assert silent.frames.dtype == torch.uint8
    assert silent.frame_sizes.tolist() == [[1, 1]]
    # Without blanks it is left out: nobody asked for it.
    assert stack_samples(samples, None).waveforms is None
    assert stack_samples(samples, None).audio_present is None
