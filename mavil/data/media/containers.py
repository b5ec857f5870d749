"""Opening media files: which containers are accepted, where their time starts, what they hold, how they fail.

Everything here is PyAV (FFmpeg) on one thread. A damaged file never ends the process: it becomes a :class:`DecodeError`.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

import av
from av.container import InputContainer
from av.stream import Disposition

from mavil.data.media.limits import (
    MAX_PIXELS,
    MAX_SECONDS,
    PacketCount,
    excess_in_tables,
    excess_in_tracks,
    is_listed_mp4,
)

Cause = Literal["missing", "empty", "undecodable", "no_audio", "no_video", "too_short", "too_large", "silent"]

MEDIA_ENDINGS = ("mp4", "m4a", "mov", "webm", "mkv", "wav", "flac", "ogg", "opus", "mp3")
"""Containers that go into shards as they are; the ending of a shard's media member is always one of these."""
CONVERTED_ENDINGS = ("avi", "mpg", "mpeg", "ts", "flv", "wmv", "m4v", "3gp", "aac", "aiff", "aif")
"""Containers that are read too, and re-encoded to mp4 or m4a on their way into a shard."""

# FFmpeg also "demuxes" play lists, which open other files and addresses: only real containers are let in.
_DEMUXERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,wav,flac,ogg,mp3,avi,mpeg,mpegts,flv,asf,aac,aiff"
_OPTIONS: dict[str, Any] = {
    "container_options": {"format_whitelist": _DEMUXERS},
    "options": {"max_pixels": str(MAX_PIXELS)},  # of the decoders that FFmpeg opens to learn what the tracks hold
}
# FFmpeg decodes the first frames to learn what the tracks hold. A plain MP4 says all of it in its header.
_NO_PROBING: dict[str, Any] = {"container_options": {"format_whitelist": _DEMUXERS, "probesize": "32"}}
JUMPY = ("mpeg", "mpegts")
"""FFmpeg's names of containers without an index, where a jump may end behind its target."""
# What PyAV raises on damaged data. Anything else (TypeError, AttributeError ...) is our own mistake and escapes.
DAMAGE = (av.FFmpegError, OSError, EOFError, ValueError, LookupError, ArithmeticError, MemoryError, RuntimeError)


class DecodeError(Exception):
    """A clip that cannot be used. ``cause`` is a short slug to count by, ``detail`` one line for people."""

    def __init__(self, cause: Cause, detail: str = "") -> None:
        super().__init__(cause, detail)
        self.cause: Cause = cause
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.cause}: {self.detail}" if self.detail else self.cause

    def told(self, path: str = "") -> str:
        """For a message that names the file already: without FFmpeg's numbers, and without the path."""
        detail = re.sub(r"^\[Errno \d+\] ", "", self.detail or self.cause.replace("_", " "))
        return detail.replace(f": {path!r}", "") if path else detail


@dataclass(frozen=True)
class MediaInfo:
    """What a file holds, by its packets: ``duration_seconds`` is where its last packet ends, not what the header claims.

    ``width`` / ``height`` are pixels as stored (before any rotation mark), 0 without a picture, as is
    ``frames_per_second``. ``ending`` is the file ending of the true container, e.g. ``mp4``, whatever the file is called.
    ``track_seconds`` is where ``audio`` and ``video`` end, of those that are there.
    """

    duration_seconds: float
    has_audio: bool
    has_video: bool
    width: int
    height: int
    frames_per_second: float
    ending: str
    track_seconds: dict[str, float]


@contextmanager
def open_media(source: bytes | str) -> Iterator[InputContainer]:
    """Open a file's bytes, or a file by its path, for reading.

    Raises:
        DecodeError: ``missing``, ``empty``, ``too_large`` (:mod:`mavil.data.media.limits`), or ``undecodable`` if anything
            fails here or while the body decodes.
    """
    if not source:
        raise DecodeError("empty", "the file has no bytes")
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
            refuse(excess_in_tables(file))
            opened = file if isinstance(source, bytes) else source
            with _open(file, opened) as container:
                refuse(excess_in_tracks(container))
                yield container
    except FileNotFoundError:
        raise DecodeError("missing", f"no such file: {source!r}") from None
    except DAMAGE as error:
        raise DecodeError("undecodable", " ".join(str(error).split())) from error


