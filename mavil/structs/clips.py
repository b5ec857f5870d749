"""Clips on their way: on disk, decoded, in a batch, as a model's inputs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mavil.structs.basics import Modality


@dataclass(frozen=True, slots=True)
class Clip:
    """One audio-video segment of a source file, not yet read.

    Attributes:
        key: its own name in a set of shards.
        path: the media file, or the tar that holds it.
        start_seconds, end_seconds: of the file; ``None`` is its beginning or its end.
        labels: class names.
        metadata: every other column the source had, as text; it travels with the clip to the evaluation.
        source_id: what its dataset calls the recording (a YouTube id, a file name): lists are compared by it.
        weight: its share in weighted sampling, where the source gives one.
        may_be_cut: the file may already be the span alone; it is cut only if it is clearly longer than that.
        byte_range: (offset, size) of the media file inside ``path``.
        stills: where the picture is a row of image files instead: their path with ``*`` for the number; they are spread
            evenly over the sound of ``path``.
    """

    key: str
    path: str
    start_seconds: float | None = None
    end_seconds: float | None = None
    labels: tuple[str, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)
    source_id: str = ""
    weight: float = 1.0
    may_be_cut: bool = False
    byte_range: tuple[int, int] | None = None
    stills: str | None = None


@dataclass
class Sample:
    """One decoded clip: both modalities from the same file, ``None`` where a modality was not asked for.

    ``waveform`` is ``[L]`` float32 in [-1, 1], mono, 16 kHz. ``frames`` is ``[T, C, H, Wd]`` uint8 RGB.
    ``seed`` is :func:`mavil.seeds.sample_seed` of (run seed, epoch, key): every random choice about this sample derives from it.
    """

    key: str
    seed: int
    waveform: Tensor | None = None
    frames: Tensor | None = None
    labels: tuple[str, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)


class _Movable:
    """``to`` and ``len`` shared by :class:`Batch` and :class:`Inputs`."""

    keys: list[str]

    def __len__(self) -> int:
        return len(self.keys)

    def to(self, device: torch.device | str) -> Any:
        """Return a copy with every tensor moved (asynchronously, where the source is pinned)."""
        moved = {
            f.name: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v
            for f, v in ((f, getattr(self, f.name)) for f in dataclasses.fields(self))  # type: ignore[arg-type]
        }
        return type(self)(**moved)


@dataclass
class Batch(_Movable):
    """Stacked samples of one rank and micro-step, as they leave the workers; nothing is normalised yet.

    ``waveforms`` ``[B, L]`` float32, zero-padded at the end; ``waveform_lengths`` ``[B]`` true lengths in samples.
    ``frames`` ``[B, T, C, H, Wd]`` uint8, zero-padded right and below; ``frame_sizes`` ``[B, 2]`` true (H, Wd).
    ``seeds`` ``[B]`` int64, one per sample. ``targets`` ``[B, classes]`` float32 multi-hot, or ``None`` without a
    vocabulary. ``audio_present``, ``video_present`` ``[B]`` bool: which clips have the modality, zeros stand for the others;
    ``None`` where all have it. ``position`` is what the loader needs to continue after this batch; opaque to everybody else.
    """

    keys: list[str]
    seeds: Tensor
    waveforms: Tensor | None = None
    waveform_lengths: Tensor | None = None
    frames: Tensor | None = None
    frame_sizes: Tensor | None = None
    targets: Tensor | None = None
    metadata: list[dict[str, str]] = field(default_factory=list)
    audio_present: Tensor | None = None
    video_present: Tensor | None = None
    position: dict[str, Any] | None = None


@dataclass
class Inputs(_Movable):
    """What a model is given: normalised, cropped, on the device.

    ``audio`` ``[B, 1, S, M]`` normalised log-mel spectrogram, time first; ``video`` ``[B, C, T, H, Wd]`` normalised RGB.
    ``audio_present``, ``video_present`` as in :class:`Batch`.
    """

    keys: list[str]
    seeds: Tensor
    audio: Tensor | None = None
    video: Tensor | None = None
    targets: Tensor | None = None
    metadata: list[dict[str, str]] = field(default_factory=list)
    audio_present: Tensor | None = None
    video_present: Tensor | None = None

    def of(self, modality: Modality) -> Tensor:
        """The tensor of one modality.

        Raises:
            ValueError: the batch was made without that modality.
        """
        value = self.audio if modality == "audio" else self.video
        if value is None:
            raise ValueError(f"this batch holds no {modality}: build the loader with {modality!r} among its modalities")
        return value

    def present(self, modality: Modality) -> Tensor | None:
        """``[B]`` bool, which clips have the modality; ``None`` where all have it."""
        return self.audio_present if modality == "audio" else self.video_present
