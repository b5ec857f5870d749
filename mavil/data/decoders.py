"""The three decoder back ends: PyAV (always there), torchcodec and decord (where installed).

A back end offers the two functions of :class:`Backend`. They agree on the clock (seconds since the file begins), on which
frame is on screen at a time, and on how frames are shrunk.
"""

from __future__ import annotations

import importlib
import io
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import av
import numpy as np
from av.container import InputContainer
from av.filter import Graph
from av.video.reformatter import VideoReformatter

from mavil.data.containers import DecodeError, audio_stream, open_media, start_of, video_stream
from mavil.structs import SAMPLE_RATE, UserError

# Sound is decoded from this much before a late start: codecs need a few packets before they are exact.
_SEEK_MARGIN_SECONDS = 0.5
# Decoded beyond the wanted end, so that the resampler sees what follows.
_TAIL_SECONDS = 0.05
# A time meant to fall on a frame boundary must not miss it by a rounding error.
_TICK_SECONDS = 1e-6
_PYAV = int(av.__version__.partition(".")[0])
# PyAV 17 began to spread conversions over threads; before it they had none and no such argument.
_ONE_THREAD: dict[str, Any] = {"threads": 1} if _PYAV >= 17 else {}


@dataclass(frozen=True)
class FrameWindow:
    """Which frames to take: ``num_frames`` at ``frames_per_second`` (Hz), shrunk to ``short_side`` pixels if larger."""

    num_frames: int
    frames_per_second: float
    short_side: int

    def times(self, start_seconds: float, duration_seconds: float) -> np.ndarray:
        """``[T]`` seconds of the wanted frames; past ``duration_seconds`` they wrap round to the clip's beginning."""
        times = start_seconds + np.arange(self.num_frames) / self.frames_per_second + _TICK_SECONDS
        return times % duration_seconds if duration_seconds > 0 else np.zeros_like(times)


class Backend(Protocol):
    """What a decoder must offer."""

    def waveform(self, media: bytes, seconds: float) -> np.ndarray:
        """``[L]`` float32 mono at 16 kHz, the file's first ``seconds``."""

    def frames(self, media: bytes, window: FrameWindow, start_seconds: float) -> np.ndarray:
        """``[T, H, Wd, 3]`` uint8 RGB."""


class PyAVBackend:
    """FFmpeg through PyAV, on one thread: decodes from the nearest key frame on, converts only the wanted frames."""

    def waveform(self, media: bytes, seconds: float) -> np.ndarray:
        """See :class:`Backend`."""
        with open_media(media) as container:
            return read_waveform(container, 0.0, seconds)

    def frames(self, media: bytes, window: FrameWindow, start_seconds: float) -> np.ndarray:
        """See :class:`Backend`."""
        with open_media(media) as container:
            stream = video_stream(container)
            packets = [p for p in container.demux(stream) if p.size and p.pts is not None]
            shown = sorted((p.pts, p.duration or 0) for p in packets if not p.is_discard)
            if not shown:
                raise DecodeError("empty", "the picture track has no frames")
            clock = np.array([pts for pts, _ in shown]) * float(stream.time_base) - start_of(container)
            end = clock[-1] + shown[-1][1] * float(stream.time_base)
            wanted = [shown[place][0] for place in _places_on_screen(clock, window.times(start_seconds, end))]
            images = _decode_wanted(stream, packets, sorted(set(wanted)), RgbConverter(window.short_side))
        return np.stack([images[pts] for pts in wanted])


class TorchcodecBackend:
    """torchcodec, the fastest where FFmpeg's shared libraries are installed."""

    def __init__(self) -> None:
        self._decoders = _load("torchcodec.decoders", "pip install torchcodec, and FFmpeg's shared libraries")

    def waveform(self, media: bytes, seconds: float) -> np.ndarray:
        """See :class:`Backend`."""
        file_start, _ = _clock_of(media, audio_stream)
        with _damage_reported():
            decoder = self._decoders.AudioDecoder(media, sample_rate=SAMPLE_RATE)
            begin = decoder.metadata.begin_stream_seconds or 0.0
            samples = decoder.get_samples_played_in_range(begin, file_start + seconds + _TAIL_SECONDS)
            return _place(samples.data.numpy().mean(0), samples.pts_seconds - file_start, 0.0, seconds)

    def frames(self, media: bytes, window: FrameWindow, start_seconds: float) -> np.ndarray:
        """See :class:`Backend`."""
        file_start, _ = _clock_of(media, video_stream)
        with _damage_reported():
            decoder = self._decoders.VideoDecoder(media, dimension_order="NHWC", num_ffmpeg_threads=1)
            begin, end = decoder.metadata.begin_stream_seconds, decoder.metadata.end_stream_seconds
            times = file_start + window.times(start_seconds, end - file_start)
            images = decoder.get_frames_played_at(times.clip(begin, None).tolist()).data.numpy()
        return _converted(images, window.short_side)


