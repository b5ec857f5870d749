"""Raw clip -> Sample -> Batch: what is decoded, what is remembered, what cannot be used and why."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mavil.data.labels import Vocabulary, record_labels
from mavil.data.media import DecodeError, FrameWindow, SoundWindow, decode_clip
from mavil.data.stream.clips import RawClip
from mavil.structs import Batch, Modality, Sample, UserError, sample_seed, uniform_draws

BYTES_PER_GIB = 2**30


class UnusableClip(Exception):  # noqa: N818 - a verdict on data, not an error of the program
    """A clip that is left out. ``cause`` is a short slug to count by, ``detail`` one line for people."""

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(cause, detail)
        self.cause = cause
        self.detail = detail


Decoded = tuple[Tensor | None, Tensor | None]
"""Waveform and frames of one clip."""


@dataclass
class Cache:
    """Decoded clips kept in this process until ``max_bytes`` are used; what came first stays.

    Nothing is ever thrown out: clips come round in epochs, and when a whole epoch does not fit, dropping the oldest would
    drop each clip shortly before it is wanted again.
    """

    max_bytes: int = 0
    used_bytes: int = 0
    kept: dict[tuple, Decoded] = field(default_factory=dict)

    def get(self, key: tuple, decode: Callable[[], Decoded]) -> Decoded:
        """What is kept under ``key``, or else what ``decode`` returns. Nobody may write into it."""
        if key in self.kept:
            return self.kept[key]
        value = decode()
        num_bytes = sum(tensor.nbytes for tensor in value if tensor is not None)
        if self.used_bytes + num_bytes <= self.max_bytes:
            self.kept[key] = value
            self.used_bytes += num_bytes
        return value


@dataclass
class ClipDecoder:
    """Turns raw clips into samples, the same sample for the same (seed, epoch, key) in any process.

    Attributes:
        audio_seconds: longest waveform; ``None`` leaves the sound alone.
        frame_window: which frames; ``None`` leaves the picture alone. See :meth:`starts` for where in a clip both are taken.
        seed: of the run.
        training: random windows, seeds by epoch; otherwise every sample has the seed of epoch 0.
        backend: name of the media decoder.
        vocabulary: when given, clips without a label are unusable and unknown labels end the run.
        label_field: take the label from this metadata field.
        cache: decoded tensors of earlier passes. It changes the speed and nothing else.
    """

    audio_seconds: float | None
    frame_window: FrameWindow | None
    seed: int
    training: bool
    backend: str = "pyav"
    vocabulary: Vocabulary | None = None
    label_field: str | None = None
    cache: Cache = field(default_factory=Cache)

    def decode(self, raw: RawClip) -> Sample:
        """Read a clip's record and decode the wanted modalities.

        Raises:
            UnusableClip: damaged shard, missing or unreadable record, media or modality, or no label.
            UserError: a label that the vocabulary does not have.
        """
        if raw.damage is not None:
            raise UnusableClip("damaged_shard", raw.damage)
        record = _parse_record(raw.record)
        if raw.media is None:
            raise UnusableClip("no_media", "the shard has only the clip's record")
        labels = self._labels(record, raw)
        self._check_modalities(record)
        seed = self._seed(raw)
        starts = self.starts(record["duration_seconds"], seed)
        try:
            waveform, frames = self._decoded(raw, raw.media, starts)
        except DecodeError as error:
            raise UnusableClip(error.cause, error.detail) from error
        metadata = {str(name): str(value) for name, value in record.get("metadata", {}).items()}
        return Sample(raw.key, seed, waveform, frames, labels, metadata)

    def _seed(self, raw: RawClip) -> int:
        epoch = raw.epoch if self.training else 0
        # A clip that weighted sampling draws again in one epoch is another sample.
        return sample_seed(self.seed, epoch, raw.key, *([raw.copy] if raw.copy else []))

    def _labels(self, record: dict[str, Any], raw: RawClip) -> tuple[str, ...]:
        labels = record_labels(record, self.label_field)
        if self.vocabulary is None:
            return labels
        if not labels:
            where = "labels" if self.label_field is None else f"metadata field {self.label_field!r}"
            raise UnusableClip("no_label", f"its {where} is empty")
        try:
            self.vocabulary.multi_hot(labels)
        except UserError as error:
            raise UserError(f"clip {raw.key} of {raw.shard}: {error}") from None
        return labels

    def starts(self, duration_seconds: float, seed: int) -> dict[Modality, float]:
        """Second of the clip at which each wanted modality begins.

        The longer of the two windows lies anywhere in the clip in training, in its middle in evaluation; the shorter one lies
        likewise inside the longer, so that sound and picture are of the same moment however long the clip is.
        """
        lengths: dict[Modality, float] = {}
        if self.audio_seconds is not None:
            lengths["audio"] = self.audio_seconds
        if self.frame_window is not None:
            lengths["video"] = self.frame_window.num_frames / self.frame_window.frames_per_second
        span = min(max(lengths.values()), duration_seconds)
        outer, *inner = [0.5] * (1 + len(lengths))
        if self.training:
            outer, *inner = uniform_draws(torch.tensor([seed]), "time window", 1 + len(lengths))[0].tolist()
        begin = outer * (duration_seconds - span)
        return {
            m: begin + share * max(0.0, span - length)
            for (m, length), share in zip(lengths.items(), inner, strict=True)
        }

    def _check_modalities(self, record: dict[str, Any]) -> None:
        if self.audio_seconds is not None and record.get("has_audio") is False:
            raise UnusableClip("no_audio", "its record says that it has no sound")
        if self.frame_window is not None and record.get("has_video") is False:
            raise UnusableClip("no_video", "its record says that it has no picture")

    def _decoded(self, raw: RawClip, media: bytes, starts: dict[Modality, float]) -> Decoded:
        sound = None if self.audio_seconds is None else SoundWindow(starts["audio"], self.audio_seconds)

        def decode() -> Decoded:
            return decode_clip(media, sound, self.frame_window, starts.get("video", 0.0), self.backend)

        if self.training and any(starts.values()):
            # A start drawn from a continuum never comes twice: keeping it would only fill the cache.
            return decode()
        return self.cache.get((raw.shard, raw.key, *starts.values()), decode)


def _parse_record(text: bytes | None) -> dict[str, Any]:
    if text is None:
        raise UnusableClip("no_record", "the shard has no JSON member for it")
    try:
        record = json.loads(text)
    except ValueError:
        raise UnusableClip("bad_record", "its JSON member cannot be parsed") from None
    if not isinstance(record, dict):
        raise UnusableClip("bad_record", "its JSON member is no mapping")
    duration = record.get("duration_seconds")
    if isinstance(duration, bool) or not isinstance(duration, (int, float)) or not 0 <= duration < float("inf"):
        raise UnusableClip("bad_record", f"its duration_seconds is {duration!r}, not a length in seconds")
    labels, metadata = record.get("labels", []), record.get("metadata", {})
    if not isinstance(metadata, dict) or not isinstance(labels, list) or not all(isinstance(x, str) for x in labels):
        raise UnusableClip("bad_record", "its labels are no list of names or its metadata no mapping")
    return record


def stack_samples(samples: Sequence[Sample], vocabulary: Vocabulary | None) -> Batch:
    """Samples with the same modalities as one batch, padded with zeros to the longest clip and the largest frame."""
    batch = Batch(
        keys=[sample.key for sample in samples],
        seeds=torch.tensor([sample.seed for sample in samples], dtype=torch.int64),
        metadata=[sample.metadata for sample in samples],
    )
    waveforms = [sample.waveform for sample in samples if sample.waveform is not None]
    frames = [sample.frames for sample in samples if sample.frames is not None]
    if waveforms:
        batch.waveforms = _pad_and_stack(waveforms)
        batch.waveform_lengths = torch.tensor([len(waveform) for waveform in waveforms])
    if frames:
        batch.frames = _pad_and_stack(frames)
        batch.frame_sizes = torch.tensor([clip.shape[-2:] for clip in frames])
    if vocabulary is not None:
        batch.targets = torch.stack([vocabulary.multi_hot(sample.labels) for sample in samples])
    return batch


def _pad_and_stack(tensors: Sequence[Tensor]) -> Tensor:
    shape = [max(sizes) for sizes in zip(*(tensor.shape for tensor in tensors), strict=True)]
    stacked = tensors[0].new_zeros(len(tensors), *shape)
    for row, tensor in zip(stacked, tensors, strict=True):
        row[tuple(slice(size) for size in tensor.shape)] = tensor
    return stacked
