"""Writing media files: arrays or a span of a file -> the bytes of an H.264/AAC mp4, or of an AAC m4a without a picture.

Always on one thread and without dates or version tags, so that equal input gives equal bytes.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.codec.context import Flags
from av.container import InputContainer, OutputContainer
from torch import Tensor

from mavil.data.containers import MEDIA_ENDINGS, DecodeError, open_media, probe, start_of, video_stream
from mavil.data.decoders import RgbConverter, read_waveform
from mavil.structs import SAMPLE_RATE

AUDIO_BIT_RATE = 48_000
"""Bits per second of AAC for 16 kHz mono [our choice]."""
# The fast coder takes a tenth of the default one's time; the two tools it leaves out replace noise by other noise.
_AAC_OPTIONS = {"aac_coder": "fast", "aac_tns": "0", "aac_pns": "0"}
# A span without an end runs to the end of its file; no file is longer than this.
_WHOLE_FILE_SECONDS = 1e6


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


def cut_clip(path: str, start_seconds: float | None, end_seconds: float | None) -> bytes:
    """The bytes of one clip of a file.

    With neither start nor end, a file in one of the usual containers (``MEDIA_ENDINGS``) is taken as it is. Otherwise
    the span is encoded anew (H.264/AAC, frame times kept, sound 16 kHz mono).

    Raises:
        DecodeError: ``missing``, ``empty``, ``undecodable``, or ``too_short``: the file ends before the span begins.
    """
    if start_seconds is None and end_seconds is None:
        try:
            media = Path(path).read_bytes()
        except OSError as error:
            raise DecodeError("missing", f"{error.strerror}: {path}") from None
        if probe(media).ending in MEDIA_ENDINGS:
            return media
    start = start_seconds or 0.0
    end = _WHOLE_FILE_SECONDS if end_seconds is None else end_seconds
    media_of_span = _encode_span(path, start, end)
    if media_of_span is None:
        raise DecodeError("too_short", f"the file ends before {start:g} s")
    return media_of_span


def _encode_span(path: str, start: float, end: float) -> bytes | None:
    waveform = _sound_of_span(path, start, end)
    with open_media(path) as container:
        try:
            stream = video_stream(container)
        except DecodeError:
            return _write(iter(()), Fraction(1), {}, waveform)
        rate = stream.average_rate or Fraction(25)
        options = {"preset": "veryfast", "crf": "20", "g": str(max(1, round(rate)))}
        return _write(_pictures_of_span(container, stream, start, end), rate, options, waveform)


def _sound_of_span(path: str, start: float, end: float) -> np.ndarray | None:
    try:
        with open_media(path) as container:
            return read_waveform(container, start, end - start)
    except DecodeError as error:
        if error.cause not in ("no_audio", "too_short"):
            raise
        return None


def _pictures_of_span(container: InputContainer, stream: Any, start: float, end: float) -> Iterator[av.VideoFrame]:
    """What is on screen from ``start`` to ``end`` (s): upright frames whose times count from ``start``."""
    ticks = [round((start_of(container) + seconds) / stream.time_base) for seconds in (start, end)]
    container.seek(ticks[0], stream=stream)
    convert, before = RgbConverter(), None
    for frame in container.decode(stream):
        if frame.pts is None or frame.pts >= ticks[1]:
            break
        if frame.pts < ticks[0]:
            before = frame  # still on screen when the span begins, unless another one comes exactly then
            continue
        if before is not None and frame.pts > ticks[0]:
            yield _picture(convert(before), 0, stream.time_base)
        before = None
        yield _picture(convert(frame), frame.pts - ticks[0], stream.time_base)
    if before is not None and before.pts + before.duration > ticks[0]:
        yield _picture(convert(before), 0, stream.time_base)


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
