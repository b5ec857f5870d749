"""Clips to the windows that a model looks at. Nothing here knows the model, so that other processes can do it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from mavil.config import Recipe, VideoBranch
from mavil.data.media import DecodeError, FrameWindow, SoundWindow, decode_clip, probe
from mavil.embedder.arrays import film_frames, frames_at, mono_sound
from mavil.embedder.windows import Span, places_within, spans_of
from mavil.structs import MODALITIES, SAMPLE_RATE, Modality, Sample, UserError

_THING: dict[Modality, str] = {"audio": "sound", "video": "picture"}
Side = str | os.PathLike[str] | bytes | Tensor | np.ndarray
"""Path or bytes of a media file, or the samples or frames themselves."""
Clip = str | os.PathLike[str] | bytes | tuple[Side | None, Side | None]
"""Path or bytes of a media file, or (sound, film)."""
Starts = Mapping[Modality, float]
"""Second of the clip at which each modality of a window begins."""
Taken = tuple[Tensor | None, Tensor | None]
"""The waveform ``[L]`` and the frames ``[T, 3, H, Wd]`` of a window; ``None`` where nothing is."""
TAKEN_AT_ONCE = 8
"""Windows whose sound is decoded in one piece: opening a WAV file takes as long as decoding ten seconds of it."""


class _Tracks(Protocol):
    """Where a clip's sound and pictures come from."""

    @property
    def seconds(self) -> Mapping[Modality, float]:
        """Where each track ends, of those that are there."""

    def take(self, windows: Sequence[Starts]) -> list[Taken]:
        """What is in some windows of one clip, of the modalities that each asks for."""


@dataclass(frozen=True)
class Reader:
    """What of a clip is looked at, and how it is decoded; it can be pickled.

    Attributes:
        lengths: s of one input of each modality that is wanted.
        frame_window: which frames one input of the picture has.
        backend: media decoder.
    """

    lengths: Mapping[Modality, float]
    frame_window: FrameWindow | None = None
    backend: str = "pyav"

    @classmethod
    def of(cls, recipe: Recipe, modalities: tuple[Modality, ...] | None = None) -> Reader:
        """As evaluation reads clips with this recipe; ``modalities``: only these."""
        wanted = [m for m in recipe.modalities if modalities is None or m in modalities]
        lengths = {m: branch.seconds for m in MODALITIES if m in wanted and (branch := recipe.branch(m)) is not None}
        video, frame_window = recipe.video, None
        if "video" in lengths and isinstance(video, VideoBranch):
            frame_window = FrameWindow(video.num_frames, video.frames_per_second, video.decode_short_side)
        return cls(lengths, frame_window, recipe.data.backend)

    @property
    def window_seconds(self) -> float:
        """Of one window of a clip with everything that is wanted."""
        return max(self.lengths.values())

    def open(
        self, clip: Any, name: str | None = None, rate: float | None = None, frames_per_second: float | None = None
    ) -> OpenClip:
        """Look at a clip; files are decoded later, window by window.

        Args:
            clip: path or bytes of a media file; a waveform where only sound is wanted, a film where only pictures are; else a
                pair (sound, film), one of them perhaps ``None``. A file in a pair gives only that side.
            name: what to call it in messages; default: the path.
            rate, frames_per_second: Hz of waveforms and films in memory; files know their own.

        Raises:
            UserError: not a media file, nothing of what is wanted in it, or as :mod:`mavil.embedder.arrays`.
        """
        name = name or (str(clip) if isinstance(clip, (str, os.PathLike)) else "the clip")
        tracks = self._tracks(clip, name, rate, frames_per_second)
        if not tracks.seconds:
            wanted = " or ".join(_THING[m] for m in self.lengths)
            raise UserError(f"{name} has no {wanted}: leave it out, or give a clip that has")
        return OpenClip(self, name, tracks)

    def known(self, media: str | bytes, name: str, seconds: Mapping[Modality, float]) -> OpenClip:
        """A media file of which it is known where each track ends that is wanted, so that nothing is read of it now."""
        return OpenClip(self, name, _FileTracks(self, media, seconds))

    def _tracks(self, clip: Any, name: str, rate: float | None, frames_per_second: float | None) -> _Tracks:
        if is_media(clip):
            return self._file(clip, name)
        if isinstance(clip, tuple):
            if len(clip) != 2 or all(side is None for side in clip):
                raise UserError(f"{name}: a tuple of {len(clip)}: give (sound, film), at most one of them None")
            sides = dict(zip(MODALITIES, clip, strict=True))
            return _Pair(
                {
                    m: self._side(m, side, name, rate, frames_per_second)
                    for m, side in sides.items()
                    if side is not None and m in self.lengths
                }
            )
        if len(self.lengths) > 1:
            raise UserError(
                f"{name}: a {type(clip).__name__} alone does not say what it is: give a path, (sound, film), (sound, None) or "
                "(None, film)"
            )
        (modality,) = self.lengths
        return self._side(modality, clip, name, rate, frames_per_second)

    def _file(self, clip: Any, name: str) -> _Tracks:
        media = os.fspath(clip)
        try:
            tracks = probe(media).track_seconds
        except DecodeError as error:
            raise UserError(f"{name}: {_told(error, name)}") from None
        return _FileTracks(self, media, {m: tracks[m] for m in self.lengths if m in tracks})

    def _side(
        self, modality: Modality, side: Any, name: str, rate: float | None, frames_per_second: float | None
    ) -> _Tracks:
        if is_media(side):
            return Reader({modality: self.lengths[modality]}, self.frame_window, self.backend)._file(side, name)
        if modality == "audio":
            return _Waveform(mono_sound(side, rate, name), self.lengths["audio"])
        assert self.frame_window is not None
        return _Film(*film_frames(side, frames_per_second, name), self.frame_window)


