"""What a media file may claim, checked before memory or time is spent on it. All limits are our choice: far above what
people have, far below what hurts.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import islice
from typing import Any, BinaryIO

MAX_TRACKS = 64
MAX_PIXELS = 2**26
"""Width times height of a picture; 8K is half of it."""
MAX_SIDE = 2**14
SAMPLE_RATES = (100, 768_000)
"""Lowest and highest, Hz."""
MAX_CHANNELS = 64
MAX_SECONDS = 86_400.0
"""From the first packet of a file to the end of its last: one day."""
MAX_PACKETS = 2_000_000
"""Read in one pass; five hours of film with sound."""
MAX_SOUND_BYTES = 2**31
"""Decoded at once, as float32; an hour and a half of 48 kHz stereo."""
_SPARE_BYTES = 2**20
_MAX_BOXES = 200_000
# The boxes of an MP4 that hold boxes, on the way to the tables of frames.
_NESTED = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf", b"mvex", b"edts", b"dinf", b"udta", b"wave"}
# Where in the content of these boxes the number of frames stands.
_COUNTS = {b"stsz": 8, b"stz2": 8, b"trun": 4}


def excess_in_tables(file: BinaryIO) -> str | None:
    """What an MP4 or MOV claims beyond reason, or ``None``, as for every other container.

    FFmpeg makes room for every frame that a table claims while it opens the file: a file of 16 KB that claims 85 million
    costs 3 GB and 8 s. No frame takes less than a byte, so that a file cannot hold more frames than it has bytes.
    """
    size = file.seek(0, 2)
    num_frames = 0
    for number, (kind, start) in enumerate(_boxes(file, 0, size)):
        if number == _MAX_BOXES:
            return f"it is made of more than {_MAX_BOXES} boxes"
        if kind == b"cmov":  # what is in it cannot be judged before it is unpacked
            return "its header is compressed"
        if kind in _COUNTS:
            file.seek(start + _COUNTS[kind])
            num_frames += int.from_bytes(file.read(4), "big")
    return f"its tables claim {num_frames} frames in {size} bytes" if num_frames > size else None


def is_listed_mp4(file: BinaryIO) -> bool:
    """Whether it is an MP4 or MOV whose header lists every frame: not one in fragments, which tell their own."""
    kinds = {kind for kind, _ in islice(_boxes(file, 0, file.seek(0, 2)), _MAX_BOXES)}
    return b"moov" in kinds and not kinds & {b"mvex", b"moof"}


def _boxes(file: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, int]]:
    """Type and begin of the content of every box from ``start`` to ``end``, with those inside, as FFmpeg walks them."""
    pending = [(start, end)]
    while pending:
        start, end = pending.pop()
        while start + 8 <= end:
            file.seek(start)
            head = file.read(16)
            if len(head) < 8:
                return
            size, kind = struct.unpack_from(">I4s", head)
            content = start + 8
            if size == 1 and len(head) == 16:
                size, content = int.from_bytes(head[8:], "big"), start + 16
            last = end if size == 0 else min(end, start + size)
            if last < content:
                break
            yield kind, content
            if kind in _NESTED:
                pending.append((content, last))
            start = last


def excess_in_tracks(container: Any) -> str | None:
    """What the tracks of an opened file claim beyond reason, or ``None``."""
    if len(container.streams) > MAX_TRACKS:
        return f"it has {len(container.streams)} tracks, more than {MAX_TRACKS}"
    for track in container.streams.video:
        width, height = (track.codec_context.width, track.codec_context.height) if track.codec_context else (0, 0)
        if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
            return f"its pictures claim {width}x{height} pixels"
    for track in container.streams.audio:
        context = track.codec_context
        if context is None or not context.sample_rate:  # refused later, if that track is wanted at all
            continue
        if not SAMPLE_RATES[0] <= context.sample_rate <= SAMPLE_RATES[1]:
            return f"its sound claims {context.sample_rate} samples a second"
        if context.layout.nb_channels > MAX_CHANNELS:
            return f"its sound claims {context.layout.nb_channels} channels"
    return None


class PacketCount:
    """Adds up the packets of one pass over a file of ``file_bytes``; a table can point at the same bytes many times."""

    def __init__(self, file_bytes: int) -> None:
        self._packets_left, self._bytes_left = MAX_PACKETS, 2 * file_bytes + _SPARE_BYTES

    def excess(self, num_bytes: int) -> str | None:
        """What was too much, now that another packet of ``num_bytes`` came, or ``None``."""
        self._packets_left -= 1
        self._bytes_left -= num_bytes
        if self._packets_left < 0:
            return f"it has more than {MAX_PACKETS} packets"
        return "its packets hold more bytes than the file" if self._bytes_left < 0 else None
