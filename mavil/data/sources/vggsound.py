"""VGGSound's lists: the whole set with its split, and the test lists that name files."""

from __future__ import annotations

from pathlib import Path

from mavil.data.sources.audioset import MANGLED, add_segment
from mavil.data.sources.class_names import read_classes
from mavil.data.sources.list_files import read_rows, seconds_of
from mavil.data.sources.listing import Listing, ListingBuilder, SourceOptions
from mavil.data.sources.media_files import MediaFiles, media_roots
from mavil.data.sources.recordings import YOUTUBE_ID
from mavil.structs import UserError

CLIP_SECONDS = 10.0
SPLITS = ("train", "test")


def read_vggsound(source: Path, options: SourceOptions) -> Listing:
    """One clip per row, 10 s from its start: ``ID,start,label,split``, or ``ID_000030.mp4,label`` in a test list.

    Keys are VGGSound's file names, ``ID_000030``. Files are found as for AudioSet. Metadata ``split``, where the list has it.

    Raises:
        UserError: the file is no such list, the split or a class is unknown, or none of the clips has a file.
    """
    if options.split is not None and options.split not in SPLITS:
        raise UserError(f"VGGSound has no split {options.split!r}: choose one of {', '.join(SPLITS)}")
    classes = read_classes(options.classes)
    media = MediaFiles(media_roots(options.media, source.parent))
    found = ListingBuilder(source)
    for line, row in read_rows(source):
        youtube_id, start, label, split = _cells(source, line, row)
        if options.split is not None and split is None:
            raise UserError(f"{source}: this list does not say which split a clip belongs to; leave the split out")
        if options.split not in (None, split):
            continue
        if not YOUTUBE_ID.fullmatch(youtube_id):
            found.reject(youtube_id, "mangled_id", f"{youtube_id!r} {MANGLED}", line)
            continue
        labels = (label if classes is None else classes.name_of(label, source, line),)
        metadata = {} if split is None else {"split": split}
        add_segment(found, media, line, youtube_id, start, start + CLIP_SECONDS, labels, metadata)
    return found.listing(media, classes.names if classes else ())


def _cells(source: Path, line: int, row: list[str]) -> tuple[str, float, str, str | None]:
    """(YouTube id, start, label, split)."""
    if len(row) == 4 and row[3].strip() in SPLITS:
        return row[0], seconds_of(source, line, row[1]), row[2].strip(), row[3].strip()
    if len(row) == 2 and "_" in row[0]:
        youtube_id, _, start = row[0].partition(".")[0].rpartition("_")
        return youtube_id, seconds_of(source, line, start), row[1].strip(), None
    raise UserError(
        f"{source}, line {line}: {','.join(row)!r} is neither ID,start,label,split (split is {' or '.join(SPLITS)}) "
        "nor ID_000030.mp4,label as in VGGSound's lists; is the list of another format?"
    )
