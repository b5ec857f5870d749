"""The picture track of an open file to the frames of a window: decoded from the nearest key frames on, upright, small."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.video.reformatter import VideoReformatter

from mavil.data.media.containers import DecodeError, read_packets, start_of, video_stream

# A time meant to fall on a frame boundary must not miss it by a rounding error.
_TICK_SECONDS = 1e-6
ONE_THREAD: dict[str, Any] = {"threads": 1} if int(av.__version__.partition(".")[0]) >= 17 else {}
"""For conversions: PyAV 17 began to spread them over threads; before it they had none and no such argument."""

# Containers that have an index and right times after a jump; elsewhere (Ogg, MPEG ...) all packets are listed.
_INDEXED = {"mov", "matroska"}


@dataclass(frozen=True)
class FrameWindow:
    """Which frames to take: ``num_frames`` at ``frames_per_second`` (Hz), shrunk to ``short_side`` pixels if larger."""

    num_frames: int
    frames_per_second: float
    short_side: int

    def times(self, start_seconds: float, duration_seconds: float | None = None) -> np.ndarray:
        """``[T]`` seconds of the wanted frames; past ``duration_seconds`` they wrap round to the clip's beginning."""
        times = start_seconds + np.arange(self.num_frames) / self.frames_per_second + _TICK_SECONDS
        if duration_seconds is None:
            return times
        return times % duration_seconds if duration_seconds > 0 else np.zeros_like(times)


class RgbConverter:
    """Frames to ``[H, Wd, 3]`` uint8, upright, shrunk by area averaging where the short side is larger than ``short_side``.

    FFmpeg's tables are kept from frame to frame.
    """

    def __init__(self, short_side: int | None = None) -> None:
        self._short_side = short_side
        self._colours, self._size = VideoReformatter(), VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """Convert one frame."""
        rgb = self._colours.reformat(frame, format="rgb24", **ONE_THREAD)
        if self._short_side and min(rgb.width, rgb.height) > self._short_side:
            scale = self._short_side / min(rgb.width, rgb.height)
            size = round(rgb.width * scale), round(rgb.height * scale)
            rgb = self._size.reformat(rgb, *size, interpolation="AREA", **ONE_THREAD)
        return np.rot90(rgb.to_ndarray(), round(frame.rotation / 90) % 4)


def read_frames(container: InputContainer, window: FrameWindow, start_seconds: float) -> np.ndarray | None:
    """``[T, 3, H, Wd]`` uint8 RGB of a window inside the clip; only its packets are read.

    ``None`` where that does not suffice: the window goes past the clip's end, or it cannot be jumped to.

    Raises:
        DecodeError: ``no_video`` or ``undecodable``.
    """
    stream, times = video_stream(container), window.times(start_seconds)
    packets = _packets_around(container, stream, *(times[[0, -1]] + start_of(container)))
    return None if packets is None else _decode_at(container, stream, packets, times, window)


def read_frames_of_all(container: InputContainer, window: FrameWindow, start_seconds: float) -> np.ndarray:
    """As :func:`read_frames`, from the list of all packets: any window of any file, whose container must be fresh.

    Raises:
        DecodeError: ``no_video``, ``empty`` or ``undecodable``.
    """
    stream = video_stream(container)
    packets = [p for p in read_packets(container, stream) if p.size and p.pts is not None]
    last = max((p for p in packets if not p.is_discard), key=lambda p: p.pts, default=None)
    if last is None:
        raise DecodeError("empty", "the picture track has no frames")
    end = float((last.pts + (last.duration or 0)) * stream.time_base) - start_of(container)
    return _decode_at(container, stream, packets, window.times(start_seconds, end), window)


def stack_frames(images: Sequence[np.ndarray]) -> np.ndarray:
    """``[H, Wd, 3]`` each -> ``[T, 3, H, Wd]``, in one pass over memory.

    Raises:
        DecodeError: ``undecodable``: they are not all of one size.
    """
    if len({image.shape for image in images}) > 1:
        raise DecodeError("undecodable", "its pictures change their size")
    stacked = np.empty((len(images), 3, *images[0].shape[:2]), np.uint8)
    for place, image in zip(stacked, images, strict=True):
        place[:] = image.transpose(2, 0, 1)
    return stacked


