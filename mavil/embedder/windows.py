"""Where the windows of a clip lie, and what comes back for each of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from torch import Tensor

from mavil.structs import Modality, UserError

REST_SHARE = 0.05
"""Of a window, or of the step between two: what is left of a clip beyond the last window and is shorter gets none of its own.
Encoders of sound and picture leave a file some hundredths of a second longer than what went in [our choice]."""
MAX_WINDOWS = 100_000
"""Of one clip: a day in windows of 4 s has 21,600 [our choice]."""

Array = TypeVar("Array", Tensor, np.ndarray)
"""What a model was loaded to give back."""


class Span(NamedTuple):
    """A piece of a clip, s from its beginning."""

    start: float
    end: float


@dataclass(frozen=True)
class Windowed(Generic[Array]):
    """The embeddings of one clip, window by window, in the order of time.

    Attributes:
        values: ``[n, Z]`` float32, a torch tensor or a numpy array as the model was loaded for; L2-normalised unless
            ``normalise=False``; zeros where nothing is present.
        starts, ends: ``[n]`` float32 likewise, s from the clip's beginning.
        present: ``[n]`` bool likewise, by modality: which of the windows have it.
    """

    values: Array
    starts: Array
    ends: Array
    present: Mapping[Modality, Array] = field(default_factory=dict)


def spans_of(duration_seconds: float, length_seconds: float, hop_seconds: float | None, name: str) -> list[Span]:
    """The windows of a clip: one after the other from its beginning, the last one ends where the clip does.

    A clip that is not longer has one, which ends with the clip; so has one that is longer by less than :data:`REST_SHARE`, in
    its middle, as evaluation takes it (:meth:`mavil.data.loading.samples.ClipDecoder.starts`).

    Args:
        duration_seconds: of the clip.
        length_seconds: of a window.
        hop_seconds: from one window to the next; ``None``: the length of a window.
        name: what to call the clip in messages.

    Raises:
        UserError: the hop is no positive number, or there would be more than :data:`MAX_WINDOWS` windows.
    """
    hop = length_seconds if hop_seconds is None else hop_seconds
    if isinstance(hop, bool) or not isinstance(hop, (int, float)) or not 0 < hop < math.inf:
        raise UserError(f"hop_seconds={hop_seconds!r}: give the seconds from one window to the next, more than 0")
    last = duration_seconds - length_seconds
    further = math.ceil((last - REST_SHARE * min(length_seconds, hop)) / hop)
    if further >= MAX_WINDOWS:
        raise UserError(
            f"{name}: {duration_seconds:g} s in steps of {hop:g} s are {further + 1} windows, more than {MAX_WINDOWS}: give a "
            "larger hop_seconds, or a shorter clip"
        )
    if further <= 0:
        start = max(0.0, last) / 2
        return [Span(start, min(start + length_seconds, duration_seconds))]
    starts = [number * hop for number in range(further)]
    return [Span(start, start + length_seconds) for start in [*starts, last]]


def places_within(span: Span, lengths: Mapping[Modality, float]) -> dict[Modality, float]:
    """Second of the clip at which each modality of a window begins: the shorter one lies in the middle of the longer.

    As evaluation places them, so that sound and picture are of the same moment.

    Args:
        span: the window.
        lengths: of one input of each modality that the clip has, s.
    """
    length = span.end - span.start
    return {modality: span.start + max(0.0, length - own) / 2 for modality, own in lengths.items()}