@dataclass(frozen=True)
class OpenClip:
    """A clip whose lengths are known."""

    reader: Reader
    name: str
    tracks: _Tracks

    @property
    def duration_seconds(self) -> float:
        """Of the longest track that is wanted."""
        return max(self.tracks.seconds.values())

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """Those that are wanted and there."""
        return tuple(m for m in MODALITIES if m in self.tracks.seconds)

    def spans(self, hop_seconds: float | None = None) -> list[Span]:
        """Its windows, see :func:`mavil.embedder.windows.spans_of`; of a clip that lacks a modality those of the other one."""
        length = max(self.reader.lengths[m] for m in self.modalities)
        return spans_of(self.duration_seconds, length, hop_seconds, self.name)

    def places(self, span: Span) -> dict[Modality, float]:
        """Second of the clip at which each modality of a window begins."""
        return places_within(span, {m: self.reader.lengths[m] for m in self.modalities})

    def sample(self, span: Span) -> Sample:
        """One window, see :meth:`samples`."""
        return next(self.samples([span]))

    def samples(self, spans: Sequence[Span]) -> Iterator[Sample]:
        """Windows in the order of time: ``waveform`` and ``frames``, ``None`` where the clip or the window has none.

        Sound that has ended is not there; a picture track that has ended is read again from its beginning, as in training.

        Raises:
            UserError: one cannot be decoded, or nothing is there.
        """
        for first in range(0, len(spans), TAKEN_AT_ONCE):
            some = spans[first : first + TAKEN_AT_ONCE]
            try:
                taken = self.take(some)
            except DecodeError as error:
                raise UserError(f"{self.name}: from {some[0].start:g} s on: {_told(error, self.name)}") from None
            yield from (Sample(self.name, 0, *window) for window in taken)

    def take(self, spans: Sequence[Span]) -> list[Taken]:
        """Windows, decoded together: what :meth:`samples` gives of them, but what is wrong with a file is a DecodeError."""
        return self.tracks.take([self._starts(span) for span in spans])

    def _starts(self, span: Span) -> Starts:
        """Where what is there begins."""
        starts = self.places(span)
        if "audio" in starts and starts["audio"] >= self.tracks.seconds["audio"]:
            del starts["audio"]
        if not starts:
            raise DecodeError("too_short", "it has no sound there")
        return starts


