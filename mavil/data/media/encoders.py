"""Writing media files: arrays or a span of a file -> the bytes of an H.264/AAC mp4, or of an AAC m4a without a picture.

Always on one thread and without dates or version tags, so that equal input gives equal bytes.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.codec.context import Flags
from av.container import InputContainer, OutputContainer
from av.video.reformatter import VideoReformatter
from torch import Tensor

from mavil.data.media.containers import (
    DAMAGE,
    JUMPY,
    MEDIA_ENDINGS,
    DecodeError,
    open_media,
    probe,
    start_of,
    video_stream,
)
from mavil.data.media.encodings import KEEP_PICTURE, SpanEncoding
from mavil.data.media.picture_track import ONE_THREAD, RgbConverter
from mavil.data.media.sound_track import read_waveform
from mavil.structs import SAMPLE_RATE

AUDIO_BIT_RATE = 48_000
"""Bits per second of AAC for 16 kHz mono [our choice]."""
# The fast coder takes a tenth of the default one's time; the two tools it leaves out replace noise by other noise.
_AAC_OPTIONS = {"aac_coder": "fast", "aac_tns": "0", "aac_pns": "0"}
# x264's macroblock tree gives other bits for the same frames now and then, even on one thread [measured: in 12 to 60 % of the
# runs on small pictures; never without it].
_REPEATABLE = "mbtree=0"
WHOLE_FILE_SECONDS = 1e6
"""A span without an end runs to the end of its file; no file is longer than this."""
_IMAGES = "jpeg_pipe,png_pipe,webp_pipe,bmp_pipe,image2"


def encode_clip(
    frames: Tensor | None,
    frames_per_second: float,
    waveform: Tensor | None,
    key_frame_every: int = 16,
    quality: int = 20,
    preset: str = "ultrafast",
) -> bytes:
    """The bytes of a media file: H.264 (yuv420p) + AAC (16 kHz mono) in mp4; with ``frames=None`` AAC in m4a.

    Args:
        frames: ``[T, 3, H, Wd]`` uint8 RGB; an odd last row or column is dropped.
        frames_per_second: of ``frames``, Hz.
        waveform: ``[L]`` float32 in [-1, 1], mono, 16 kHz.
        key_frame_every: frames from one key frame to the next; a decoder can begin only at one.
        quality: x264's constant rate factor, 0 (lossless) to 51.
        preset: x264's preset, from ``ultrafast`` to ``veryslow`` (smaller files).

    Raises:
        ValueError: there is nothing to encode.
    """
    rate = Fraction(frames_per_second or 1).limit_denominator(1001)
    pictures: Iterator[av.VideoFrame] = iter(())
    if frames is not None:
        images = frames.permute(0, 2, 3, 1).numpy()  # [T, H, Wd, 3]
        pictures = (_picture(image, number, 1 / rate) for number, image in enumerate(images))
    options = {"preset": preset, "crf": str(quality), "g": str(key_frame_every)}
    media = _write(pictures, rate, options, None if waveform is None else waveform.numpy())
    if media is None:
        raise ValueError("there are neither frames nor sound to encode")
    return media


def cut_clip(
    media: bytes | str,
    start_seconds: float | None,
    end_seconds: float | None,
    encoding: SpanEncoding | None = None,
) -> bytes:
    """The bytes of one clip of a file, given by its path or its bytes.

    With neither start nor end nor ``encoding``, a file in one of the usual containers (``MEDIA_ENDINGS``) is taken as it
    is. Otherwise the span is encoded anew (H.264/AAC): upright, with the times of its frames, its sound as 16 kHz mono.

    Raises:
        DecodeError: ``missing``, ``empty``, ``undecodable``, or ``too_short``: the file ends before the span begins.
    """
    if start_seconds is None and end_seconds is None and encoding is None:
        if isinstance(media, str):
            media = read_file(media)
        if probe(media).ending in MEDIA_ENDINGS:
            return media
    start = start_seconds or 0.0
    end = WHOLE_FILE_SECONDS if end_seconds is None else end_seconds
    media_of_span = _encode_span(media, start, end, encoding or KEEP_PICTURE)
    if media_of_span is None:
        raise DecodeError("too_short", f"the file ends before {start:g} s")
    return media_of_span


def read_file(path: str) -> bytes:
    """All of a file.

    Raises:
        DecodeError: ``missing``.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DecodeError("missing", f"{error.strerror}: {path}") from None


def encode_stills(
    images: Sequence[bytes], sound: bytes | str, start: float, end: float, encoding: SpanEncoding
) -> bytes:
    """Image files, spread evenly over a span (s) of a sound, and that sound: a clip in mp4.

    All are scaled to the size of the first.

    Raises:
        DecodeError: ``no_audio``, ``too_short``, or ``undecodable`` where an image cannot be read.
    """
    waveform = sound_of_span(sound, start, end)
    if waveform is None or not len(waveform):
        raise DecodeError("no_audio", "without sound nobody knows how long each image is to be seen")
    rate = Fraction(len(images) * SAMPLE_RATE, len(waveform)).limit_denominator(100_000)
    convert, size = _Shrinker(encoding.short_side), None
    pictures = []
    for number, data in enumerate(images):
        frame = read_image(data)
        size = size or (frame.width, frame.height)
        frame = frame.reformat(*size, format="rgb24")
        pictures.append(_picture(convert(frame), number, 1 / rate))
    media = _write(iter(pictures), rate, encoding.x264_options(rate), waveform)
    if media is None:
        raise DecodeError("empty", "there are neither images nor sound")
    return media


