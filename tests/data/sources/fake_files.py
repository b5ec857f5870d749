"""Files that are only names, and lists typed in: importers look at nothing else."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from mavil.data.sources.listing import Listing

AUDIOSET_CLASSES = """index,mid,display_name
0,/m/09x0r,"Speech"
1,/m/05zppz,"Male speech, man speaking"
2,/m/068hy,"Domestic animals, pets"
3,/t/dd00088,"Gush"
"""


def touch(folder: Path, *names: str) -> Path:
    """Make one-byte files below a folder, and give the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def write(path: Path, text: str) -> Path:
    """Write a text file with its folders, and give its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def causes(listing: Listing) -> dict[str, int]:
    """How often each cause of a reject is there."""
    return dict(Counter(reject.cause for reject in listing.rejects))


def by_key(listing: Listing) -> dict[str, str]:
    """Key to path."""
    return {clip.key: clip.path for clip in listing.clips}
