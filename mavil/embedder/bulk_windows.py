"""A clip's media to the windows that a model looks at, as arrays.

Windows of one modality are decoded one by one. Windows of both together are those of ``m.embed``: its own
:class:`~mavil.embedder.reading.OpenClip` places and takes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TypeVar

import numpy as np

from mavil.data.media import Cause, DecodeError, FrameWindow, SoundWindow, decode_clip, probe
from mavil.embedder.reading import TAKEN_AT_ONCE, OpenClip, Reader
from mavil.embedder.windows import Span, spans_of
from mavil.structs import MODALITIES, Modality, UserError

MOST_WINDOWS = TAKEN_AT_ONCE
"""Decoded at once; of MAViL's inputs (10 s of sound, 8 frames of 256 x 340) they take about 20 MB. As many as ``m.embed`` takes,
so that the sound of windows of both is decoded in the same stretches as there."""
_THING: dict[Modality, str] = {"audio": "sound", "video": "picture"}
Pair = tuple[np.ndarray | None, np.ndarray | None]
"""Sound and frames of one window of both; ``None`` for what the window lacks."""
_Start = tuple[Modality, float]
"""A modality, and where a window of it begins, s."""
T = TypeVar("T")


@dataclass(frozen=True)
class Wanted:
    """What of a clip is looked at.

    Attributes:
        lengths: s of one input of each modality.
        frame_window: which frames one input of the picture has.
        hop_seconds: from one window to the next; ``None``: the window's length.
        backend: media decoder.
        fused: whether windows of both modalities together are looked at too.
    """

    lengths: dict[Modality, float]
    frame_window: FrameWindow | None
    hop_seconds: float | None = None
    backend: str = "pyav"
    fused: bool = False


@dataclass(frozen=True)
class Place:
    """One window of one modality, s from the beginning of what is decoded."""

    modality: Modality
    span: Span


@dataclass(frozen=True)
class Windows:
    """Which windows of a clip.

    Attributes:
        seconds: where each modality ends that is wanted and there.
        places: some of one modality.
        spans: some of both, s from the beginning of what is decoded.
    """

    seconds: dict[Modality, float]
    places: tuple[Place, ...] = ()
    spans: tuple[Span, ...] = ()


def windows_of(media: str | bytes, name: str, wanted: Wanted) -> list[Windows]:
    """All windows of a clip, at most :data:`MOST_WINDOWS` together.

    Where that is not all of them those of both are by themselves, from the first on.

    Raises:
        DecodeError: it is no media file, has nothing that is wanted, or too many windows.
    """
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
            for span in spans_of(length, wanted.lengths[m], wanted.hop_seconds, name)
        ]
        spans = _together(media, name, wanted, seconds).spans(wanted.hop_seconds) if wanted.fused else []
    except UserError as error:
        raise DecodeError("too_large", str(error)) from None
    places.sort(key=lambda place: (place.span, place.modality))
    if len(places) + len(spans) <= MOST_WINDOWS:
        return [Windows(seconds, tuple(places), tuple(spans))]
    single = [Windows(seconds, places=tuple(some)) for some in _in_pieces(places)]
    return single + [Windows(seconds, spans=tuple(some)) for some in _in_pieces(spans)]


def decode_windows(
    media: str | bytes, name: str, windows: Windows, wanted: Wanted
) -> tuple[list[np.ndarray], list[Pair]]:
    """An array per place and a pair per span; what both ask for is decoded once.

    Raises:
        DecodeError: one cannot be decoded.
        UserError: the decoder is not installed.
    """
    clip = _together(media, name, wanted, windows.seconds)
    # As arrays: between processes tensors would travel as shared memory, and files stay open for each of them.
    pairs: list[Pair] = [
        (None if sound is None else sound.numpy(), None if frames is None else frames.numpy())
        for sound, frames in (clip.take(windows.spans) if windows.spans else [])
    ]
    known = {
        (modality, start): array
        for span, pair in zip(windows.spans, pairs, strict=True)
        for modality, start in clip.places(span).items()
        if (array := pair[MODALITIES.index(modality)]) is not None
    }
    return _arrays(media, windows.places, known, wanted), pairs


def _together(media: str | bytes, name: str, wanted: Wanted, seconds: dict[Modality, float]) -> OpenClip:
    """The clip as ``m.embed`` opens it."""
    return Reader(wanted.lengths, wanted.frame_window, wanted.backend).known(media, name, seconds)


def _arrays(
    media: str | bytes, places: Sequence[Place], known: Mapping[_Start, np.ndarray], wanted: Wanted
) -> list[np.ndarray]:
    """One array per place. Sound and picture are taken together where there are both, to open the file half as often."""
    starts: list[_Start] = [(place.modality, place.span.start) for place in places]
    arrays = {i: known[start] for i, start in enumerate(starts) if start in known}
    left = {m: [i for i, (own, _) in enumerate(starts) if own == m and i not in arrays] for m in MODALITIES}
    for heard, seen in zip_longest(left["audio"], left["video"]):
        sound = None if heard is None else SoundWindow(places[heard].span.start, wanted.lengths["audio"])
        frames = None if seen is None else wanted.frame_window
        frames_start = 0.0 if seen is None else places[seen].span.start
        waveform, images = decode_clip(media, sound, frames, frames_start, wanted.backend)
        if waveform is not None:
            arrays[heard] = waveform.numpy()
        if images is not None:
            arrays[seen] = images.numpy()
    return [arrays[i] for i in range(len(places))]


def _in_pieces(windows: list[T]) -> list[list[T]]:
    return [windows[first : first + MOST_WINDOWS] for first in range(0, len(windows), MOST_WINDOWS)]