def read_image(data: bytes) -> av.VideoFrame:
    """The picture of a JPEG, PNG, WebP or BMP file.

    Raises:
        DecodeError: ``undecodable``.
    """
    try:
        with av.open(io.BytesIO(data), mode="r", container_options={"format_whitelist": _IMAGES}) as container:
            return next(iter(container.decode(video=0)))
    except (*DAMAGE, StopIteration) as error:
        raise DecodeError("undecodable", f"an image file: {' '.join(str(error).split())}") from None


def _encode_span(source: bytes | str, start: float, end: float, encoding: SpanEncoding) -> bytes | None:
    waveform = sound_of_span(source, start, end)
    with open_media(source) as container:
        try:
            stream = video_stream(container)
        except DecodeError as error:
            if error.cause != "no_video":
                raise
            return _write(iter(()), Fraction(1), {}, waveform)
        rate = stream.average_rate or Fraction(25)
        pictures = _pictures_of_span(container, stream, start, end, encoding)
        return _write(pictures, rate, encoding.x264_options(rate), waveform)


def sound_of_span(source: bytes | str, start: float, end: float) -> np.ndarray | None:
    """``[L]`` float32 mono at 16 kHz from ``start`` to ``end`` (s), or ``None`` where there is no sound.

    Raises:
        DecodeError: ``missing``, ``too_large`` or ``undecodable``.
    """
    try:
        with open_media(source) as container:
            return read_waveform(container, start, end - start)
    except DecodeError as error:
        if error.cause not in ("no_audio", "too_short", "empty"):
            raise
        return None


def _pictures_of_span(
    container: InputContainer, stream: Any, start: float, end: float, encoding: SpanEncoding
) -> Iterator[av.VideoFrame]:
    """What is on screen from ``start`` to ``end`` (s): upright frames whose times count from ``start``."""
    ticks = [round((start_of(container) + seconds) / stream.time_base) for seconds in (start, end)]
    if container.format.name not in JUMPY:
        container.seek(ticks[0], stream=stream)
    convert, before, last = _Shrinker(encoding.short_side), None, None
    spacing = encoding.spacing(stream.average_rate) / stream.time_base  # in ticks
    for frame in container.decode(stream):
        if frame.pts is None or frame.pts >= ticks[1]:
            break
        if frame.pts < ticks[0]:
            before = frame  # still on screen when the span begins, unless another one comes exactly then
            continue
        if before is not None and frame.pts > ticks[0]:
            yield _picture(convert(before), 0, stream.time_base)
        before = None
        if last is None or frame.pts - last >= spacing:
            last = frame.pts
            yield _picture(convert(frame), frame.pts - ticks[0], stream.time_base)
    if before is not None and before.pts + before.duration > ticks[0]:
        yield _picture(convert(before), 0, stream.time_base)


class _Shrinker:
    """As :class:`RgbConverter`, but colours and size in one step: a third of its time on large frames [measured]."""

    def __init__(self, short_side: int | None) -> None:
        self._short_side = short_side
        self._reformatter, self._plain = VideoReformatter(), RgbConverter()

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        if not self._short_side or min(frame.width, frame.height) <= self._short_side:
            return self._plain(frame)
        scale = self._short_side / min(frame.width, frame.height)
        size = (2 * round(frame.width * scale / 2), 2 * round(frame.height * scale / 2))
        small = self._reformatter.reformat(frame, *size, format="rgb24", interpolation="AREA", **ONE_THREAD)
        return np.rot90(small.to_ndarray(), round(frame.rotation / 90) % 4)


def _picture(image: np.ndarray, pts: int, time_base: Fraction) -> av.VideoFrame:
    """``[H, Wd, 3]`` uint8 as a frame to encode; an odd last row or column goes, for yuv420p has none."""
    height, width = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image[:height, :width]))
    frame.pts, frame.time_base = pts, time_base
    return frame


def _write(
    pictures: Iterator[av.VideoFrame], rate: Fraction, options: dict[str, str], waveform: np.ndarray | None
) -> bytes | None:
    """Encode and mux both tracks into memory; ``None`` where there is neither."""
    first = next(pictures, None)
    has_sound = waveform is not None and len(waveform) > 0
    if first is None and not has_sound:
        return None
    options = {**options, "x264-params": ":".join(filter(None, [options.get("x264-params"), _REPEATABLE]))}
    file = io.BytesIO()
    container_format = "ipod" if first is None else "mp4"  # ipod is FFmpeg's name for m4a
    with av.open(file, "w", format=container_format, container_options={"fflags": "+bitexact"}) as container:
        # Both tracks must be declared before the first packet is written.
        video = audio = None
        if first is not None:
            video = _one_thread(container.add_stream("libx264", rate=rate, options=options))
            video.width, video.height, video.pix_fmt = first.width, first.height, "yuv420p"
            video.codec_context.time_base = first.time_base
        if has_sound:
            audio = _one_thread(container.add_stream("aac", rate=SAMPLE_RATE, layout="mono", options=_AAC_OPTIONS))
            audio.bit_rate = AUDIO_BIT_RATE
            _encode(container, audio, [_sound(waveform)])
        if video is not None:
            _encode(container, video, chain([first], pictures))
    return file.getvalue()


def _encode(container: OutputContainer, stream: Any, frames: Iterable[Any]) -> None:
    for frame in chain(frames, [None]):  # None: hand out what the encoder still holds
        container.mux(stream.encode(frame))


def _sound(waveform: Any) -> av.AudioFrame:
    frame = av.AudioFrame.from_ndarray(waveform[None].astype(np.float32), format="fltp", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE, 0, Fraction(1, SAMPLE_RATE)
    return frame


def _one_thread(stream: Any) -> Any:
    stream.codec_context.thread_type = "NONE"
    stream.codec_context.thread_count = 1
    stream.codec_context.flags |= Flags.bitexact
    return stream