class DecordBackend:
    """decord, unmaintained but installed on many clusters. On some damaged files it ends the process; the others never do."""

    def __init__(self) -> None:
        self._decord = _load("decord", "pip install decord (64-bit x86 only)")

    def waveform(self, media: bytes, seconds: float) -> np.ndarray:
        """See :class:`Backend`. decord decodes the whole sound track, whatever is asked for."""
        file_start, stream_start = _clock_of(media, audio_stream)
        with _damage_reported():
            reader = self._decord.AudioReader(io.BytesIO(media), sample_rate=SAMPLE_RATE, mono=False)
            return _place(reader[:].asnumpy().mean(0), stream_start - file_start, 0.0, seconds)

    def frames(self, media: bytes, window: FrameWindow, start_seconds: float) -> np.ndarray:
        """See :class:`Backend`."""
        file_start, _ = _clock_of(media, video_stream)
        with _damage_reported():
            reader = self._decord.VideoReader(io.BytesIO(media), num_threads=1)
            clock = reader.get_frame_timestamp(range(len(reader))) - file_start  # [frames, (begin, end)]
            places = _places_on_screen(clock[:, 0], window.times(start_seconds, clock[-1, 1]))
            images = reader.get_batch(places).asnumpy()
        return _converted(images, window.short_side)


def read_waveform(container: InputContainer, start_seconds: float, seconds: float) -> np.ndarray:
    """``[L]`` float32 mono at 16 kHz from ``start_seconds`` of the file on; shorter where the file ends earlier.

    A sound track that begins later than the file is preceded by silence, so that sound and picture stay together.

    Raises:
        DecodeError: ``no_audio``, or ``too_short``: the sound ends before ``start_seconds``.
    """
    stream = audio_stream(container)
    file_start, end = start_of(container), start_seconds + seconds + _TAIL_SECONDS
    if start_seconds > _SEEK_MARGIN_SECONDS:
        target = file_start + start_seconds - _SEEK_MARGIN_SECONDS
        container.seek(int(target / stream.time_base), stream=stream)
    pieces: list[np.ndarray] = []
    first, num_samples, rate = 0.0, 0, stream.rate
    for frame in container.decode(stream):
        if not pieces:
            first = (frame.time or 0.0) - file_start
        pieces.append(frame.to_ndarray())
        num_samples += frame.samples
        if first + num_samples / rate >= end:
            break
    if not pieces:
        raise DecodeError("too_short" if start_seconds else "empty", "the sound track has no samples there")
    num_channels = 1 if frame.format.is_planar else frame.layout.nb_channels
    waveform = _mono(np.concatenate(pieces, axis=1), num_channels)
    return _place(_resample(waveform, rate), first, start_seconds, seconds)


class RgbConverter:
    """Frames to ``[H, Wd, 3]`` uint8, upright, shrunk by area averaging where the short side is larger than ``short_side``.

    FFmpeg's tables are kept from frame to frame.
    """

    def __init__(self, short_side: int | None = None) -> None:
        self._short_side = short_side
        self._colours, self._size = VideoReformatter(), VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """Convert one frame."""
        rgb = self._colours.reformat(frame, format="rgb24", **_ONE_THREAD)
        if self._short_side and min(rgb.width, rgb.height) > self._short_side:
            scale = self._short_side / min(rgb.width, rgb.height)
            size = round(rgb.width * scale), round(rgb.height * scale)
            rgb = self._size.reformat(rgb, *size, interpolation="AREA", **_ONE_THREAD)
        return np.rot90(rgb.to_ndarray(), round(frame.rotation / 90) % 4)


