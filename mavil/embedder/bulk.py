"""Embeddings of many clips: windows as they are decoded, in batches through the model, row by row into parts on disk."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import torch
from torch.nn.functional import normalize

from mavil.data.loading.skips import DEVIATIONS, FEWEST_SKIPS
from mavil.data.sources.listing import Reject
from mavil.embedder.bulk_decoding import Piece as Decoded
from mavil.embedder.bulk_decoding import Place, Wanted, decoded
from mavil.embedder.bulk_inputs import AllClips, Found
from mavil.embedder.model import LoadedModel
from mavil.embedder.stored_files import Piece, Rows
from mavil.embedder.stored_parts import PartWriter, Settings
from mavil.embedder.windows import Span
from mavil.structs import Modality, Sample, UserError

Encode = Callable[[Modality, Sequence[np.ndarray]], np.ndarray]
"""Waveforms ``[L]`` or films ``[T, 3, H, Wd]`` to embeddings ``[n, Z]`` float32 before normalising."""


@dataclass(frozen=True)
class Work:
    """How clips are worked on; nothing here changes a number.

    Attributes:
        batch: windows of one modality that pass the model together.
        workers: processes that decode; 0 decodes in this one.
        seconds_per_clip: the longest that decoding may take.
        max_skip_ratio: share of clips that may be unusable.
    """

    batch: int = 16
    workers: int = 2
    seconds_per_clip: float = 60.0
    max_skip_ratio: float = 0.05


@dataclass
class _Clip:
    """A clip of which some windows are still to come, or to be embedded."""

    found: Found
    num_windows: int
    offset_seconds: float
    seconds: dict[Modality, float]
    vectors: dict[Place, np.ndarray] = field(default_factory=dict)

    def is_complete(self) -> bool:
        return len(self.vectors) == self.num_windows


class BulkEmbedder:
    """Embeds parts of the inputs and commits each when it is complete.

    Args:
        clips: all inputs.
        settings: what the rows are.
        wanted: which windows, as in ``settings``.
        encode: the model.
        writer: where the parts go.
        work: how.
    """

    def __init__(
        self,
        clips: AllClips,
        settings: Settings,
        wanted: Wanted,
        encode: Encode,
        writer: PartWriter,
        work: Work,
    ) -> None:
        self._clips, self._settings, self._wanted, self._work = clips, settings, wanted, work
        self._encode, self._writer = encode, writer
        self._open: dict[int, _Clip] = {}
        self._done: dict[int, dict[int, _Clip | Reject]] = defaultdict(dict)  # by part, by clip
        self._queues: dict[Modality, list[tuple[int, Place, np.ndarray]]] = {m: [] for m in settings.modalities}
        self._num_seen = self._num_rejected = 0

    def run(self, numbers: Sequence[int]) -> Iterator[int]:
        """Make these parts; yields, from time to time, the number of clips done so far.

        Raises:
            UserError: too many clips cannot be used, the disk is full, or as :func:`mavil.embedder.bulk_decoding.decoded`.
        """
        self._num_seen = self._num_rejected = 0
        pieces = decoded(self._read(numbers), self._wanted, self._work.workers, self._work.seconds_per_clip)
        try:
            for piece in pieces:
                self._take(piece)
                yield self._num_seen - len(self._open)
            for modality in self._queues:
                self._encode_queue(modality)
            yield self._num_seen
        finally:
            pieces.close()  # type: ignore[attr-defined]

    def rejects(self) -> list[Reject]:
        """Of parts that are not committed."""
        return [clip for part in self._done.values() for clip in part.values() if isinstance(clip, Reject)]

    def _read(self, numbers: Sequence[int]) -> Iterator[tuple[int, Found]]:
        size = self._settings.clips_per_part
        for first, last in _runs(numbers):
            begin, end = first * size, min((last + 1) * size, self._settings.clips_listed)
            yield from enumerate(self._clips.read(begin, end), start=begin)

    def _take(self, piece: Decoded) -> None:
        number = piece.number
        if piece.reject is not None:
            self._num_seen += number not in self._open
            self._num_rejected += 1
            self._open.pop(number, None)
            self._close(number, piece.reject)
            self._check_rejected(piece.reject)
            return
        if number not in self._open:
            assert piece.seconds is not None
            self._num_seen += 1
            self._open[number] = _Clip(piece.found, piece.num_windows, piece.offset_seconds, piece.seconds)
        for place, array in zip(piece.places, piece.arrays, strict=True):
            queue = self._queues[place.modality]
            queue.append((number, place, array))
            if len(queue) == self._work.batch:
                self._encode_queue(place.modality)

    def _encode_queue(self, modality: Modality) -> None:
        waiting = [entry for entry in self._queues[modality] if entry[0] in self._open]
        self._queues[modality] = []
        if not waiting:
            return
        vectors = self._encode(modality, [array for _, _, array in waiting])
        for (number, place, _), vector in zip(waiting, vectors, strict=True):
            clip = self._open[number]
            clip.vectors[place] = vector
            if clip.is_complete():
                self._close(number, self._open.pop(number))

    def _close(self, number: int, clip: _Clip | Reject) -> None:
        part = number // self._settings.clips_per_part
        self._done[part][number] = clip
        if len(self._done[part]) == self._settings.clips_in(part):
            in_order = [clip for _, clip in sorted(self._done.pop(part).items())]
            rows = [row for clip in in_order if isinstance(clip, _Clip) for row in self._rows(clip)]
            rejects = [clip for clip in in_order if isinstance(clip, Reject)]
            self._writer.write(part, _stacked(rows, self._settings.modalities), rejects)

    def _rows(self, clip: _Clip) -> Iterator[_Row]:
        windows = sorted(clip.vectors.items(), key=lambda window: (window[0].span, window[0].modality))
        if self._settings.rows == "clips":
            by_modality = {m: [vector for place, vector in windows if place.modality == m] for m in clip.seconds}
            # As the embedder does: the mean of what the model gives, normalised afterwards.
            vectors = {m: np.stack(own).astype(np.float64).mean(axis=0) for m, own in by_modality.items()}
            yield _Row(clip, Span(0.0, max(clip.seconds.values())), vectors)
            return
        for span, same in groupby(windows, key=lambda window: window[0].span):
            yield _Row(clip, span, {place.modality: vector for place, vector in same})

    def _check_rejected(self, latest: Reject) -> None:
        """As in training: beyond chance while it goes on, exactly at the end."""
        share = self._work.max_skip_ratio
        allowed = share * self._num_seen + DEVIATIONS * math.sqrt(share * (1 - share) * self._num_seen)
        if self._num_rejected > max(allowed, FEWEST_SKIPS - 1 if share else 0):
            raise too_many(self._num_rejected, self._num_seen, share, latest)


@dataclass(frozen=True)
class _Row:
    clip: _Clip
    span: Span
    vectors: dict[Modality, np.ndarray]


def too_many(num_rejected: int, num_seen: int, max_skip_ratio: float, example: Reject) -> UserError:
    """What to say where more clips than allowed cannot be used."""
    reason = f"{example.path}: {example.detail} ({example.cause})"
    return UserError(
        f"{num_rejected} of {num_seen} clips cannot be used, e.g. {reason}; left_out.csv names them: correct them, or allow "
        f"more with --max-skip-ratio (now {max_skip_ratio:g})"
    )


def encoder_of(model: LoadedModel) -> Encode:
    """What :class:`BulkEmbedder` asks of a model."""

    def encode(modality: Modality, arrays: Sequence[np.ndarray]) -> np.ndarray:
        tensors = [torch.from_numpy(array) for array in arrays]
        is_sound = modality == "audio"
        samples = [Sample("", 0, t if is_sound else None, None if is_sound else t) for t in tensors]
        return torch.stack([halves[modality] for halves in model.encoder.embed(samples)]).numpy()

    return encode


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First and last of each row of numbers without a gap, so that shards are read forward."""
    ordered = sorted(numbers)
    starts = [n for i, n in enumerate(ordered) if i == 0 or ordered[i - 1] != n - 1]
    ends = [n for i, n in enumerate(ordered) if i == len(ordered) - 1 or ordered[i + 1] != n + 1]
    return zip(starts, ends, strict=True)


def _stacked(rows: Sequence[_Row], widths: dict[Modality, int]) -> Piece:
    values = {m: np.zeros((len(rows), width), np.float32) for m, width in widths.items()}
    present = {m: np.array([m in row.vectors for row in rows], dtype=bool) for m in widths}
    for number, row in enumerate(rows):
        for modality, vector in row.vectors.items():
            values[modality][number] = vector
    for modality, matrix in values.items():
        values[modality] = normalize(torch.from_numpy(matrix), dim=1).numpy()
    starts = np.array([row.clip.offset_seconds + row.span.start for row in rows], np.float32)
    ends = np.array([row.clip.offset_seconds + row.span.end for row in rows], np.float32)
    found = [row.clip.found for row in rows]
    return Piece(Rows([f.key for f in found], [f.source for f in found], starts, ends, present), values)
