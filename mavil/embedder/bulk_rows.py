"""The embeddings of clips' windows, as they come from the model, to the rows that are stored."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn.functional import normalize

from mavil.embedder import results
from mavil.embedder.bulk_inputs import Found
from mavil.embedder.bulk_windows import Place
from mavil.embedder.encoding import Halves
from mavil.embedder.stored_files import FUSED, Column, Piece, Rows
from mavil.embedder.windows import Span
from mavil.structs import Modality


@dataclass
class EmbeddedClip:
    """A clip of which some windows are still to come, or to be embedded.

    Attributes:
        found: the clip.
        num_windows: of one modality and of both.
        offset_seconds: where in the file it begins.
        seconds: length of each modality that it has.
        vectors: ``[Z]`` of windows of one modality, before normalising.
        halves: likewise of windows of both.
    """

    found: Found
    num_windows: int
    offset_seconds: float
    seconds: dict[Modality, float]
    vectors: dict[Place, np.ndarray] = field(default_factory=dict)
    halves: dict[Span, Halves] = field(default_factory=dict)

    def is_complete(self) -> bool:
        """Whether all its windows are embedded."""
        return len(self.vectors) + len(self.halves) == self.num_windows


@dataclass(frozen=True)
class Row:
    """One row: a span of a clip, and ``[Z]`` of the columns that it has, before normalising."""

    clip: EmbeddedClip
    span: Span
    vectors: dict[Column, np.ndarray]


def rows_of_windows(clip: EmbeddedClip, halves: Mapping[Modality, int]) -> Iterator[Row]:
    """A row for each span, in the order of time.

    Args:
        clip: a complete one.
        halves: widths of the halves of what is fused.
    """
    by_span: dict[Span, dict[Column, np.ndarray]] = defaultdict(dict)
    for place, vector in clip.vectors.items():
        by_span[place.span][place.modality] = vector
    for span, own in clip.halves.items():
        (by_span[span][FUSED],) = results.windowed([results.Row(span, own)], halves, normalise=False).values.numpy()
    for span in sorted(by_span):
        yield Row(clip, span, by_span[span])


def row_of_clip(clip: EmbeddedClip, halves: Mapping[Modality, int]) -> Row:
    """One row for all windows: as the embedder does, the mean of what the model gives, normalised afterwards.

    Arguments as in :func:`rows_of_windows`.
    """
    windows = sorted(clip.vectors.items(), key=lambda window: window[0].span)
    vectors: dict[Column, np.ndarray] = {}
    for modality in clip.seconds:
        own = [vector for place, vector in windows if place.modality == modality]
        vectors[modality] = np.stack(own).astype(np.float64).mean(axis=0)
    if clip.halves:
        fused = [results.Row(span, clip.halves[span]) for span in sorted(clip.halves)]
        vectors[FUSED] = results.means_of([fused], halves, normalise=False)[0].numpy()
    return Row(clip, Span(0.0, max(clip.seconds.values())), vectors)


def stacked(rows: Sequence[Row], widths: Mapping[Column, int]) -> Piece:
    """The rows as they are stored, normalised; ``widths``: Z by column."""
    values = {column: np.zeros((len(rows), width), np.float32) for column, width in widths.items()}
    present = {column: np.array([column in row.vectors for row in rows], dtype=bool) for column in widths}
    for number, row in enumerate(rows):
        for column, vector in row.vectors.items():
            values[column][number] = vector
    for column, matrix in values.items():
        values[column] = normalize(torch.from_numpy(matrix), dim=1).numpy()
    starts = np.array([row.clip.offset_seconds + row.span.start for row in rows], np.float32)
    ends = np.array([row.clip.offset_seconds + row.span.end for row in rows], np.float32)
    found = [row.clip.found for row in rows]
    return Piece(Rows([f.key for f in found], [f.source for f in found], starts, ends, present), values)
