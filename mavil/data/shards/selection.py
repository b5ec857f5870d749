"""Which clips of a source are packed: a range, without those that another list has; and what is said of those left out."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mavil.data.shards.screening import SILENCE_DBFS
from mavil.data.sources.listing import Listing, Reject
from mavil.data.sources.overlap import Overlap
from mavil.structs import UserError

OVERLAP = "overlap.csv"
CAUSES = {
    "missing": "there is no such file",
    "mangled_id": "a spreadsheet has changed it",
    "empty_span": "it ends before it begins",
    "damaged_tar": "the tar ends too early",
    "damaged_record": "its record cannot be read",
    "duplicate": "listed twice, or same content",
    "excluded": "on a list to exclude",
    "empty": "a file without any media",
    "undecodable": "damaged, or not a medium",
    "no_audio": "it has no sound track",
    "no_video": "it has no picture track",
    "too_short": "shorter than the shortest allowed",
    "too_large": "claims more than is sensible",
    "silent": f"nothing louder than {SILENCE_DBFS:g} dBFS",
    "timeout": "decoding it took too long",
    "killed": "it ended its decoder's process",
}
"""Causes for which clips are left out, in the order in which they are found, and what they mean."""


def take_range(listing: Listing, source: Path, skip: int, limit: int | None) -> Listing:
    """The clips without the first ``skip``, at most ``limit``. What the source rejects belongs to no range.

    Raises:
        UserError: none is left.
    """
    if skip == 0 and limit is None:
        return listing
    clips = listing.clips[skip : None if limit is None else skip + limit]
    if not clips:
        raise UserError(f"{source} has {len(listing.clips)} clips: none is left with skip {skip} and limit {limit}")
    return replace(listing, clips=clips, rejects=())


def leave_out(listing: Listing, overlaps: Sequence[Overlap]) -> Listing:
    """Without the clips that are on a list, which become rejects with cause ``excluded``."""
    names = {key: overlap.path.name for overlap in overlaps for key in overlap.keys}
    excluded = (Reject(c.key, c.path, "excluded", f"on {names[c.key]}") for c in listing.clips if c.key in names)
    kept = tuple(clip for clip in listing.clips if clip.key not in names)
    return replace(listing, clips=kept, rejects=(*listing.rejects, *excluded))


def write_overlaps(path: Path, listing: Listing, overlaps: Sequence[Overlap]) -> None:
    """Write one row for each clip and list that it is on: key, source_id, list."""
    ids = {clip.key: clip.source_id for clip in listing.clips}
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("key", "source_id", "list"))
        writer.writerows((key, ids[key], str(overlap.path)) for overlap in overlaps for key in overlap.keys)
