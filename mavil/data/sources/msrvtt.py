"""MSR-VTT: the 1k test list (``MSRVTT_JSFUSION_test.csv``), lists of training videos, and the JSON with all captions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mavil.data.sources.keys import plain_key
from mavil.data.sources.list_files import read_json, read_table
from mavil.data.sources.listing import Listing, ListingBuilder, SourceOptions
from mavil.data.sources.media_files import MediaFiles, media_roots
from mavil.data.sources.recordings import youtube_id_of_url
from mavil.structs import Clip, UserError


@dataclass
class _Video:
    line: int
    captions: list[str] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)
    source_id: str = ""


def read_msrvtt(source: Path, options: SourceOptions) -> Listing:
    """One clip per video, in the list's order; its file is ``video9770.mp4``, the clip itself. No labels.

    Metadata ``caption`` holds the video's captions, one a line (MSR-VTT has 20; the 1k list one); from the JSON also
    ``split`` (train, validate, test) and ``category``. ``source_id`` is the YouTube id where the list gives the address,
    otherwise ``video9770``, which is the key in either case.

    Raises:
        UserError: the file is no such list, has no such split, or none of the clips has a file.
    """
    videos = _from_json(source) if source.suffix.lower() == ".json" else _from_csv(source)
    if options.split is not None:
        splits = sorted({video.metadata["split"] for video in videos.values() if "split" in video.metadata})
        if options.split not in splits:
            raise UserError(f"{source} has no split {options.split!r}: {', '.join(splits) or 'it names none'}")
        videos = {name: video for name, video in videos.items() if video.metadata["split"] == options.split}
    media = MediaFiles(media_roots(options.media, source.parent))
    found = ListingBuilder(source)
    for name, video in videos.items():
        key = plain_key(name)
        path = media.named(name)
        if path is None:
            found.reject(key, "missing", f"no media file {name}", video.line)
            continue
        captions = "\n".join(dict.fromkeys(" ".join(caption.split()) for caption in video.captions))
        metadata = {"caption": captions, **video.metadata}
        found.add(Clip(key, path, metadata=metadata, source_id=video.source_id or name), name)
    return found.listing(media)


def _from_csv(source: Path) -> dict[str, _Video]:
    videos: dict[str, _Video] = {}
    for line, row in read_table(source, "video_id"):
        video = videos.setdefault(row["video_id"].strip(), _Video(line))
        if row.get("sentence"):
            video.captions.append(row["sentence"])
    return videos


def _from_json(source: Path) -> dict[str, _Video]:
    data = read_json(source)
    if not isinstance(data, dict) or "videos" not in data:
        raise UserError(f"{source}: no entry 'videos' as in MSR-VTT's JSON; is the list of another format?")
    videos: dict[str, _Video] = {}
    for number, name, entry in _named(source, data, "videos"):
        metadata: dict[str, str] = {name: str(entry[name]) for name in ("split", "category") if name in entry}
        videos[name] = _Video(number, [], metadata, youtube_id_of_url(str(entry.get("url", ""))) or "")
    for _, name, entry in _named(source, data, "sentences"):
        if name in videos:
            videos[name].captions.append(str(entry.get("caption", "")))
    return videos


def _named(source: Path, data: dict[str, Any], part: str) -> Iterator[tuple[int, str, dict[str, Any]]]:
    for number, entry in enumerate(data.get(part, ()), start=1):
        if not isinstance(entry, dict) or not isinstance(entry.get("video_id"), str):
            raise UserError(f"{source}, {part} {number}: no text 'video_id' as in MSR-VTT's JSON")
        yield number, entry["video_id"], entry
