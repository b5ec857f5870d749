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


@dataclass(frozen=True)
class TokenGrid:
    """How one modality is cut into patches.

    ``cells`` counts patches per axis: ``(s, m)`` for audio, ``(t, h, w)`` for video. ``patch`` is the size of one patch
    per axis, in the same order. Tokens are numbered row-major, time first. ``axes`` says which axis of the input each of them
    is where that order is another one; ``None``: the input's own.
    """

    cells: tuple[int, ...]
    patch: tuple[int, ...]
    channels: int
    axes: tuple[int, ...] | None = None

    @classmethod
    def of(cls, size: tuple[int, ...], patch: tuple[int, ...], channels: int) -> TokenGrid:
        """Divide an input of ``size`` into whole patches.

        Raises:
            ValueError: an axis is not a multiple of its patch size.
        """
        if any(s % p for s, p in zip(size, patch, strict=True)):
            raise ValueError(f"an input of {size} cannot be cut into patches of {patch}: every axis must be a multiple")
        return cls(tuple(s // p for s, p in zip(size, patch, strict=True)), tuple(patch), channels)

    def reordered(self, axes: tuple[int, ...]) -> TokenGrid:
        """The same cut with the input's axes taken in another order: ``(1, 0)`` numbers audio tokens mel band by mel band."""
        cells, patch = (tuple(values[axis] for axis in axes) for values in (self.cells, self.patch))
        return TokenGrid(cells, patch, self.channels, axes)

    @property
    def size(self) -> tuple[int, ...]:
        """Of the input per axis, in the input's own order."""
        sizes = [cells * patch for cells, patch in zip(self.cells, self.patch, strict=True)]
        order = self.axes or tuple(range(len(sizes)))
        return tuple(sizes[order.index(axis)] for axis in range(len(sizes)))

    @property
    def time_axis(self) -> int:
        """Which axis of ``cells`` is time: the first, unless the grid is reordered."""
        return 0 if self.axes is None else self.axes.index(0)

    @property
    def num_tokens(self) -> int:
        """N."""
        return math.prod(self.cells)

    @property
    def patch_values(self) -> int:
        """P: raw values in one patch."""
        return math.prod(self.patch) * self.channels

    def num_visible(self, mask_ratio: float) -> int:
        """K at a mask ratio: ``int(N * (1 - ratio))``, the rounding of MAE and Audio-MAE [source].

        Raises:
            ValueError: nothing would be left visible.
        """
        num_visible = int(self.num_tokens * (1.0 - mask_ratio))
        if num_visible == 0:
            raise ValueError(
                f"a mask ratio of {mask_ratio} of {self.num_tokens} tokens leaves no token visible: choose at most "
                f"{math.floor(1000 * (1 - 1 / self.num_tokens)) / 1000}"
            )
        return num_visible


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
class MaskedViews:
    """The views of one modality: those whose hidden tokens are predicted, and those whose pooled tokens are compared.

    A view may stand in both lists; it is then the same object, and is encoded once.
    """

    predicted: list[MaskedView]
    compared: list[MaskedView] = field(default_factory=list)

    def distinct(self) -> list[MaskedView]:
        """Each view once: the predicted ones first."""
        others = [view for view in self.compared if not any(view is one for one in self.predicted)]
        return [*self.predicted, *others]


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


class UserError(ValueError):
    """Something the person at the keyboard can mend: one line with what is wrong, the value, and what to do.

    The command line prints it without a traceback and exits with code 2; everything else that escapes is our bug.
    """