def read_file(path: str) -> bytes:
    """A file's bytes.

    Raises:
        DecodeError: ``missing``, or ``undecodable``: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        raise DecodeError("missing", f"no such file: {path!r}") from None
    except OSError as error:
        raise DecodeError("undecodable", " ".join(str(error).split())) from error


def _open(file: BinaryIO, opened: BinaryIO | str) -> InputContainer:
    if is_listed_mp4(file):
        file.seek(0)
        container = av.open(opened, mode="r", metadata_errors="replace", **{**_OPTIONS, **_NO_PROBING})
        if _is_told(container):
            return container
        container.close()
    file.seek(0)
    return av.open(opened, mode="r", metadata_errors="replace", **_OPTIONS)


def _is_told(container: InputContainer) -> bool:
    """Whether the header said what all tracks hold; that of MPEG-4 part 2 leaves its size to the decoder."""
    pictures, sounds = container.streams.video, container.streams.audio
    return all(s.codec_context and s.codec_context.width for s in pictures) and all(
        s.codec_context and s.codec_context.sample_rate for s in sounds
    )


def refuse(excess: str | None) -> None:
    """Raise ``too_large`` if there is anything in excess."""
    if excess is not None:
        raise DecodeError("too_large", excess)


def read_packets(container: InputContainer, streams: Any) -> Iterator[Any]:
    """The packets of one stream or several, in the file's order.

    Raises:
        DecodeError: ``too_large``: they are too many, or more than the file can hold.
    """
    count = PacketCount(container.size)
    for packet in container.demux(streams):
        refuse(count.excess(packet.size))
        yield packet


def audio_stream(container: InputContainer) -> Any:
    """The sound track, set to decode on the calling thread.

    Raises:
        DecodeError: ``no_audio``.
    """
    stream = next(iter(container.streams.audio), None)
    if stream is None:
        raise DecodeError("no_audio", "the file has no sound track")
    return _on_one_thread(stream)


def video_stream(container: InputContainer) -> Any:
    """The picture track (a cover image is none), set to decode on the calling thread.

    Raises:
        DecodeError: ``no_video``.
    """
    pictures = (s for s in container.streams.video if not s.disposition & Disposition.attached_pic)
    stream = next(pictures, None)
    if stream is None:
        raise DecodeError("no_video", "the file has no picture track")
    return _on_one_thread(stream)


def start_of(container: InputContainer) -> float:
    """Seconds on the file's own clock at which it begins; every time in this package counts from there."""
    return (container.start_time or 0) / av.time_base


def _ticks(duration: int | None) -> int:
    """A packet's length. FFmpeg gives the last one of an Ogg file that ends within a packet a negative length, as 32 bits without
    a sign: what is cut off."""
    if duration is None:
        return 0
    return duration - 2**32 if 2**31 <= duration < 2**32 else duration


def probe(media: bytes | str) -> MediaInfo:
    """What a file holds, without decoding it; ``media`` are its bytes, or its path.

    Raises:
        DecodeError: not a media file, or nothing in it.
    """
    with open_media(media) as container:
        streams = [s for s in (_stream_or_none(container, kind) for kind in (audio_stream, video_stream)) if s]
        if not streams:
            raise DecodeError("empty", "the file has neither sound nor picture")
        ends: dict[int, list[int]] = {s.index: [] for s in streams}  # in ticks of each stream
        for packet in read_packets(container, streams):
            if packet.pts is not None and packet.size and not packet.is_discard:
                own, end = ends[packet.stream_index], packet.pts + _ticks(packet.duration)
                own.append(end)
                if end < packet.pts:  # nothing before it is heard beyond it either
                    own[:] = [min(other, end) for other in own]
        filled = {s.type: s for s in streams if ends[s.index]}
        if not filled:
            raise DecodeError("empty", "the file's tracks hold no data")
        tracks = {kind: float(max(ends[s.index]) * s.time_base) - start_of(container) for kind, s in filled.items()}
        duration = max(tracks.values())
        if duration < 0:
            raise DecodeError("undecodable", "its packets end before it begins")
        if duration > MAX_SECONDS:
            raise DecodeError("too_large", f"its packets span {duration:.6g} s")
        video = filled.get("video")
        rate = float(video.average_rate or 0) or len(ends[video.index]) / max(duration, 1e-9) if video else 0.0
        return MediaInfo(
            duration_seconds=round(duration, 6),
            has_audio="audio" in filled,
            has_video=video is not None,
            width=video.codec_context.width if video else 0,
            height=video.codec_context.height if video else 0,
            frames_per_second=round(rate, 6),
            ending=_ending(container, media, has_video=video is not None),
            track_seconds={kind: round(end, 6) for kind, end in tracks.items()},
        )


def _on_one_thread(stream: Any) -> Any:
    if stream.codec_context is None:
        raise DecodeError("undecodable", f"its {stream.type} track has a codec that FFmpeg does not know")
    stream.thread_type = "NONE"
    stream.codec_context.thread_count = 1
    if stream.type == "video":
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
    return stream


def _stream_or_none(container: InputContainer, choose: Any) -> Any:
    try:
        return choose(container)
    except DecodeError as error:
        if error.cause == "undecodable":
            raise
        return None


def _ending(container: InputContainer, media: bytes | str, has_video: bool) -> str:
    names = container.format.name.split(",")
    if "mov" in names:
        if _beginning(media)[4:12] == b"ftypqt  ":
            return "mov"
        return "mp4" if has_video else "m4a"
    if "matroska" in names:
        return "webm" if b"webm" in _beginning(media) else "mkv"
    return names[0]


def _beginning(media: bytes | str) -> bytes:
    if isinstance(media, str):
        with open(media, "rb") as file:
            return file.read(64)
    return media[:64]
