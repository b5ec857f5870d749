"""The three decoder back ends: PyAV (always there), torchcodec and decord (where installed).

A back end offers the one method of :class:`Backend`. They agree on the clock (seconds since the file begins), on which
frame is on screen at a time, and on how frames are shrunk.
"""

from __future__ import annotations

import importlib
import io
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np

from mavil.data.media.containers import (
    JUMPY,
    DecodeError,
    audio_stream,
    open_media,
    read_file,
    start_of,
    video_stream,
)
from mavil.data.media.picture_track import (
    FrameWindow,
    places_on_screen,
    read_frames,
    read_frames_of_all,
    shrunk,
)
from mavil.data.media.sound_track import SoundWindow, cut_sound, read_waveform
from mavil.structs import SAMPLE_RATE, UserError

Decoded = tuple[np.ndarray | None, np.ndarray | None]
"""``[L]`` float32 mono at 16 kHz, and ``[T, 3, H, Wd]`` uint8 RGB; ``None`` where it was not asked for."""


class Backend(Protocol):
    """What a decoder must offer."""

    def decode(
        self, media: bytes | str, sound: SoundWindow | None, frames: FrameWindow | None, frames_start: float
    ) -> Decoded:
        """The sound of one window and the frames of another that begins at ``frames_start`` (s).

        ``media`` are a file's bytes, or its path.
        """


class PyAVBackend:
    """FFmpeg through PyAV, on one thread. It opens a file once and reads only the part that the windows need."""

    def decode(
        self, media: bytes | str, sound: SoundWindow | None, frames: FrameWindow | None, frames_start: float
    ) -> Decoded:
        """See :class:`Backend`."""
        waveform, images = None, None
        with open_media(media) as container:
            if sound is not None:
                waveform = read_waveform(container, sound.start_seconds, sound.seconds)
            if frames is not None:
                images = read_frames(container, frames, frames_start)
        if frames is not None and images is None:
            with open_media(media) as container:
                images = read_frames_of_all(container, frames, frames_start)
        return waveform, images


class _OneTrackAtATime(ABC):
    """A back end whose library reads sound and picture apart."""

    def decode(
        self, media: bytes | str, sound: SoundWindow | None, frames: FrameWindow | None, frames_start: float
    ) -> Decoded:
        """See :class:`Backend`."""
        if isinstance(media, str):
            media = read_file(media)
        return (
            None if sound is None else self._waveform(media, sound),
            None if frames is None else self._frames(media, frames, frames_start),
        )

    @abstractmethod
    def _waveform(self, media: bytes, window: SoundWindow) -> np.ndarray: ...

    @abstractmethod
    def _frames(self, media: bytes, window: FrameWindow, start_seconds: float) -> np.ndarray: ...


class TorchcodecBackend(_OneTrackAtATime):
    """torchcodec, the fastest where FFmpeg's shared libraries are installed."""

    def __init__(self) -> None:
        self._decoders = _load("torchcodec.decoders", "pip install torchcodec, and FFmpeg's shared libraries")

    def _waveform(self, media: bytes, window: SoundWindow) -> np.ndarray:
        file_start, _ = _clock_of(media, audio_stream)
        with _damage_reported():
            decoder = self._decoders.AudioDecoder(media, sample_rate=SAMPLE_RATE)
            begin = decoder.metadata.begin_stream_seconds or 0.0
            # From the beginning: a jump would change how the resampled sound lies between the samples.
            samples = decoder.get_samples_played_in_range(begin, file_start + window.decoded_until)
            return _cut(samples.data.numpy().mean(0), samples.pts_seconds - file_start, window)

    def _frames(self, media: bytes, window: FrameWindow, start_seconds: float) -> np.ndarray:
        file_start, _ = _clock_of(media, video_stream)
        with _damage_reported():
            decoder = self._decoders.VideoDecoder(media, dimension_order="NHWC", num_ffmpeg_threads=1)
            begin, end = decoder.metadata.begin_stream_seconds, decoder.metadata.end_stream_seconds
            times = file_start + window.times(start_seconds, end - file_start)
            images = decoder.get_frames_played_at(times.clip(begin, None).tolist()).data.numpy()
        return shrunk(images, window.short_side)


class DecordBackend(_OneTrackAtATime):
    """decord, unmaintained but installed on many clusters. On some damaged files it ends the process; the others never do."""

    def __init__(self) -> None:
        self._decord = _load("decord", "pip install decord (64-bit x86 only)")

    def _waveform(self, media: bytes, window: SoundWindow) -> np.ndarray:
        """By PyAV: decord decodes the whole track and hands over what the encoder put before it as if it were sound."""
        with open_media(media) as container:
            return read_waveform(container, window.start_seconds, window.seconds)

    def _frames(self, media: bytes, window: FrameWindow, start_seconds: float) -> np.ndarray:
        file_start, stream_start = _clock_of(media, _seekable_video_stream)
        with _damage_reported():
            reader = self._decord.VideoReader(io.BytesIO(media), num_threads=1)
            clock = reader.get_frame_timestamp(range(len(reader)))  # [frames, (begin, end)], from the track's first on
            clock += stream_start - file_start - clock[0, 0]
            places = places_on_screen(clock[:, 0], window.times(start_seconds, clock[-1, 1]))
            images = reader.get_batch(places).asnumpy()
        return shrunk(images, window.short_side)


def _cut(waveform: np.ndarray, first_seconds: float, window: SoundWindow) -> np.ndarray:
    return cut_sound(waveform, round(first_seconds * SAMPLE_RATE), window)


def _seekable_video_stream(container: Any) -> Any:
    if container.format.name in JUMPY:
        raise DecodeError("undecodable", "decord takes the wrong frames from MPEG streams: use data.backend=pyav")
    return video_stream(container)


def _clock_of(media: bytes, choose: Any) -> tuple[float, float]:
    """Where the file and the chosen track begin; refuses what is no media file before another library sees it."""
    with open_media(media) as container:
        stream = choose(container)
        return start_of(container), float((stream.start_time or 0) * stream.time_base)


@contextmanager
def _damage_reported() -> Iterator[None]:
    try:
        yield
    except DecodeError:
        raise
    except Exception as error:  # these libraries raise classes of their own
        raise DecodeError("undecodable", str(error).strip().partition("\n")[0]) from error


def _load(module: str, remedy: str) -> Any:
    try:
        return importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:
        name, reason = module.partition(".")[0], str(error).strip().partition("\n")[0]
        raise UserError(
            f"data.backend={name} cannot be loaded ({reason}): {remedy}, or use data.backend=pyav"
        ) from None
