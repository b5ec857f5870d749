"""What data sets call a recording: the names by which two lists can be compared."""

from __future__ import annotations

import re

from mavil.data.sources.media_files import is_media

YOUTUBE_ID = re.compile(r"[A-Za-z0-9_-]{11}")
_URL = re.compile(r"youtu.*?(?:[?&]v=|\.be/|/shorts/|/embed/|/v/)([A-Za-z0-9_-]{11})(?![A-Za-z0-9_-])")
_TIMES = r"(?:_\d+(?:\.\d+)?){0,2}"
_PATTERNS = tuple(
    re.compile(pattern)
    for pattern in (
        r"(?:.*/)?id\d{5}/([A-Za-z0-9_-]{11})/\d{5}",  # VoxCeleb: the YouTube id is a folder
        r"(?:.*/)?([^/]+/[0-9a-f]{8}_nohash_\d+)",  # Speech Commands: the same speaker says many words
        r"(?:.*/)?(synthetic_\d+_\d{6})",  # ours: "synthetic_0" has the form of a YouTube id, the number that of a time
        rf"(?:.*/)?([A-Za-z0-9_-]{{11}}){_TIMES}",
        rf"(?:.*/)?Y([A-Za-z0-9_-]{{11}}){_TIMES}",
        r"(?:.*/)?[1-5]-(\d+)-[A-Z](?:-\d+)?",  # ESC-50: fold, freesound id, take, class
    )
)


def recording_of(name: str) -> str:
    """The recording a clip belongs to, by a file name or path or the name of a segment.

    The YouTube id of ``ID``, ``ID_START``, ``ID_START_END``, ``YID`` and VoxCeleb's ``id10001/ID/00001``; the freesound id
    of ESC-50's files; word and file of Speech Commands; otherwise the file's name without its ending.
    """
    name = name.strip().replace("\\", "/")
    if is_media(name):
        name = name.rpartition(".")[0]
    for pattern in _PATTERNS:
        match = pattern.fullmatch(name)
        if match:
            return match.group(1)
    return name.rpartition("/")[2]


def youtube_id_of_url(url: str) -> str | None:
    """The id in the address of a YouTube video, ``None`` for any other address."""
    match = _URL.search(url)
    return match.group(1) if match else None
