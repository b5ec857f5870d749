"""Clips to embeddings: window by window through the model, some at a time, and put together again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from torch import Tensor

from mavil.embedder.encoding import Halves, WindowEncoder
from mavil.embedder.reading import Clip, OpenClip, Reader, Side, is_media
from mavil.embedder.results import Row, means_of, windowed
from mavil.embedder.windows import Span, Windowed
from mavil.structs import Modality, Sample, UserError

WINDOWS_AT_ONCE = 8
"""Decoded, and given to the model in one call: what bounds the memory of long clips and of lists."""


class Media(NamedTuple):
    """What is to be embedded, with the rates of what is not a file.

    Attributes:
        clips: some.
        rate, frames_per_second: Hz.
        are_listed: whether messages name their number.
    """

    clips: Sequence[Clip | Side]
    rate: float | None = None
    frames_per_second: float | None = None
    are_listed: bool = False

    @classmethod
    def of(cls, clips: Clip | Side | list[Any], rate: float | None, frames_per_second: float | None) -> Media:
        """One clip, or those of a list.

        Raises:
            UserError: an empty list.
        """
        if not isinstance(clips, list):
            return cls([clips], rate, frames_per_second)
        if not clips:
            raise UserError("an empty list: give at least one clip")
        return cls(clips, rate, frames_per_second, are_listed=True)

    def opened(self, reader: Reader) -> Iterator[OpenClip]:
        """One after the other, when it is asked for.

        Raises:
            UserError: as :meth:`Reader.open`.
        """
        for number, clip in enumerate(self.clips):
            has_path = is_media(clip) and not isinstance(clip, bytes)
            name = None if has_path else f"clip {number} of the list" if self.are_listed else "the clip"
            yield reader.open(clip, name, self.rate, self.frames_per_second)


class ClipEncoder(NamedTuple):
    """How the clips of one call are embedded.

    Attributes:
        encoder: embeds windows.
        widths: values of an embedding by modality.
        joint: see :meth:`WindowEncoder.embed`.
        hop_seconds: from one window to the next; ``None``: the length of a window.
        normalise: to length 1.
    """

    encoder: WindowEncoder
    widths: Mapping[Modality, int]
    joint: bool
    hop_seconds: float | None
    normalise: bool

    def means(self, media: Media, reader: Reader) -> Tensor:
        """``[B, Z]``: of each clip the mean over its windows."""
        return means_of(self._rows(media, reader), self.widths, self.normalise)

    def windows(self, media: Media, reader: Reader) -> list[Windowed[Tensor]]:
        """Of each clip all windows."""
        return [windowed(rows, self.widths, self.normalise) for rows in self._rows(media, reader)]

    def _rows(self, media: Media, reader: Reader) -> list[list[Row]]:
        """Of each clip its windows in order."""
        rows: list[list[Row]] = [[] for _ in media.clips]
        pending = self._decoded(media, reader)
        while some := list(islice(pending, WINDOWS_AT_ONCE)):
            embedded: list[Halves] = self.encoder.embed([sample for _, _, sample in some], self.joint)
            for (number, span, _), halves in zip(some, embedded, strict=True):
                rows[number].append(Row(span, halves))
        return rows

    def _decoded(self, media: Media, reader: Reader) -> Iterator[tuple[int, Span, Sample]]:
        """Every window of every clip, with the clip's number; only a few are in memory."""
        for number, clip in enumerate(media.opened(reader)):
            spans = clip.spans(self.hop_seconds)
            for span, sample in zip(spans, clip.samples(spans), strict=True):
                yield number, span, sample
