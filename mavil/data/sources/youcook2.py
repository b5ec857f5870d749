"""YouCook2: the official annotations (JSON) and the segment lists of MIL-NCE (CSV)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mavil.data.sources.keys import segment_key
from mavil.data.sources.list_files import read_json, read_table, seconds_of
from mavil.data.sources.listing import Listing, ListingBuilder, SourceOptions
from mavil.data.sources.media_files import MediaFiles, media_roots
from mavil.data.sources.recordings import YOUTUBE_ID
from mavil.structs import Clip, UserError


class _Segment(NamedTuple):
    line: int
    youtube_id: str
    start: float
    end: float
    metadata: dict[str, str]


def read_youcook2(source: Path, options: SourceOptions) -> Listing:
    """One clip per annotated segment, key ``ID_000090_000102``; no labels.

    Metadata ``caption`` (several of one segment: one a line) and ``recipe_type``; from the JSON also ``split`` (training,
    validation). A file named by the bare id is the whole video, one with the times in its name the segment.

    Raises:
        UserError: the file is no such list, has no such split, or none of the clips has a file.
    """
    segments = list(_from_json(source) if source.suffix.lower() == ".json" else _from_csv(source))
    if options.split is not None:
        splits = sorted({segment.metadata["split"] for segment in segments if "split" in segment.metadata})
        if options.split not in splits:
            raise UserError(f"{source} has no split {options.split!r}: {', '.join(splits) or 'it names none'}")
        segments = [segment for segment in segments if segment.metadata["split"] == options.split]
    media = MediaFiles(media_roots(options.media, source.parent))
    found = ListingBuilder(source)
    for line, youtube_id, start, end, metadata in _once(segments, found):
        key = segment_key(youtube_id, start, end)
        if not YOUTUBE_ID.fullmatch(youtube_id):
            found.reject(key, "mangled_id", f"{youtube_id!r} is not a YouTube id of 11 characters", line)
            continue
        if end <= start:
            found.reject(key, "empty_span", f"from {start:g} to {end:g} s", line)
            continue
        file = media.segment(youtube_id, start, end)
        if file is None:
            found.reject(key, "missing", f"no media file {youtube_id} or {key}", line)
            continue
        found.add(
            Clip(
                key,
                file.path,
                start_seconds=None if file.is_cut else start,
                end_seconds=None if file.is_cut else end,
                metadata=metadata,
                source_id=youtube_id,
            )
        )
    return found.listing(media)


def _once(segments: list[_Segment], found: ListingBuilder) -> list[_Segment]:
    """Each segment once, with all its captions; one that is listed again with the same caption is rejected."""
    once: dict[tuple[str, float, float], _Segment] = {}
    for segment in segments:
        first = once.setdefault((segment.youtube_id, segment.start, segment.end), segment)
        if first is segment:
            continue
        if segment.metadata["caption"] in first.metadata["caption"].split("\n"):
            key = segment_key(segment.youtube_id, segment.start, segment.end)
            found.reject(key, "duplicate", f"the same clip as in line {first.line}", segment.line)
        else:
            first.metadata["caption"] += "\n" + segment.metadata["caption"]
    return list(once.values())


def _from_csv(source: Path) -> Iterator[_Segment]:
    for line, row in read_table(source, "video_id", "start", "end", "task", "text"):
        start, end = (seconds_of(source, line, row[name]) for name in ("start", "end"))
        metadata = {"caption": " ".join(row["text"].split()), "recipe_type": row["task"]}
        yield _Segment(line, row["video_id"].strip(), start, end, metadata)


def _from_json(source: Path) -> Iterator[_Segment]:
    data = read_json(source)
    if not isinstance(data, dict) or not isinstance(data.get("database"), dict):
        raise UserError(f"{source}: no entry 'database' as in YouCook2's annotations; is the list of another format?")
    number = 0
    for youtube_id, video in data["database"].items():
        for annotation in video.get("annotations", ()) if isinstance(video, dict) else ():
            number += 1
            try:
                start, end = (float(seconds) for seconds in annotation["segment"])
                if not (0 <= start < math.inf and 0 <= end < math.inf):
                    raise ValueError
                yield _Segment(number, youtube_id, start, end, _metadata(video, annotation))
            except (KeyError, TypeError, ValueError):
                raise UserError(
                    f"{source}, video {youtube_id}: segment {annotation!r} is not [start, end] in seconds"
                ) from None


def _metadata(video: dict[str, Any], annotation: dict[str, Any]) -> dict[str, str]:
    return {
        "caption": " ".join(str(annotation.get("sentence", "")).split()),
        "recipe_type": str(video.get("recipe_type", "")),
        "split": str(video.get("subset", "")),
    }
