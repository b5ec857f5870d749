"""From a clip to the bytes that go into a shard: where its media lies, what of it is cut, how that is encoded."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from mavil.atomic_files import sha256_of
from mavil.data.media.containers import DecodeError, open_media, read_packets, start_of
from mavil.data.media.encoders import WHOLE_FILE_SECONDS, cut_clip, encode_stills, read_file
from mavil.data.media.encodings import KEEP_PICTURE, TRAINING, SpanEncoding
from mavil.structs import Clip, UserError

SPARE_SECONDS = 1.0
"""A file that ``may_be_cut`` is cut only if it is longer than its span by more than this [our choice]: encoders round."""


@dataclass(frozen=True)
class Target:
    """What clips become: ``encoding`` of ``None`` copies whole files as they are; ``seconds`` is the most that is kept."""

    encoding: SpanEncoding | None = None
    seconds: float | None = None


ENCODES = {
    "copy": "whole files as they are, spans encoded anew",
    "training": "short side 256, H.264 with a key frame every 16 frames, 16 kHz mono",
}
"""Presets of ``mavil shards make --encode`` and what they do."""
TRAINING_SECONDS = 10.0


def target_of(encode: str, seconds: float | None) -> Target:
    """The target of a preset; ``seconds`` of ``None`` is the preset's own.

    Raises:
        UserError: no such preset, or a length that it does not take.
    """
    if encode not in ENCODES:
        raise UserError(f"encode {encode!r}: no such preset; choose one of {', '.join(ENCODES)}")
    if encode == "copy":
        if seconds is not None:
            raise UserError(
                f"{seconds:g} seconds: whole files are copied as they are; to cut them, encode for training"
            )
        return Target()
    if seconds is not None and seconds <= 0:
        raise UserError(f"{seconds:g} seconds: a clip must be longer than nothing")
    return Target(TRAINING, TRAINING_SECONDS if seconds is None else seconds)


@dataclass(frozen=True)
class Source:
    """Where a clip's media is: a file's path, or its bytes; the span to take of it (s), and its pictures if apart."""

    media: bytes | str
    start_seconds: float | None
    end_seconds: float | None
    stills: tuple[str, ...] = ()

    @property
    def span(self) -> tuple[float, float]:
        """Start and end, s; a whole file has an end far away."""
        return self.start_seconds or 0.0, WHOLE_FILE_SECONDS if self.end_seconds is None else self.end_seconds

    def digest(self) -> str:
        """Equal for equal content, whatever the files are called: of the bytes, the span and the pictures."""
        digest = hashlib.sha256(f"{self.start_seconds} {self.end_seconds}".encode())
        digest.update(_digest(self.media))
        for still in self.stills:
            digest.update(_digest(still))
        return digest.hexdigest()[:32]


def locate(clip: Clip, target: Target) -> Source:
    """Find the media of a clip. A file that is taken whole is read at once, others are left to the decoder.

    Raises:
        DecodeError: ``missing``, or what opening a file that ``may_be_cut`` shows.
    """
    media: bytes | str = clip.path if clip.byte_range is None else _read_range(clip.path, *clip.byte_range)
    start, end = clip.start_seconds, clip.end_seconds
    if clip.may_be_cut and end is not None and _seconds_of(media) <= end - (start or 0.0) + SPARE_SECONDS:
        start = end = None
    if target.seconds is not None:
        end = min(WHOLE_FILE_SECONDS if end is None else end, (start or 0.0) + target.seconds)
    if clip.stills is not None:
        return Source(media, start, end, find_stills(clip.stills))
    if start is None and end is None and isinstance(media, str):
        media = read_file(media)
    return Source(media, start, end)


def read_clip(clip: Clip, target: Target = Target()) -> bytes:
    """The media file of a clip, ready for a shard.

    Raises:
        DecodeError: see :func:`mavil.data.media.encoders.cut_clip`.
    """
    source = locate(clip, target)
    if source.stills:
        images = [read_file(still) for still in source.stills]
        return encode_stills(images, source.media, *source.span, target.encoding or KEEP_PICTURE)
    return cut_clip(source.media, source.start_seconds, source.end_seconds, target.encoding)


def find_stills(pattern: str) -> tuple[str, ...]:
    """The image files of a pattern with ``*`` for the number, in the order of their numbers.

    Raises:
        DecodeError: ``missing``: there is none.
    """
    found = glob.glob("*".join(glob.escape(part) for part in pattern.split("*")))
    if not found:
        raise DecodeError("missing", f"no image file {pattern}")
    return tuple(sorted(found, key=_by_number))


def _by_number(path: str) -> list[str | int]:
    parts = re.split(r"(\d+)", path)  # text and numbers in turn
    return [int(part) if place % 2 else part for place, part in enumerate(parts)]


def _read_range(path: str, offset: int, size: int) -> bytes:
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            media = file.read(size)
    except OSError as error:
        raise DecodeError("missing", f"{error.strerror}: {path}") from None
    if len(media) < size:
        raise DecodeError("undecodable", f"the file has {offset + len(media)} bytes and should have {offset + size}")
    return media


def _seconds_of(media: bytes | str) -> float:
    with open_media(media) as container:
        if container.duration:
            return container.duration / 1e6
        packets = read_packets(container, [s for s in container.streams if s.type in ("audio", "video")])
        ends = (float((p.pts + (p.duration or 0)) * p.time_base) for p in packets if p.size and p.pts is not None)
        return max(ends, default=0.0) - start_of(container)


def _digest(media: bytes | str) -> bytes:
    if isinstance(media, bytes):
        return hashlib.sha256(media).digest()
    try:
        status = os.stat(media)
        return _digest_of_file(media, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise DecodeError("missing", f"{error.strerror}: {media}") from None


@lru_cache(maxsize=8)  # the spans of one long file mostly follow each other
def _digest_of_file(path: str, size: int, changed: int) -> bytes:
    return bytes.fromhex(sha256_of(Path(path)))