class _FileTracks:
    def __init__(self, reader: Reader, media: bytes | str, seconds: Mapping[Modality, float]) -> None:
        self._reader, self._media, self.seconds = reader, media, seconds

    def take(self, windows: Sequence[Starts]) -> list[Taken]:
        if len(windows) == 1:
            return [self._together(windows[0])]
        pieces = iter(self._sounds([starts["audio"] for starts in windows if "audio" in starts]))
        return [
            (
                next(pieces) if "audio" in starts else None,
                self._decode(None, starts["video"])[1] if "video" in starts else None,
            )
            for starts in windows
        ]

    def _together(self, starts: Starts) -> Taken:
        seconds = self._reader.lengths["audio"] if "audio" in starts else 0.0
        sound = SoundWindow(starts["audio"], seconds) if "audio" in starts else None
        try:
            return self._decode(sound, starts.get("video"))
        except DecodeError as error:
            if error.cause != "too_short" or "video" not in starts:
                raise
            # The last packet promises a little more sound than there is.
            return self._decode(None, starts["video"])

    def _sounds(self, starts: Sequence[float]) -> list[Tensor | None]:
        """The sound of windows; of those without gaps between them in one piece."""
        if not starts:
            return []
        length, begin = self._reader.lengths["audio"], starts[0]
        seconds = starts[-1] - begin + length
        if seconds > 1.5 * len(starts) * length:
            return [self._together({"audio": start})[0] for start in starts]
        is_alone = len(starts) == 1
        whole, _ = self._together({"audio": begin}) if is_alone else self._decode(SoundWindow(begin, seconds), None)
        assert whole is not None
        return list(pieces_of(whole, [start - begin for start in starts], length))

    def _decode(self, sound: SoundWindow | None, video_start: float | None) -> Taken:
        frames = None if video_start is None else self._reader.frame_window
        return decode_clip(self._media, sound, frames, video_start or 0.0, self._reader.backend)


class _Waveform:
    def __init__(self, waveform: Tensor, seconds: float) -> None:
        self._waveform, self._length = waveform, seconds
        self.seconds: dict[Modality, float] = {"audio": len(waveform) / SAMPLE_RATE}

    def take(self, windows: Sequence[Starts]) -> list[Taken]:
        starts = [window.get("audio", self.seconds["audio"]) for window in windows]
        return [(piece, None) for piece in pieces_of(self._waveform, starts, self._length)]


class _Film:
    def __init__(self, film: Tensor, rate: float, window: FrameWindow) -> None:
        self._film, self._rate, self._window = film, rate, window
        self.seconds: dict[Modality, float] = {"video": len(film) / rate}

    def take(self, windows: Sequence[Starts]) -> list[Taken]:
        return [(None, self._frames(starts["video"]) if "video" in starts else None) for starts in windows]

    def _frames(self, start: float) -> Tensor:
        times = self._window.times(start, self.seconds["video"])
        return frames_at(self._film, self._rate, times, self._window.short_side)


class _Pair:
    """Sound from one place and pictures from another."""

    def __init__(self, sides: Mapping[Modality, _Tracks]) -> None:
        self._sides = sides
        self.seconds: dict[Modality, float] = {m: side.seconds[m] for m, side in sides.items() if m in side.seconds}

    def take(self, windows: Sequence[Starts]) -> list[Taken]:
        found: list[list[Tensor | None]] = [[None, None] for _ in windows]
        for place, modality in enumerate(MODALITIES):
            asking = [number for number, starts in enumerate(windows) if modality in starts]
            if asking:
                own = self._sides[modality].take([{modality: windows[number][modality]} for number in asking])
                for number, taken in zip(asking, own, strict=True):
                    found[number][place] = taken[place]
        return [(waveform, frames) for waveform, frames in found]


def pieces_of(waveform: Tensor, starts: Sequence[float], seconds: float) -> Iterator[Tensor | None]:
    """Windows of ``waveform`` ``[L]`` at 16 kHz, each ``[at most 16000 seconds]``; ``None`` where it has ended."""
    for start in starts:
        begin = round(start * SAMPLE_RATE)
        piece = waveform[begin : begin + round(seconds * SAMPLE_RATE)]
        yield piece if len(piece) else None


def is_media(clip: object) -> bool:
    """Whether it is a media file: its path or its bytes."""
    return isinstance(clip, (str, bytes, Path, os.PathLike))


def _told(error: DecodeError, name: str) -> str:
    return f"{error.told(name)} ({error.cause}): give a media file that can be decoded, or leave it out"
