"""The media files below some folders: scanned once, then looked up by the names that data sets give their clips."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from mavil.data.media import CONVERTED_ENDINGS, MEDIA_ENDINGS
from mavil.structs import UserError

ENDINGS = MEDIA_ENDINGS + CONVERTED_ENDINGS
"""File endings of clips."""
SOUND_ENDINGS = ("m4a", "wav", "flac", "ogg", "opus", "mp3", "aac", "aiff", "aif")
"""Those without a picture: where a clip has a file of both kinds, the one with a picture is taken."""

_FRAME_FOLDER = re.compile(r"frame_\d+")
_TIMES = re.compile(r"(?:_(\d+(?:\.\d+)?))?(?:_(\d+(?:\.\d+)?))?")
_ID_CHARACTERS = 11


class SegmentFile(NamedTuple):
    """``is_cut``: the name says where the segment starts, so the file is the segment alone."""

    path: str
    is_cut: bool


class MediaFiles:
    """Every media file below ``roots`` at any depth, hidden ones left out; one pass over the folders, no look at a file.

    The pass is made when the files are first asked for.
    """

    def __init__(self, roots: Sequence[Path]) -> None:
        self.roots = tuple(roots)
        self._by_name: dict[int, dict[str, str]] = {}

    @property
    def paths(self) -> list[str]:
        """The files, in no particular order.

        Raises:
            UserError: a folder is not there or cannot be read.
        """
        return self._found[0]

    @property
    def frame_folders(self) -> list[str]:
        """Folders that hold ``frame_0``, ``frame_1`` ... (CAV-MAE's pictures), sorted; those are not entered.

        Raises:
            UserError: a folder is not there or cannot be read.
        """
        return sorted(self._found[1])

    @cached_property
    def _found(self) -> tuple[list[str], set[str]]:
        paths: list[str] = []
        frame_folders = set()
        for root in self.roots:
            for folder, name in _walk(root):
                if _FRAME_FOLDER.fullmatch(name):
                    frame_folders.add(folder)
                else:
                    paths.append(f"{folder}/{name}")
        return paths, frame_folders

    @property
    def where(self) -> str:
        """The roots, for messages."""
        return ", ".join(map(str, self.roots))

    @property
    def example(self) -> str:
        """What the folders hold, for messages."""
        if not self.paths:
            return f"no media files (known endings are {', '.join(ENDINGS)})"
        return f"{len(self.paths)} media files, e.g. {min(self.paths)}"

    def named(self, name: str) -> str | None:
        """The file whose path ends with ``name``: a file name without its ending, or with folders before it."""
        return self.by_name(name.count("/") + 1).get(name)

    def by_name(self, parts: int) -> dict[str, str]:
        """Files by the last ``parts`` parts of their path without ending; of equal ones the one with a picture, then by path."""
        if parts not in self._by_name:
            self._by_name[parts] = self._index(parts)
        return self._by_name[parts]

    def segment(self, youtube_id: str, start: float, end: float) -> SegmentFile | None:
        """The file of seconds ``start`` to ``end`` of a YouTube video, by any of the usual names.

        These are ID, YID (as AudioSet copies have it), ID_START and ID_START_END, the times in seconds (also with zeros
        before them or decimals) or milliseconds. A file with a picture comes first, then the name that says more.
        """
        found = []
        for path in self._by_youtube_id.get(youtube_id, ()):
            stem = _stem(path)
            has_y = not (stem.startswith(youtube_id) and stem[_ID_CHARACTERS : _ID_CHARACTERS + 1] in ("", "_"))
            times = _TIMES.fullmatch(stem, has_y + _ID_CHARACTERS)
            first, last = times.groups() if times else ("nan", None)  # no time of any segment
            if (first is None or _is_time(first, start)) and (last is None or _is_time(last, end)):
                found.append((is_sound(path), (first is None) + (last is None), path))
        if not found:
            return None
        _, num_open, path = min(found)
        return SegmentFile(path, is_cut=num_open < 2)

    def _index(self, parts: int) -> dict[str, str]:
        index: dict[str, str] = {}
        for path in self.paths:
            name = path.rpartition(".")[0]
            name = name[name.rfind("/") + 1 :] if parts == 1 else "/".join(name.split("/")[-parts:])
            other = index.setdefault(name, path)
            if other is not path:
                index[name] = min(other, path, key=_preference)
        return index

    @cached_property
    def _by_youtube_id(self) -> dict[str, list[str]]:
        index: dict[str, list[str]] = {}
        for path in self.paths:
            stem = _stem(path)
            for first in (0, 1) if stem[:1] == "Y" else (0,):
                end = first + _ID_CHARACTERS
                if len(stem) == end or stem[end : end + 1] == "_":
                    index.setdefault(stem[first:end], []).append(path)
        return index


def media_roots(media: Path | Sequence[Path] | None, default: Path) -> tuple[Path, ...]:
    """The folders to search for media files: those the user names, or ``default``."""
    if media is None:
        return (default,)
    return (media,) if isinstance(media, Path) else tuple(media)


def is_media(name: str) -> bool:
    """Whether a file name has the ending of a media file."""
    return name[name.rfind(".") + 1 :].lower() in _ENDINGS


def is_sound(name: str) -> bool:
    """Whether a file name has the ending of a file without a picture."""
    return name[name.rfind(".") + 1 :].lower() in SOUND_ENDINGS


_ENDINGS = frozenset(ENDINGS)


def _walk(root: Path) -> Iterator[tuple[str, str]]:
    """(folder, name) of each media file and frame folder below ``root``; folders behind links are entered once."""
    stack, linked = [os.fspath(root)], {os.path.realpath(root)}
    while stack:
        folder = stack.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if not entry.is_dir():
                        if is_media(entry.name):
                            yield folder, entry.name
                    elif _FRAME_FOLDER.fullmatch(entry.name):
                        yield folder, entry.name
                    elif not entry.is_symlink():
                        stack.append(entry.path)
                    elif (place := os.path.realpath(entry.path)) not in linked and not _is_above(place, folder):
                        linked.add(place)
                        stack.append(entry.path)
        except OSError as error:
            raise UserError(f"{folder}: cannot be read as a folder of media files: {error.strerror}") from None


def _is_above(place: str, folder: str) -> bool:
    real = os.path.realpath(folder)
    return os.path.commonpath([place, real]) == place


def _stem(path: str) -> str:
    return path[path.rfind("/") + 1 : path.rfind(".")]


def _preference(path: str) -> tuple[bool, str]:
    return is_sound(path), path


def _is_time(text: str, seconds: float) -> bool:
    """Whether a name says this time: in seconds, in whole seconds (downloaders round 239.8 down) or in milliseconds."""
    number = float(text)
    return number == int(seconds) or abs(number - seconds) < 1e-3 or abs(number - 1000 * seconds) < 0.5
