"""Media files of every kind, made in the test: tracks as arrays in, the bytes of a container out."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from mavil.structs import SAMPLE_RATE

DIM, BRIGHT = 40, 220


@dataclass
class Pictures:
    """A picture track: ``images`` are ``[H, Wd, 3]`` uint8; ``times`` (s) of each, or one every ``1 / rate`` s from 0 on."""

    images: Sequence[np.ndarray]
    rate: Fraction = Fraction(25)
    times: Sequence[Fraction] | None = None
    codec: str = "libx264"
    pix_fmt: str = "yuv420p"
    options: dict[str, str] = field(default_factory=lambda: {"preset": "ultrafast", "crf": "10", "g": "12"})
    aspect: Fraction | None = None
    rotation: int = 0
    time_base: Fraction | None = None


@dataclass
class Sound:
    """A sound track: ``samples`` are ``[C, L]`` float32, the first of them ``start_seconds`` after the file's zero."""

    samples: np.ndarray
    rate: int = SAMPLE_RATE
    layout: str = "mono"
    codec: str = "aac"
    sample_format: str | None = None
    start_seconds: float = 0.0
    options: dict[str, str] = field(default_factory=dict)


def make_media(
    container_format: str,
    pictures: Pictures | None = None,
    sound: Sound | None = None,
    container_options: dict[str, str] | None = None,
) -> bytes:
    """Encode the tracks and mux their packets in the order of their times."""
    options = container_options or {}
    if options.get("movflags") == "faststart":  # FFmpeg reads the file again, by its name
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "media"
            _write(str(path), container_format, pictures, sound, options)
            return path.read_bytes()
    file = io.BytesIO()
    _write(file, container_format, pictures, sound, options)
    return file.getvalue()


def _write(
    file: Any, container_format: str, pictures: Pictures | None, sound: Sound | None, options: dict[str, str]
) -> None:
    with av.open(file, "w", format=container_format, container_options=options) as container:
        tracks = []
        if pictures is not None:
            tracks.append((_picture_stream(container, pictures), _picture_frames(pictures)))
        if sound is not None:
            tracks.append((_sound_stream(container, sound), _sound_frames(sound)))
        container.start_encoding()
        packets = [packet for stream, frames in tracks for frame in [*frames, None] for packet in stream.encode(frame)]
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            container.mux(packet)


def _picture_stream(container: Any, pictures: Pictures) -> Any:
    stream = container.add_stream(pictures.codec, rate=pictures.rate, options=dict(pictures.options))
    stream.height, stream.width = pictures.images[0].shape[:2]
    stream.pix_fmt = pictures.pix_fmt
    stream.codec_context.thread_count = 1
    if pictures.time_base is not None:
        stream.codec_context.time_base = pictures.time_base
    if pictures.aspect is not None:
        stream.codec_context.sample_aspect_ratio = pictures.aspect
    if pictures.rotation:
        stream.set_display_rotation(pictures.rotation)
    return stream


def _picture_frames(pictures: Pictures) -> list[av.VideoFrame]:
    base = pictures.time_base or 1 / pictures.rate
    frames = []
    for number, image in enumerate(pictures.images):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        time = pictures.times[number] if pictures.times is not None else number / pictures.rate
        frame.pts, frame.time_base = round(time / base), base
        frames.append(frame)
    return frames


def _sound_stream(container: Any, sound: Sound) -> Any:
    stream = container.add_stream(sound.codec, rate=sound.rate, layout=sound.layout, options=dict(sound.options))
    if sound.sample_format is not None:
        stream.format = sound.sample_format
    stream.codec_context.thread_count = 1
    if sound.codec == "opus":
        stream.codec_context.options = {"strict": "experimental"}
    return stream


def _sound_frames(sound: Sound) -> list[av.AudioFrame]:
    samples = np.ascontiguousarray(sound.samples, dtype=np.float32)
    frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=sound.layout)
    frame.sample_rate, frame.time_base = sound.rate, Fraction(1, sound.rate)
    frame.pts = round(sound.start_seconds * sound.rate)
    return [frame]


def grey(level: int, height: int = 48, width: int = 64) -> np.ndarray:
    """``[H, Wd, 3]`` uint8 of one level."""
    return np.full((height, width, 3), level, np.uint8)


def numbered(num_frames: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """Grey pictures: number k has the level 10 + 7 k."""
    return [grey(10 + 7 * number, height, width) for number in range(num_frames)]


def numbers_in(frames: torch.Tensor) -> list[int]:
    """Which of :func:`numbered` the ``[T, 3, H, Wd]`` frames are."""
    return ((frames.float().mean((1, 2, 3)) - 10) / 7).round().int().tolist()


def tone(seconds: float, rate: int = SAMPLE_RATE, hz: float = 440.0, level: float = 0.5) -> np.ndarray:
    """``[L]`` float32 sine."""
    return (level * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def growing_pictures() -> bytes:
    """One track of JPEG pictures, eight of 64 x 48 pixels and eight of 80 x 60."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream("mjpeg", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        larger = av.CodecContext.create("mjpeg", "w")
        larger.width, larger.height, larger.pix_fmt, larger.time_base = 80, 60, "yuvj420p", Fraction(1, 8)
        for number in range(16):
            is_large = number >= 8
            frame = av.VideoFrame.from_ndarray(grey(100, 60, 80) if is_large else grey(100, 48, 64))
            frame.pts, frame.time_base = number, Fraction(1, 8)
            for packet in (larger if is_large else stream).encode(frame):
                packet.stream = stream
                container.mux(packet)
    return file.getvalue()