def shrunk(images: np.ndarray, short_side: int) -> np.ndarray:
    """Frames ``[T, H, Wd, 3]`` uint8 that are already RGB to ``[T, 3, H, Wd]``, shrunk as those of a file are."""
    convert = RgbConverter(short_side)
    return stack_frames([convert(av.VideoFrame.from_ndarray(image)) for image in images])


def places_on_screen(clock: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Which of the frames that appear at the sorted seconds ``clock`` is on screen at each of ``times``."""
    return (np.searchsorted(clock, times, side="right") - 1).clip(0)


def _packets_around(container: InputContainer, stream: Any, first: float, last: float) -> list[Any] | None:
    """From the key frame before ``first`` to where nothing of ``last`` (s) or earlier can follow; ``None``: not found."""
    if not _INDEXED & set(container.format.name.split(",")):
        return None
    first_tick, last_tick = float(first / stream.time_base), float(last / stream.time_base)
    try:
        container.seek(int(first_tick), stream=stream)
    except av.FFmpegError:
        return None
    packets: list[Any] = []
    for packet in read_packets(container, stream):
        if not packet.size or packet.pts is None:
            continue
        if not packets and (not packet.is_keyframe or packet.pts > first_tick):
            return None
        packets.append(packet)
        # No packet is shown before it is decoded, so this one and whatever follows it are shown later.
        if packet.dts is not None and packet.dts > last_tick and not packet.is_discard:
            return packets
    return None


def _decode_at(
    container: InputContainer, stream: Any, packets: Sequence[Any], times: np.ndarray, window: FrameWindow
) -> np.ndarray:
    shown = sorted(p.pts for p in packets if not p.is_discard)
    clock = np.array(shown) * float(stream.time_base) - start_of(container)
    wanted = [shown[place] for place in places_on_screen(clock, times)]
    images = _decode_wanted(stream.codec_context, packets, sorted(set(wanted)), RgbConverter(window.short_side))
    return stack_frames([images[pts] for pts in wanted])


def _decode_wanted(
    context: Any, packets: Sequence[Any], wanted: list[int], convert: RgbConverter
) -> dict[int, np.ndarray]:
    """The frames shown from the sorted times ``wanted`` (stream ticks) on, as RGB by that time."""
    keys = sorted((p.pts, place) for place, p in enumerate(packets) if p.is_keyframe)

    def place_of_key(pts: int) -> int:
        number = bisect_right(keys, pts, key=lambda key: key[0]) - 1
        return keys[number][1] if number >= 0 else 0

    images: dict[int, np.ndarray] = {}
    for place, group in groupby(wanted, key=place_of_key):
        images |= _decode_group(context, packets[place:], list(group), convert)
    if not images:
        raise DecodeError("undecodable", "no frame of the picture track could be decoded")
    for pts in wanted:
        if pts not in images:  # damage: the one before stays on screen, or the first one comes early
            images[pts] = images[max((p for p in images if p < pts), default=min(images))]
    return images


def _decode_group(
    context: Any, packets: Sequence[Any], wanted: list[int], convert: RgbConverter
) -> dict[int, np.ndarray]:
    """The ``wanted`` frames that one key frame, the first of ``packets``, leads to; fewer where they are damaged."""
    images: dict[int, np.ndarray] = {}
    waiting, unsent, previous = wanted[::-1], set(wanted), None
    for packet in packets:
        # Frames that no other frame refers to are decoded only if they are wanted.
        context.skip_frame = "DEFAULT" if packet.pts in unsent else "NONREF"
        frames = context.decode(packet)
        unsent.discard(packet.pts)
        if not unsent:
            # The decoder holds frames back to bring them in order; asked to finish, it needs no more packets for that.
            frames += context.decode(None)
        for frame in frames:
            while waiting and frame.pts is not None and frame.pts >= waiting[-1]:
                # Where the wanted frame itself is missing, the one before it stays on screen.
                shown = frame if frame.pts == waiting[-1] or previous is None else previous
                images[waiting.pop()] = convert(shown)
            previous = frame
        if not unsent:
            break
    context.flush_buffers()
    return images | {pts: convert(previous) for pts in waiting if previous}
