"""Raw clip -> Sample -> Batch: what is decoded, what is remembered, what cannot be used and why."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mavil.data.labels import Vocabulary, record_labels
from mavil.data.media import DecodeError, FrameWindow, decode_audio, decode_frames
from mavil.data.stream import RawClip
from mavil.structs import SAMPLE_RATE, Batch, Modality, Sample, UserError, sample_seed, uniform_draws

BYTES_PER_GIB = 2**30


class UnusableClip(Exception):  # noqa: N818 - a verdict on data, not an error of the program
    """A clip that is left out. ``cause`` is a short slug to count by, ``detail`` one line for people."""

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(cause, detail)
        self.cause = cause
        self.detail = detail


@dataclass
class Cache:
    """Decoded tensors kept in this process until ``max_bytes`` are used; what came first stays.

    Nothing is ever thrown out: clips come round in epochs, and when a whole epoch does not fit, dropping the oldest would
    drop each clip shortly before it is wanted again.
    """

    max_bytes: int
    used_bytes: int = 0
    kept: dict[tuple, Tensor] = field(default_factory=dict)

    def get(self, key: tuple, decode: Callable[[], Tensor]) -> Tensor:
        """The tensor kept under ``key``, or else what ``decode`` returns. Nobody may write into it."""
        if key in self.kept:
            return self.kept[key]
        value = decode()
        if self.used_bytes + value.nbytes <= self.max_bytes:
            self.kept[key] = value
            self.used_bytes += value.nbytes
        return value


@dataclass
class ClipDecoder:
    """Turns raw clips into samples, the same sample for the same (seed, epoch, key) in any process.

    Attributes:
        modalities: what is decoded; nothing else is touched.
        audio_seconds: longest waveform.
        frame_window: which frames; needed for video. See :meth:`starts` for where in a clip both are taken.
        backend: name of the media decoder.
        seed: of the run.
        training: random windows, seeds by epoch; otherwise every sample has the seed of epoch 0.
        vocabulary: when given, clips without a label are unusable and unknown labels end the run.
        label_field: take the label from this metadata field.
        cache: decoded tensors of earlier passes. It changes the speed and nothing else.
    """

    modalities: tuple[Modality, ...]
    audio_seconds: float
    frame_window: FrameWindow | None
    backend: str
    seed: int
    training: bool
    vocabulary: Vocabulary | None
    label_field: str | None
    cache: Cache

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
        seed = sample_seed(self.seed, raw.epoch if self.training else 0, raw.key)
        starts = self.starts(record["duration_seconds"], seed)
        try:
            return Sample(
                key=raw.key,
                seed=seed,
                waveform=self._waveform(raw, raw.media, record, starts["audio"])
                if "audio" in self.modalities
                else None,
                frames=self._frames(raw, raw.media, record, starts["video"]) if "video" in self.modalities else None,
                labels=labels,
                metadata={str(name): str(value) for name, value in record.get("metadata", {}).items()},
            )
        except DecodeError as error:
            raise UnusableClip(error.cause, error.detail) from error

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
        if "audio" in self.modalities:
            lengths["audio"] = self.audio_seconds
        if "video" in self.modalities and self.frame_window is not None:
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

    def _waveform(self, raw: RawClip, media: bytes, record: dict[str, Any], start: float) -> Tensor:
        if record.get("has_audio") is False:
            raise UnusableClip("no_audio", "its record says that it has no sound")
        first = round(start * SAMPLE_RATE)

        def decode() -> Tensor:
            waveform = decode_audio(media, start + self.audio_seconds, self.backend)[first:]
            if len(waveform) == 0:
                raise DecodeError("too_short", f"its sound ends before {start:.2f} s")
            return waveform.clone()

        return self._kept(raw, "audio", start, decode)

    def _frames(self, raw: RawClip, media: bytes, record: dict[str, Any], start: float) -> Tensor:
        if record.get("has_video") is False:
            raise UnusableClip("no_video", "its record says that it has no picture")
        window = self.frame_window
        assert window is not None
        return self._kept(raw, "video", start, lambda: decode_frames(media, window, start, self.backend))

    def _kept(self, raw: RawClip, modality: Modality, start: float, decode: Callable[[], Tensor]) -> Tensor:
        if self.training and start > 0:
            # A start drawn from a continuum never comes twice: keeping it would only fill the cache.
            return decode()
        return self.cache.get((raw.shard, raw.key, modality, start), decode)


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
