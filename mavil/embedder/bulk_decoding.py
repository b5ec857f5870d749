"""Many clips to the windows that a model looks at, decoded in worker processes that may hang or die.

A clip with more than :data:`MOST_WINDOWS` windows comes in pieces: its first look brings the first of them and the plan of the
rest, which is handed out behind the clips that are already at work. So memory is bounded however long a film is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest

import numpy as np

from mavil.data.deadline import HARD_LIMIT_FACTOR, TimeLimitExceeded, time_limit
from mavil.data.isolation import map_isolated
from mavil.data.media import Cause, DecodeError, FrameWindow, SoundWindow, decode_clip, probe
from mavil.data.shards.screening import FAILURES
from mavil.data.sources.listing import Reject
from mavil.embedder.bulk_inputs import Found, media_of
from mavil.embedder.windows import Span, spans_of
from mavil.structs import MODALITIES, Modality, UserError

MOST_WINDOWS = 8
"""Decoded at once; of MAViL's inputs (10 s of sound, 8 frames of 256 x 340) they take about 20 MB."""
LOOK_AHEAD_PER_WORKER = 4
"""Clips handed out beyond the first unfinished one, per worker; a decoded clip is large."""
_THING: dict[Modality, str] = {"audio": "sound", "video": "picture"}


@dataclass(frozen=True)
class Wanted:
    """What of a clip is looked at.

    Attributes:
        lengths: s of one input of each modality.
        frame_window: which frames one input of the picture has.
        hop_seconds: from one window to the next; ``None``: the window's length.
        backend: media decoder.
    """

    lengths: dict[Modality, float]
    frame_window: FrameWindow | None
    hop_seconds: float | None = None
    backend: str = "pyav"


@dataclass(frozen=True)
class Place:
    """One window of one modality, s from the beginning of what is decoded."""

    modality: Modality
    span: Span


@dataclass(frozen=True)
class Piece:
    """Some windows of a clip, or why the clip cannot be used.

    Attributes:
        number: of the clip among all.
        found: the clip.
        places: of the windows of this piece.
        arrays: what they hold: ``[L]`` float32 at 16 kHz, or ``[T, 3, H, Wd]`` uint8.
        num_windows: of the whole clip.
        rest: windows that are not decoded yet; empty but in the first piece.
        offset_seconds: where in the file what is decoded begins.
        seconds: length of each modality that the clip has.
        reject: why it cannot be used.
    """

    number: int
    found: Found
    places: tuple[Place, ...] = ()
    arrays: tuple[np.ndarray, ...] = ()
    num_windows: int = 0
    rest: tuple[Place, ...] = ()
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
    waiting: deque[tuple[int, Found, tuple[Place, ...]]] = deque()
    remaining = iter(clips)

    def tasks() -> Iterator[tuple[int, Found, tuple[Place, ...]]]:
        for number, found in remaining:
            while waiting:
                yield waiting.popleft()
            yield number, found, ()
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
            for first in range(0, len(piece.rest), MOST_WINDOWS):
                waiting.append((number, found, piece.rest[first : first + MOST_WINDOWS]))
            yield piece


def decode_piece(task: tuple[int, Found, tuple[Place, ...]], wanted: Wanted, seconds: float) -> Piece:
    """The first windows of a clip, or those of ``task``; in a worker process.

    Raises:
        UserError: the decoder is not installed.
    """
    number, found, places = task
    if found.reject is not None:
        return Piece(number, found, reject=found.reject)
    try:
        with time_limit(seconds, ends_process=False):  # whoever calls ends the process where this does not suffice
            media, offset = media_of(found)
            # What comes back needs no media any more.
            piece = Piece(number, replace(found, media=b"", clip=None), offset_seconds=offset)
            if not places:
                piece = _looked_at(piece, media, wanted)
                places = piece.places
            return replace(piece, places=places, arrays=tuple(_decode(media, places, wanted)))
    except DecodeError as error:
        return _rejected(number, found, error.cause, error.detail)
    except TimeLimitExceeded:
        return _rejected(number, found, "timeout", FAILURES["timeout"])


def _looked_at(piece: Piece, media: str | bytes, wanted: Wanted) -> Piece:
    """Lengths, and the places of the first windows and of the rest."""
    tracks = probe(media).track_seconds
    seconds = {m: tracks[m] for m in MODALITIES if m in wanted.lengths and m in tracks}
    if not seconds:
        lacking = [m for m in MODALITIES if m in wanted.lengths]
        cause: Cause = "empty" if len(lacking) > 1 else ("no_audio" if lacking == ["audio"] else "no_video")
        raise DecodeError(cause, f"it has no {' and no '.join(_THING[m] for m in lacking)}")
    try:
        places = [
            Place(m, span)
            for m, length in seconds.items()
            for span in spans_of(length, wanted.lengths[m], wanted.hop_seconds, piece.found.source)
        ]
    except UserError as error:
        raise DecodeError("too_large", str(error)) from None
    places.sort(key=lambda place: (place.span, place.modality))
    return replace(
        piece,
        places=tuple(places[:MOST_WINDOWS]),
        rest=tuple(places[MOST_WINDOWS:]),
        num_windows=len(places),
        seconds=seconds,
    )


def _decode(media: str | bytes, places: tuple[Place, ...], wanted: Wanted) -> list[np.ndarray]:
    """One array per place. Sound and picture are taken together where there are both, to open the file half as often."""
    numbers: dict[Modality, list[int]] = {m: [i for i, p in enumerate(places) if p.modality == m] for m in MODALITIES}
    arrays: dict[int, np.ndarray] = {}
    for heard, seen in zip_longest(numbers["audio"], numbers["video"]):
        sound = None if heard is None else SoundWindow(places[heard].span.start, wanted.lengths["audio"])
        frames = None if seen is None else wanted.frame_window
        frames_start = 0.0 if seen is None else places[seen].span.start
        waveform, images = decode_clip(media, sound, frames, frames_start, wanted.backend)
        # As arrays: between processes tensors would travel as shared memory, and files stay open for each of them.
        if waveform is not None:
            arrays[heard] = waveform.numpy()
        if images is not None:
            arrays[seen] = images.numpy()
    return [arrays[i] for i in range(len(places))]


def _rejected(number: int, found: Found, cause: str, detail: str) -> Piece:
    return Piece(number, replace(found, media=b"", clip=None), reject=Reject(found.key, found.source, cause, detail))
