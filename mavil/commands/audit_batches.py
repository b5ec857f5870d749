"""Batches of known clips, put together in other ways than an evaluation does; what an audit shows to a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from mavil.data.loading.batches import stack_samples
from mavil.structs import Batch, Modality, Sample

MORE_ROWS = 16
"""Pixels that padding adds to the frames on the right and below."""
NEIGHBOUR = "audit neighbour"
"""Key of clips that are in a batch to disturb the others, and are not judged."""


def samples_of(batch: Batch) -> list[Sample]:
    """The clips of a batch without its padding."""
    samples = []
    for row, key in enumerate(batch.keys):
        sample = Sample(key, int(batch.seeds[row]), metadata=batch.metadata[row])
        if batch.waveforms is not None and batch.waveform_lengths is not None and _has(batch.audio_present, row):
            sample.waveform = batch.waveforms[row, : int(batch.waveform_lengths[row])]
        if batch.frames is not None and batch.frame_sizes is not None and _has(batch.video_present, row):
            height, width = batch.frame_sizes[row].tolist()
            sample.frames = batch.frames[row, ..., :height, :width]
        samples.append(sample)
    return samples


def _has(present: Tensor | None, row: int) -> bool:
    return present is None or bool(present[row])


class Compositions:
    """Batches of the same clips, each in another way.

    Args:
        samples: the clips.
        targets: ``[classes]`` by key; empty where the task has none.
        blanks: see :attr:`mavil.data.loading.samples.ClipDecoder.blanks`.
        batch_size: of the evaluation.
    """

    def __init__(
        self, samples: Sequence[Sample], targets: dict[str, Tensor], blanks: dict[Modality, Tensor], batch_size: int
    ) -> None:
        self._samples = samples
        self._targets = targets
        self._blanks = blanks
        self._batch_size = batch_size

    def reversed(self) -> Iterator[Batch]:
        """The last clip first."""
        ordered = self._samples[::-1]
        for first in range(0, len(ordered), self._batch_size):
            yield self._stacked(ordered[first : first + self._batch_size])

    def beside_longer(self) -> Iterator[Batch]:
        """Each batch with one more clip of noise, twice as long and with larger frames than any other."""
        generator = torch.Generator().manual_seed(0)
        for group in self._groups():
            longest = max((len(one.waveform) for one in group if one.waveform is not None), default=0)
            sizes = [one.frames.shape for one in group if one.frames is not None]
            noise = Sample(NEIGHBOUR, 0)
            if longest:
                noise.waveform = torch.rand(2 * longest, generator=generator) - 0.5
            if sizes:
                shape = [max(size) for size in zip(*sizes, strict=True)]
                shape = [*shape[:2], shape[2] + MORE_ROWS, shape[3] + MORE_ROWS]
                noise.frames = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
            yield self._stacked([*group, noise])

    def padded(self) -> Iterator[Batch]:
        """Sound followed by as many zeros, frames with zeros on the right and below; sizes say what is real."""
        for batch in map(self._stacked, self._groups()):
            if batch.waveforms is not None:
                batch.waveforms = F.pad(batch.waveforms, (0, batch.waveforms.shape[1]))
            if batch.frames is not None:
                batch.frames = F.pad(batch.frames, (0, MORE_ROWS, 0, MORE_ROWS))
            yield batch

    def doubled(self) -> Iterator[Batch]:
        """Each clip twice in its batch."""
        for group in self._groups():
            yield self._stacked([*group, *group])

    def half_silent(self) -> Iterator[Batch]:
        """The other half of each batch, then the first one, made silent and black."""
        for group in self._groups():
            for rest in (0, 1):
                yield self._stacked([one if i % 2 == rest else _emptied(one) for i, one in enumerate(group)])

    def beside_incomplete(self) -> Iterator[Batch]:
        """Each clip with all that it has, beside others without sound or without picture."""
        for group in self._groups():
            for rest in (0, 1, 2):
                changed = []
                for place, one in enumerate(group):
                    if place % 3 == rest:
                        changed.append(one)
                    elif place % 3 == (rest + 1) % 3:
                        changed.append(replace(one, key=NEIGHBOUR, waveform=None))
                    else:
                        changed.append(replace(one, key=NEIGHBOUR, frames=None))
                # One whose only modality was taken away is nobody.
                left = [one for one in changed if one.waveform is not None or one.frames is not None]
                if any(one.key != NEIGHBOUR for one in left):
                    yield self._stacked(left)

    def _groups(self) -> Iterator[list[Sample]]:
        for first in range(0, len(self._samples), self._batch_size):
            yield list(self._samples[first : first + self._batch_size])

    def _stacked(self, samples: Sequence[Sample]) -> Batch:
        batch = stack_samples(samples, None, self._blanks)
        if self._targets:
            nobody = torch.zeros_like(next(iter(self._targets.values())))
            batch.targets = torch.stack([self._targets.get(one.key, nobody) for one in samples])
        return batch


def _emptied(sample: Sample) -> Sample:
    waveform = None if sample.waveform is None else torch.zeros_like(sample.waveform)
    frames = None if sample.frames is None else torch.zeros_like(sample.frames)
    return replace(sample, key=NEIGHBOUR, waveform=waveform, frames=frames)
