"""Embeddings of many clips: windows as they are decoded, in batches through the model, row by row into parts on disk."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from mavil.data.loading.skips import DEVIATIONS, FEWEST_SKIPS
from mavil.data.sources.listing import Reject
from mavil.embedder.bulk_decoding import Piece as Decoded
from mavil.embedder.bulk_decoding import decoded
from mavil.embedder.bulk_inputs import AllClips, Found
from mavil.embedder.bulk_rows import EmbeddedClip, Row, row_of_clip, rows_of_windows, stacked
from mavil.embedder.bulk_windows import Pair, Place, Wanted
from mavil.embedder.encoding import Halves
from mavil.embedder.model import LoadedModel
from mavil.embedder.stored_parts import PartWriter, Settings
from mavil.embedder.windows import Span
from mavil.structs import Modality, Sample, UserError

Encode = Callable[[Modality, Sequence[np.ndarray]], np.ndarray]
"""Waveforms ``[L]`` or films ``[T, 3, H, Wd]`` to embeddings ``[n, Z]`` float32 before normalising."""
EncodeTogether = Callable[[Sequence[Sample]], list[Halves]]
"""Windows of both modalities to the halves of their fused embeddings, before normalising."""


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


class BulkEmbedder:
    """Embeds parts of the inputs and commits each when it is complete.

    Args:
        clips: all inputs.
        settings: what the rows are.
        wanted: which windows, as in ``settings``.
        encode: the model.
        writer: where the parts go.
        work: how.
        encode_together: the model too; needed where ``settings`` ask for fused embeddings.
    """

    def __init__(
        self,
        clips: AllClips,
        settings: Settings,
        wanted: Wanted,
        encode: Encode,
        writer: PartWriter,
        work: Work,
        encode_together: EncodeTogether | None = None,
    ) -> None:
        self._clips, self._settings, self._wanted, self._work = clips, settings, wanted, work
        self._encode, self._encode_together, self._writer = encode, encode_together, writer
        self._open: dict[int, EmbeddedClip] = {}
        self._done: dict[int, dict[int, EmbeddedClip | Reject]] = defaultdict(dict)  # by part, by clip
        self._queues: dict[Modality, list[tuple[int, Place, np.ndarray]]] = {m: [] for m in settings.modalities}
        self._pairs: list[tuple[int, Span, Pair]] = []
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
            self._encode_pairs()
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
            self._open[number] = EmbeddedClip(piece.found, piece.num_windows, piece.offset_seconds, piece.seconds)
        for place, array in zip(piece.places, piece.arrays, strict=True):
            queue = self._queues[place.modality]
            queue.append((number, place, array))
            if len(queue) == self._work.batch:
                self._encode_queue(place.modality)
        for span, pair in zip(piece.spans, piece.pairs, strict=True):
            self._pairs.append((number, span, pair))
            if len(self._pairs) == self._work.batch:
                self._encode_pairs()

    def _encode_queue(self, modality: Modality) -> None:
        waiting = [entry for entry in self._queues[modality] if entry[0] in self._open]
        self._queues[modality] = []
        if not waiting:
            return
        vectors = self._encode(modality, [array for _, _, array in waiting])
        for (number, place, _), vector in zip(waiting, vectors, strict=True):
            self._open[number].vectors[place] = vector
            self._close_if_complete(number)

    def _encode_pairs(self) -> None:
        waiting = [entry for entry in self._pairs if entry[0] in self._open]
        self._pairs = []
        if not waiting:
            return
        assert self._encode_together is not None
        embedded = self._encode_together([_sample(*pair) for _, _, pair in waiting])
        for (number, span, _), halves in zip(waiting, embedded, strict=True):
            self._open[number].halves[span] = halves
            self._close_if_complete(number)

    def _close_if_complete(self, number: int) -> None:
        if self._open[number].is_complete():
            self._close(number, self._open.pop(number))

    def _close(self, number: int, clip: EmbeddedClip | Reject) -> None:
        part = number // self._settings.clips_per_part
        self._done[part][number] = clip
        if len(self._done[part]) == self._settings.clips_in(part):
            in_order = [clip for _, clip in sorted(self._done.pop(part).items())]
            rows = [row for clip in in_order if isinstance(clip, EmbeddedClip) for row in self._rows(clip)]
            rejects = [clip for clip in in_order if isinstance(clip, Reject)]
            self._writer.write(part, stacked(rows, self._settings.widths), rejects)

    def _rows(self, clip: EmbeddedClip) -> Iterable[Row]:
        halves = self._settings.fused
        return [row_of_clip(clip, halves)] if self._settings.rows == "clips" else rows_of_windows(clip, halves)

    def _check_rejected(self, latest: Reject) -> None:
        """As in training: beyond chance while it goes on, exactly at the end."""
        share = self._work.max_skip_ratio
        allowed = share * self._num_seen + DEVIATIONS * math.sqrt(share * (1 - share) * self._num_seen)
        if self._num_rejected > max(allowed, FEWEST_SKIPS - 1 if share else 0):
            raise too_many(self._num_rejected, self._num_seen, share, latest)


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
        samples = [_sample(array, None) if modality == "audio" else _sample(None, array) for array in arrays]
        return torch.stack([halves[modality] for halves in model.encoder.embed(samples)]).numpy()

    return encode


def encoder_together_of(model: LoadedModel) -> EncodeTogether:
    """What :class:`BulkEmbedder` asks of a model for fused embeddings."""
    return partial(model.encoder.embed, joint=True)


def _sample(sound: np.ndarray | None, frames: np.ndarray | None) -> Sample:
    waveform, images = (None if array is None else torch.from_numpy(array) for array in (sound, frames))
    return Sample("", 0, waveform, images)


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First and last of each row of numbers without a gap, so that shards are read forward."""
    ordered = sorted(numbers)
    starts = [n for i, n in enumerate(ordered) if i == 0 or ordered[i - 1] != n - 1]
    ends = [n for i, n in enumerate(ordered) if i == len(ordered) - 1 or ordered[i + 1] != n + 1]
    return zip(starts, ends, strict=True)
