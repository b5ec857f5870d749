"""What travels between the rooms: clips, samples, batches, token grids, masked views, loss reports, training state.

Shape letters, one legend for the whole project:

====  =======================================  ====  =======================================
B     clips in a batch                         N     tokens of one modality
C     colour channels (3)                      K     visible tokens of one modality
T     video frames                             P     raw values in one patch
H Wd  pixel rows and columns                   D     encoder width
S     spectrogram steps (10 ms hop)            E     decoder width
M     mel bins                                 Z     embedding width
L     waveform samples (16 kHz)                R     ranks
V     views (masked selections) of one clip
====  =======================================  ====  =======================================
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

Modality = Literal["audio", "video"]
MODALITIES: tuple[Modality, ...] = ("audio", "video")
SAMPLE_RATE = 16_000
"""Hz. The one waveform rate of the project; media.py resamples everything to it [paper: 16 kHz mono]."""


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
    ``seed`` is :func:`sample_seed` of (run seed, epoch, key): every random choice about this sample derives from it.
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
    vocabulary. ``position`` is what the loader needs to continue after this batch; opaque to everybody else.
    """

    keys: list[str]
    seeds: Tensor
    waveforms: Tensor | None = None
    waveform_lengths: Tensor | None = None
    frames: Tensor | None = None
    frame_sizes: Tensor | None = None
    targets: Tensor | None = None
    metadata: list[dict[str, str]] = field(default_factory=list)
    position: dict[str, Any] | None = None


@dataclass
class Inputs(_Movable):
    """What a model is given: normalised, cropped, on the device.

    ``audio`` ``[B, 1, S, M]`` normalised log-mel spectrogram, time first; ``video`` ``[B, C, T, H, Wd]`` normalised RGB.
    """

    keys: list[str]
    seeds: Tensor
    audio: Tensor | None = None
    video: Tensor | None = None
    targets: Tensor | None = None
    metadata: list[dict[str, str]] = field(default_factory=list)

    def of(self, modality: Modality) -> Tensor:
        """The tensor of one modality.

        Raises:
            ValueError: the batch was made without that modality.
        """
        value = self.audio if modality == "audio" else self.video
        if value is None:
            raise ValueError(f"this batch holds no {modality}: build the loader with {modality!r} among its modalities")
        return value


@dataclass(frozen=True)
class TokenGrid:
    """How one modality is cut into patches.

    ``cells`` counts patches per axis: ``(s, m)`` for audio, ``(t, h, w)`` for video. ``patch`` is the size of one patch
    per axis, in the same order. Tokens are numbered row-major, time first.
    """

    cells: tuple[int, ...]
    patch: tuple[int, ...]
    channels: int

    @classmethod
    def of(cls, size: tuple[int, ...], patch: tuple[int, ...], channels: int) -> TokenGrid:
        """Divide an input of ``size`` into whole patches.

        Raises:
            ValueError: an axis is not a multiple of its patch size.
        """
        if any(s % p for s, p in zip(size, patch, strict=True)):
            raise ValueError(f"an input of {size} cannot be cut into patches of {patch}: every axis must be a multiple")
        return cls(tuple(s // p for s, p in zip(size, patch, strict=True)), tuple(patch), channels)

    @property
    def num_tokens(self) -> int:
        """N."""
        return math.prod(self.cells)

    @property
    def patch_values(self) -> int:
        """P: raw values in one patch."""
        return math.prod(self.patch) * self.channels

    def num_visible(self, mask_ratio: float) -> int:
        """K at a mask ratio: ``int(N * (1 - ratio))``, the rounding of MAE and Audio-MAE [source], at least 1."""
        return max(1, int(self.num_tokens * (1.0 - mask_ratio)))


@dataclass
class MaskedView:
    """One masked selection per clip. ``is_masked`` is the only polarity of the project: True = masked.

    ``visible_ids`` ``[B, K]`` and ``masked_ids`` ``[B, N-K]`` are token numbers; concatenated they are a permutation of
    ``0..N-1`` whose inverse is ``restore_ids`` ``[B, N]``.
    """

    visible_ids: Tensor
    masked_ids: Tensor
    restore_ids: Tensor

    @property
    def is_masked(self) -> Tensor:
        """``[B, N]`` bool."""
        return self.restore_ids >= self.visible_ids.shape[1]


@dataclass
class LossReport:
    """The loss of one micro-step.

    ``terms`` are unweighted scalars on the device, by name; ``weights`` their factors. ``scalars`` are logged only
    (number of negatives, accuracies). Every term is logged as it is and times its weight; ``total`` is their sum.
    """

    terms: dict[str, Tensor]
    weights: dict[str, float]
    scalars: dict[str, float | Tensor] = field(default_factory=dict)

    @property
    def total(self) -> Tensor:
        """The number that is differentiated."""
        return torch.stack([self.weights[name] * value for name, value in self.terms.items()]).sum()


@dataclass
class TrainState:
    """Where a run is: ``step`` optimizer updates done, ``samples_seen`` over all ranks, the loader's ``position``."""

    step: int = 0
    samples_seen: int = 0
    position: dict[str, Any] | None = None


def sample_seed(*parts: object) -> int:
    """A 63-bit seed that depends only on ``parts`` (e.g. run seed, epoch, clip key), on any machine and in any process."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def uniform_draws(seeds: Tensor, purpose: str, count: int) -> Tensor:
    """``[B, count]`` float32 uniform numbers in [0, 1), one independent stream per (sample seed, purpose).

    Drawn on the CPU whatever device the seeds are on, so that CPU and GPU runs, and any split of the clips over workers and
    ranks, see the same masks and crops.
    """
    rows = []
    for seed in seeds.tolist():
        generator = torch.Generator().manual_seed(sample_seed(seed, purpose))
        rows.append(torch.rand(count, generator=generator))
    return torch.stack(rows)


class UserError(ValueError):
    """Something the person at the keyboard can mend: one line with what is wrong, the value, and what to do.

    The command line prints it without a traceback and exits with code 2; everything else that escapes is our bug.
    """
