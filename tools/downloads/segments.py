"""The lists of YouTube clips: which seconds of which video, and what the file of each is called."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mavil.data.sources.keys import segment_key
from mavil.data.sources.list_files import read_rows, seconds_of
from mavil.data.sources.recordings import YOUTUBE_ID
from mavil.data.sources.vggsound import CLIP_SECONDS
from mavil.structs import UserError


@dataclass(frozen=True)
class Segment:
    """Seconds ``start`` to ``end`` of a video."""

    video_id: str
    start: float
    end: float

    @property
    def name(self) -> str:
        """``ID_000030``: what ``mavil shards make`` looks for, and what the journal calls it."""
        if self.start == int(self.start):
            return segment_key(self.video_id, self.start)
        return f"{self.video_id}_{self.start:010.3f}"


def read_segments(path: Path, dataset: str) -> tuple[list[Segment], list[str]]:
    """The segments of an official list in its order, each once, and what stands there in the place of a YouTube id.

    ``audioset``: id, start, end, labels after comment lines. ``vggsound``: id, start, label, split; or the test list's
    ``ID_000030.mp4`` and label.

    Raises:
        UserError: the list cannot be read, has no clips, or a line is not of this kind.
    """
    read = {"audioset": _audioset_segment, "vggsound": _vggsound_segment}[dataset]
    rows = list(dict.fromkeys(read(path, line, row) for line, row in read_rows(path)))
    segments = [segment for segment in rows if YOUTUBE_ID.fullmatch(segment.video_id)]
    if not segments:
        raise UserError(f"{path}: no clips in this list; give the CSV as {dataset} publishes it")
    return segments, [segment.video_id for segment in rows if not YOUTUBE_ID.fullmatch(segment.video_id)]


def choose_segments(
    segments: Sequence[Segment], part: tuple[int, int], limit: int | None, shuffle_seed: int | None
) -> list[Segment]:
    """This machine's share: every ``parts``-th segment from ``number`` on (from 1), in the list's order or a seeded one.

    All machines must be given the same list, seed and number of parts; their shares then make up the list.
    """
    order = list(segments)
    if shuffle_seed is not None:
        random.Random(shuffle_seed).shuffle(order)
    number, parts = part
    return order[number - 1 :: parts][:limit]


def part_of(text: str) -> tuple[int, int]:
    """``3/8`` as (3, 8).

    Raises:
        UserError: it is not a share, or one beyond the last.
    """
    number, slash, parts = text.partition("/")
    if not (slash and number.isdecimal() and parts.isdecimal() and 1 <= int(number) <= int(parts)):
        raise UserError(f"--part {text}: write the share and the number of shares, such as 3/8")
    return int(number), int(parts)


def _audioset_segment(path: Path, line: int, row: list[str]) -> Segment:
    if len(row) < 4:
        raise UserError(f"{path}, line {line}: not id, start, end and labels; is this a list of AudioSet segments?")
    return _segment(path, line, row[0], seconds_of(path, line, row[1]), seconds_of(path, line, row[2]))


def _vggsound_segment(path: Path, line: int, row: list[str]) -> Segment:
    if row[0].endswith(".mp4"):
        video_id, _, start = row[0].removesuffix(".mp4").rpartition("_")
    elif len(row) >= 3:
        video_id, start = row[:2]
    else:
        raise UserError(f"{path}, line {line}: not id, start, label and split; is this the list of VGGSound?")
    seconds = seconds_of(path, line, start)
    return _segment(path, line, video_id, seconds, seconds + CLIP_SECONDS)


def _segment(path: Path, line: int, video_id: str, start: float, end: float) -> Segment:
    if end <= start:
        raise UserError(f"{path}, line {line}: end {end:g} is not after start {start:g}")
    return Segment(video_id.strip(), start, end)
