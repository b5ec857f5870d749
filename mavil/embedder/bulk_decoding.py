"""Many clips to the windows that a model looks at, decoded in worker processes that may hang or die.

A clip with more windows than :data:`~mavil.embedder.bulk_windows.MOST_WINDOWS` comes in pieces: its first look brings the first
of them and the plan of the rest, which is handed out behind the clips that are already at work. So memory is bounded however long
a film is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from mavil.data.deadline import HARD_LIMIT_FACTOR, TimeLimitExceeded, time_limit
from mavil.data.isolation import map_isolated
from mavil.data.media import DecodeError
from mavil.data.shards.screening import FAILURES
from mavil.data.sources.listing import Reject
from mavil.embedder.bulk_inputs import Found, media_of
from mavil.embedder.bulk_windows import Pair, Place, Wanted, Windows, decode_windows, windows_of
from mavil.embedder.windows import Span
from mavil.structs import Modality

LOOK_AHEAD_PER_WORKER = 4
"""Clips handed out beyond the first unfinished one, per worker; a decoded clip is large."""
Task = tuple[int, Found, Windows | None]
"""A clip's number, the clip, and which of its windows; ``None``: that must be found out first."""


@dataclass(frozen=True)
class Piece:
    """Some windows of a clip, or why the clip cannot be used.

    Attributes:
        number: of the clip among all.
        found: the clip.
        places: of the windows of one modality of this piece.
        arrays: what they hold: ``[L]`` float32 at 16 kHz, or ``[T, 3, H, Wd]`` uint8.
        spans: of the windows of both modalities of this piece.
        pairs: what they hold.
        num_windows: of the whole clip, of both kinds.
        rest: windows that are not decoded yet; empty but in the first piece.
        offset_seconds: where in the file what is decoded begins.
        seconds: length of each modality that the clip has.
        reject: why it cannot be used.
    """

    number: int
    found: Found
    places: tuple[Place, ...] = ()
    arrays: tuple[np.ndarray, ...] = ()
    spans: tuple[Span, ...] = ()
    pairs: tuple[Pair, ...] = ()
    num_windows: int = 0
    rest: tuple[Windows, ...] = ()
    offset_seconds: float = 0.0
    seconds: dict[Modality, float] | None = None
    reject: Reject | None = None


def decoded(
    clips: Iterable[tuple[int, Found]], wanted: Wanted, workers: int, seconds_per_clip: float
) -> Iterator[Piece]:
    """All windows of all clips, about in their order: later pieces of long clips come behind the first ones of others.

    Args:
        clips: with their numbers.
        wanted: which windows.
        workers: processes; 0 decodes in this one.
        seconds_per_clip: the longest that one piece may take.

    Raises:
        UserError: the decoder is not installed, or the shards can no longer be reached.
    """
    waiting: deque[Task] = deque()
    remaining = iter(clips)

    def tasks() -> Iterator[Task]:
        for number, found in remaining:
            while waiting:
                yield waiting.popleft()
            yield number, found, None
        while waiting:
            yield waiting.popleft()

    work = partial(decode_piece, wanted=wanted, seconds=seconds_per_clip)
    failed: set[int] = set()
    is_first = True
    while is_first or waiting:
        is_first = False
        outcomes = map_isolated(
            work,
            tasks(),
            workers=workers,
            seconds_per_item=HARD_LIMIT_FACTOR * seconds_per_clip,
            description="",
            show_progress=False,
            look_ahead=LOOK_AHEAD_PER_WORKER,
        )
        for outcome in outcomes:
            number, found, _ = outcome.item
            piece = outcome.value or _rejected(number, found, str(outcome.failure), FAILURES[str(outcome.failure)])
            if number in failed:
                continue  # another piece of the clip told why
            if piece.reject is not None:
                failed.add(number)
            waiting.extend((number, found, windows) for windows in piece.rest)
            yield piece


def decode_piece(task: Task, wanted: Wanted, seconds: float) -> Piece:
    """The first windows of a clip, or those of ``task``; in a worker process.

    Raises:
        UserError: the decoder is not installed.
    """
    number, found, windows = task
    if found.reject is not None:
        return Piece(number, found, reject=found.reject)
    try:
        with time_limit(seconds, ends_process=False):  # whoever calls ends the process where this does not suffice
            media, offset = media_of(found)
            # What comes back needs no media any more.
            piece = Piece(number, replace(found, media=b"", clip=None), offset_seconds=offset)
            if windows is None:
                windows, *rest = all_windows = windows_of(media, found.source, wanted)
                num_windows = sum(len(some.places) + len(some.spans) for some in all_windows)
                piece = replace(piece, num_windows=num_windows, rest=tuple(rest), seconds=windows.seconds)
            arrays, pairs = decode_windows(media, found.source, windows, wanted)
            return replace(piece, places=windows.places, arrays=tuple(arrays), spans=windows.spans, pairs=tuple(pairs))
    except DecodeError as error:
        return _rejected(number, found, error.cause, error.detail)
    except TimeLimitExceeded:
        return _rejected(number, found, "timeout", FAILURES["timeout"])


def _rejected(number: int, found: Found, cause: str, detail: str) -> Piece:
    return Piece(number, replace(found, media=b"", clip=None), reject=Reject(found.key, found.source, cause, detail))
