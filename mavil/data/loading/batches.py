"""Samples -> Batch: padding, and the flags of clips that lack a modality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mavil.data.labels import Vocabulary
from mavil.structs import Batch, Modality, Sample


def stack_samples(
    samples: Sequence[Sample], vocabulary: Vocabulary | None, blanks: Mapping[Modality, Tensor] | None = None
) -> Batch:
    """Samples as one batch, padded with zeros to the longest clip and the largest frame.

    A sample without a modality that the others have, or that is in ``blanks``, is zeros there, and the batch says so. It
    does not change the shape of the others: its waveform has length 0, its frames are as large as the batch's.

    Args:
        samples: with sound, picture or both; a modality that none has and ``blanks`` neither is left out.
        vocabulary: to make targets with.
        blanks: see :attr:`mavil.data.loading.samples.ClipDecoder.blanks`.
    """
    batch = Batch(
        keys=[sample.key for sample in samples],
        seeds=torch.tensor([sample.seed for sample in samples], dtype=torch.int64),
        metadata=[sample.metadata for sample in samples],
    )
    blanks = blanks or {}
    waveforms, frames = [sample.waveform for sample in samples], [sample.frames for sample in samples]
    batch.waveforms = _pad_and_stack(waveforms, blanks.get("audio"))
    batch.frames = _pad_and_stack(frames, blanks.get("video"))
    if batch.waveforms is not None:
        batch.waveform_lengths = torch.tensor([0 if waveform is None else len(waveform) for waveform in waveforms])
        batch.audio_present = _which_have(waveforms)
    if batch.frames is not None:
        batch.frame_sizes = torch.tensor([(batch.frames if clip is None else clip).shape[-2:] for clip in frames])
        batch.video_present = _which_have(frames)
    if vocabulary is not None:
        batch.targets = torch.stack([vocabulary.multi_hot(sample.labels) for sample in samples])
    return batch


def _which_have(tensors: Sequence[Tensor | None]) -> Tensor | None:
    """``[B]`` bool; ``None`` where all have one."""
    present = [tensor is not None for tensor in tensors]
    return None if all(present) else torch.tensor(present)


def _pad_and_stack(tensors: Sequence[Tensor | None], blank: Tensor | None) -> Tensor | None:
    """Zeros where there is none; in the shape of ``blank`` where nobody has one."""
    real = [tensor for tensor in tensors if tensor is not None] or ([] if blank is None else [blank])
    if not real:
        return None
    shape = [max(sizes) for sizes in zip(*(tensor.shape for tensor in real), strict=True)]
    stacked = real[0].new_zeros(len(tensors), *shape)
    for row, tensor in zip(stacked, tensors, strict=True):
        if tensor is not None:
            row[tuple(slice(size) for size in tensor.shape)] = tensor
    return stacked