def _decode_wanted(
    stream: Any, packets: Sequence[Any], wanted: list[int], convert: RgbConverter
) -> dict[int, np.ndarray]:
    """The frames shown from the sorted times ``wanted`` (stream ticks) on, as RGB by that time."""
    context = stream.codec_context
    keys = sorted((p.pts, place) for place, p in enumerate(packets) if p.is_keyframe)
    images: dict[int, np.ndarray] = {}
    waiting, previous, position = list(reversed(wanted)), None, 0
    while waiting and position <= len(packets):
        number = bisect_right(keys, waiting[-1], key=lambda key: key[0]) - 1
        key = keys[number][1] if number >= 0 else 0
        if key > position:  # nothing before that key frame is needed any more
            context.flush_buffers()
            position, previous = key, None
        packet = packets[position] if position < len(packets) else None
        # Frames that no other frame refers to are decoded only if they are wanted.
        context.skip_frame = "DEFAULT" if packet is None or packet.pts in wanted else "NONREF"
        for frame in context.decode(packet):
            while waiting and frame.pts is not None and frame.pts >= waiting[-1]:
                # Where the wanted frame itself is missing, the one before it stays on screen.
                shown = frame if frame.pts == waiting[-1] or previous is None else previous
                images[waiting.pop()] = convert(shown)
            previous = frame
        position += 1
    if waiting and previous is None:
        raise DecodeError("undecodable", "no frame of the picture track could be decoded")
    return images | {pts: convert(previous) for pts in waiting if previous}


def _places_on_screen(clock: np.ndarray, times: np.ndarray) -> np.ndarray:
    return (np.searchsorted(clock, times, side="right") - 1).clip(0)


def _mono(values: np.ndarray, num_interleaved: int) -> np.ndarray:
    """FFmpeg's samples to ``[L]`` float32 in [-1, 1]: the mean of the channels (its own down-mix of floats is a sum)."""
    channels = values.reshape(-1, num_interleaved).T if num_interleaved > 1 else values
    mean = channels.mean(0, dtype=np.float32)
    if values.dtype == np.uint8:
        return (mean - 128.0) / 128.0
    return mean / np.float32({"int16": 2.0**15, "int32": 2.0**31}.get(values.dtype.name, 1.0))


def _resample(waveform: np.ndarray, rate: int) -> np.ndarray:
    """Mono float32 at ``rate`` Hz to 16 kHz, by FFmpeg's band-limited resampler."""
    if rate == SAMPLE_RATE:
        return waveform
    graph = Graph()
    if _PYAV >= 18:  # older ones, the last for Python 3.10, cannot be kept from starting a thread per core
        graph.threads = 1
    source = graph.add_abuffer(sample_rate=rate, format="fltp", layout="mono")
    graph.link_nodes(source, graph.add("aresample", str(SAMPLE_RATE)), graph.add("abuffersink")).configure()
    frame = av.AudioFrame.from_ndarray(waveform[None], format="fltp", layout="mono")
    frame.sample_rate, frame.pts = rate, 0
    graph.push(frame)
    graph.push(None)
    return np.concatenate([piece.to_ndarray()[0] for piece in _pull_all(graph)])


def _pull_all(graph: Graph) -> Iterator[Any]:
    while True:
        try:
            yield graph.pull()
        except (EOFError, BlockingIOError):
            return


def _place(waveform: np.ndarray, first_seconds: float, start_seconds: float, seconds: float) -> np.ndarray:
    """Cut 16 kHz sound that begins at ``first_seconds`` to ``seconds`` from ``start_seconds`` on."""
    offset = round((start_seconds - first_seconds) * SAMPLE_RATE)
    placed = waveform[offset:] if offset >= 0 else np.concatenate([np.zeros(-offset, np.float32), waveform])
    if not len(placed):
        raise DecodeError("too_short", f"the sound ends before {start_seconds:g} s")
    return placed[: round(seconds * SAMPLE_RATE)]


def _converted(images: np.ndarray, short_side: int) -> np.ndarray:
    convert = RgbConverter(short_side)
    return np.stack([convert(av.VideoFrame.from_ndarray(image)) for image in images])


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
