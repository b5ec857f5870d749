"""Raw clip -> samples: what is decoded, what is remembered, what cannot be used and why."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mavil.data.labels import Vocabulary, record_labels
from mavil.data.media import DecodeError, FrameWindow, SoundWindow, decode_clip
from mavil.data.stream.clips import RawClip
from mavil.seeds import sample_seed, uniform_draws
from mavil.structs import MODALITIES, Modality, Sample, UserError

BYTES_PER_GIB = 2**30
_THING: dict[Modality, str] = {"audio": "sound", "video": "picture"}
_LACKING: dict[str, Modality] = {"no_audio": "audio", "no_video": "video"}
"""What a file lacks, by the decoder's cause."""


class UnusableClip(Exception):  # noqa: N818 - a verdict on data, not an error of the program
    """A clip that is left out. ``cause`` is a short slug to count by, ``detail`` one line for people."""

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(cause, detail)
        self.cause = cause
        self.detail = detail


Decoded = tuple[Tensor | None, Tensor | None]
"""Waveform and frames of one window of a clip."""
Lengths = Mapping[Modality, float]
"""Seconds of the window of each modality that is to be decoded."""


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
    """Turns raw clips into samples, the same samples for the same (seed, epoch, key) in any process.

    Attributes:
        audio_seconds: longest waveform; ``None`` leaves the sound alone.
        frame_window: which frames; ``None`` leaves the picture alone. See :meth:`starts` for where in a clip both are taken.
        seed: of the run.
        training: random windows, seeds by epoch; otherwise every sample has the seed of epoch 0.
        backend: name of the media decoder.
        vocabulary: when given, clips without a label are unusable and unknown labels end the run.
        label_field: take the label from this metadata field.
        cache: decoded tensors of earlier passes. It changes the speed and nothing else.
        keeps_incomplete: a clip without sound or without picture gives samples with what it has; otherwise it is unusable.
        windows: samples of a clip that is longer than the windows, spread evenly over it (evaluation).
        hidden: modalities that are not decoded though the model has them: every sample is without.
    """

    audio_seconds: float | None
    frame_window: FrameWindow | None
    seed: int
    training: bool
    backend: str = "pyav"
    vocabulary: Vocabulary | None = None
    label_field: str | None = None
    cache: Cache = field(default_factory=Cache)
    keeps_incomplete: bool = False
    windows: int = 1
    hidden: tuple[Modality, ...] = ()

    def decode(self, raw: RawClip) -> list[Sample]:
        """Read a clip's record and decode the wanted modalities: one sample per window, in the order of time.

        The first has the clip's own seed, each other one a seed of its own.

        Raises:
            UnusableClip: damaged shard, missing or unreadable record, media or modality in one of the windows, or no label.
            UserError: a label that the vocabulary does not have.
        """
        if raw.damage is not None:
            raise UnusableClip("damaged_shard", raw.damage)
        record = _parse_record(raw.record)
        if raw.media is None:
            raise UnusableClip("no_media", "the shard has only the clip's record")
        labels = self._labels(record, raw)
        seed = self._seed(raw)
        windows = self._decoded_windows(raw, raw.media, record["duration_seconds"], seed, self._lengths_of(record))
        metadata = {str(name): str(value) for name, value in record.get("metadata", {}).items()}
        return [
            Sample(raw.key, sample_seed(seed, "window", number) if number else seed, *decoded, labels, metadata)
            for number, decoded in enumerate(windows)
        ]

    @property
    def blanks(self) -> dict[Modality, Tensor]:
        """What a batch holds of a modality of the model that none of its clips has: the least there can be, all zero."""
        found: dict[Modality, Tensor] = {}
        if self.audio_seconds is not None:
            found["audio"] = torch.zeros(1)
        if self.frame_window is not None:
            found["video"] = torch.zeros(self.frame_window.num_frames, 3, 1, 1, dtype=torch.uint8)
        return found

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

    @property
    def _lengths(self) -> dict[Modality, float]:
        lengths: dict[Modality, float] = {}
        if self.audio_seconds is not None:
            lengths["audio"] = self.audio_seconds
        if self.frame_window is not None:
            lengths["video"] = self.frame_window.num_frames / self.frame_window.frames_per_second
        return {m: seconds for m, seconds in lengths.items() if m not in self.hidden}

    def _lengths_of(self, record: dict[str, Any]) -> Lengths:
        """Of the wanted modalities, those that the record does not deny."""
        lengths: Lengths = self._lengths
        for modality in MODALITIES:
            if modality in lengths and record.get(f"has_{modality}") is False:
                lengths = self._without(lengths, modality, f"its record says that it has no {_THING[modality]}")
        return lengths

    def _without(self, lengths: Lengths, modality: Modality, detail: str) -> Lengths:
        """What is left of a clip that lacks a modality.

        Raises:
            UnusableClip: nothing, or it is not to be used.
        """
        left = {m: seconds for m, seconds in lengths.items() if m != modality}
        if not self.keeps_incomplete or len(self._lengths) == 1:
            raise UnusableClip(f"no_{modality}", detail)
        if not left:
            raise UnusableClip("empty", "it has neither sound nor picture")
        return left

    def places(self, duration_seconds: float, lengths: Lengths | None = None) -> list[float]:
        """Where in a clip each of its windows lies in evaluation: 0 at its beginning, 1 at its end, one in its middle.

        A clip that is not longer than its shortest window has only one.
        """
        shortest = min((lengths or self._lengths).values())
        if self.training or self.windows == 1 or duration_seconds <= shortest:
            return [0.5]
        return [number / (self.windows - 1) for number in range(self.windows)]

    def starts(
        self, duration_seconds: float, seed: int, lengths: Lengths | None = None, place: float = 0.5
    ) -> dict[Modality, float]:
        """Second of the clip at which each modality begins.

        In training the longer of the two windows lies anywhere in the clip, and the shorter one anywhere inside the longer. In
        evaluation both lie at ``place``: then too the shorter one is inside the longer, and several windows of the picture go
        over the whole clip also where the sound is taken whole. So sound and picture are of the same moment however long the
        clip is.

        Args:
            duration_seconds: of the clip.
            seed: of the sample.
            lengths: of the modalities that the clip has; ``None``: of all that are wanted.
            place: one of :meth:`places`.
        """
        lengths = lengths or self._lengths
        if not self.training:
            return {m: place * max(0.0, duration_seconds - length) for m, length in lengths.items()}
        span = min(max(lengths.values()), duration_seconds)
        outer, *inner = uniform_draws(torch.tensor([seed]), "time window", 1 + len(lengths))[0].tolist()
        begin = outer * (duration_seconds - span)
        return {
            m: begin + share * max(0.0, span - length)
            for (m, length), share in zip(lengths.items(), inner, strict=True)
        }

    def _decoded_windows(
        self, raw: RawClip, media: bytes, duration_seconds: float, seed: int, lengths: Lengths
    ) -> list[Decoded]:
        places = self.places(duration_seconds, lengths)
        try:
            return [self._decoded(raw, media, self.starts(duration_seconds, seed, lengths, place)) for place in places]
        except DecodeError as error:
            lacking = _LACKING.get(error.cause)
            if lacking is None:
                raise UnusableClip(error.cause, error.detail) from error
            left = self._without(lengths, lacking, error.detail)
        # Windows of a modality alone lie elsewhere, whether the record or the file said that it is alone.
        return self._decoded_windows(raw, media, duration_seconds, seed, left)

    def _decoded(self, raw: RawClip, media: bytes, starts: dict[Modality, float]) -> Decoded:
        sound = SoundWindow(starts["audio"], self.audio_seconds) if "audio" in starts and self.audio_seconds else None
        frames = self.frame_window if "video" in starts else None

        def decode() -> Decoded:
            return decode_clip(media, sound, frames, starts.get("video", 0.0), self.backend)

        if self.training and any(starts.values()):
            # A start drawn from a continuum never comes twice: keeping it would only fill the cache.
            return decode()
        return self.cache.get((raw.shard, raw.key, *starts.items()), decode)


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
