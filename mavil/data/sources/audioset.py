"""AudioSet's segment lists: balanced, unbalanced and evaluation."""

from __future__ import annotations

from pathlib import Path

from mavil.data.sources.class_names import labels_in, read_classes
from mavil.data.sources.keys import segment_key
from mavil.data.sources.list_files import read_rows, seconds_of
from mavil.data.sources.listing import Listing, ListingBuilder, SourceOptions
from mavil.data.sources.media_files import MediaFiles, media_roots
from mavil.data.sources.recordings import YOUTUBE_ID
from mavil.structs import Clip, UserError

MANGLED = "is not a YouTube id of 11 characters: a spreadsheet has changed the list; fetch it again"
COLUMNS = 4


def read_audioset(source: Path, options: SourceOptions) -> Listing:
    """One clip per row ``YTID, start, end, "mid,mid"``; key ``YTID_000030``, labels by the classes file or else the mids.

    A file named by the bare id may be the segment or the whole video: it gets the span, and ``may_be_cut``. One with the
    start in its name is the segment itself.

    Raises:
        UserError: the file is no such list, a class is unknown, or none of the clips has a file.
    """
    classes = read_classes(options.classes)
    media = MediaFiles(media_roots(options.media, source.parent))
    found = ListingBuilder(source)
    labels_of: dict[str, tuple[str, ...]] = {}
    for line, row in read_rows(source):
        if len(row) != COLUMNS:
            raise UserError(
                f"{source}, line {line}: {len(row)} cells where AudioSet's lists have {COLUMNS} "
                '(YTID, start, end, "mid,mid"); is the list of another format?'
            )
        youtube_id, start, end = row[0], seconds_of(source, line, row[1]), seconds_of(source, line, row[2])
        if not YOUTUBE_ID.fullmatch(youtube_id):
            found.reject(youtube_id, "mangled_id", f"{youtube_id!r} {MANGLED}", line)
            continue
        labels = labels_of.get(row[3])
        if labels is None:
            labels = labels_of[row[3]] = labels_in(row[3], classes, source, line)
        add_segment(found, media, line, youtube_id, start, end, labels)
    return found.listing(media, classes.names if classes else ())


def add_segment(
    found: ListingBuilder,
    media: MediaFiles,
    line: int,
    youtube_id: str,
    start: float,
    end: float,
    labels: tuple[str, ...],
    metadata: dict[str, str] | None = None,
) -> None:
    """Add seconds ``start`` to ``end`` of a YouTube video, or say that it is listed twice or has no file."""
    key = segment_key(youtube_id, start)
    if not found.is_new(key, line):
        return
    if end <= start:
        found.reject(key, "empty_span", f"from {start:g} to {end:g} s", line)
        return
    file = media.segment(youtube_id, start, end)
    if file is None:
        times = f"{start:g}", f"{start:g}_{end:g}"
        names = f"{youtube_id}, Y{youtube_id}, {key}, {youtube_id}_{times[0]} or {youtube_id}_{times[1]}"
        found.reject(key, "missing", f"no media file {names}", line)
        return
    found.add(
        Clip(
            key=key,
            path=file.path,
            start_seconds=None if file.is_cut else start,
            end_seconds=None if file.is_cut else end,
            labels=labels,
            metadata=metadata or {},
            source_id=youtube_id,
            may_be_cut=not file.is_cut,
        )
    )
