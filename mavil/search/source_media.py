"""The bytes of a clip that an index names: a file, or a member of a shard; only media, only of this machine."""

from __future__ import annotations

import os
import stat
import tarfile
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from mavil.data.media import CONVERTED_ENDINGS, MEDIA_ENDINGS
from mavil.data.shards.tars import RECORD_ENDING
from mavil.data.stream.addresses import kind_of
from mavil.structs import UserError

CONTENT_TYPES = {
    "mp4": "video/mp4",
    "m4v": "video/mp4",
    "m4a": "audio/mp4",
    "mov": "video/quicktime",
    "webm": "video/webm",
    "mkv": "video/x-matroska",
    "wav": "audio/wav",
    "flac": "audio/flac",
    "ogg": "audio/ogg",
    "opus": "audio/ogg",
    "mp3": "audio/mpeg",
    "aac": "audio/aac",
}
"""By the file's ending; other media are sent as bytes without a type, which browsers do not play."""
UNTYPED = "application/octet-stream"
SHARDS_REMEMBERED = 32
"""Whose lists of members are kept."""
_IN_SHARD = ".tar::"


@dataclass(frozen=True)
class Place:
    """Where a clip's media lies: ``size`` bytes from ``offset`` of the file ``path`` on, of one of :data:`CONTENT_TYPES`."""

    path: Path
    offset: int
    size: int
    content_type: str


class SourceMedia:
    """Finds the media of an index's clips; may be called from several threads."""

    def __init__(self) -> None:
        self._members: OrderedDict[tuple[Path, int, int], dict[str, tuple[int, int, str]]] = OrderedDict()
        self._lock = threading.Lock()

    def place(self, source: str) -> Place:
        """Where the media of a clip is now.

        Args:
            source: a path, or ``SHARD.tar::KEY``, as in :class:`mavil.embedder.stored.EmbeddingSet`.

        Raises:
            UserError: it is elsewhere, has gone since the index was made, or is no media.
        """
        shard, in_shard, key = source.rpartition(_IN_SHARD)
        if kind_of(shard or source) != "folder":
            raise UserError(f"{source} is not on this machine: only embeddings of it are here")
        try:
            return self._member(Path(f"{shard}.tar"), key) if in_shard else _file(Path(source))
        except (OSError, tarfile.TarError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise UserError(
                f"{source} cannot be read ({reason}): it was moved or changed after it was embedded"
            ) from None

    def _member(self, path: Path, key: str) -> Place:
        status = path.stat()
        identity = (path, status.st_size, status.st_mtime_ns)
        with self._lock:
            members = self._members.pop(identity, None)
            if members is None:
                members = _media_members(path)
            self._members[identity] = members
            if len(self._members) > SHARDS_REMEMBERED:
                self._members.popitem(last=False)
        if key not in members:
            raise UserError(f"{path}::{key}: the shard holds no media of that clip any more; embed it anew")
        offset, size, ending = members[key]
        return Place(path, offset, size, CONTENT_TYPES.get(ending, UNTYPED))


def _file(path: Path) -> Place:
    ending = path.suffix[1:].lower()
    if ending not in (*MEDIA_ENDINGS, *CONVERTED_ENDINGS):
        raise UserError(f"{path} does not end like a media file: it is not sent")
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path} is not a plain file: it is not sent")
    return Place(path, 0, status.st_size, CONTENT_TYPES.get(ending, UNTYPED))


def _media_members(path: Path) -> dict[str, tuple[int, int, str]]:
    """Begin, size and ending of every clip's media by key."""
    found: dict[str, tuple[int, int, str]] = {}
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            key, _, ending = member.name.rpartition(".")
            if ending != RECORD_ENDING and member.isreg():
                found.setdefault(key, (member.offset_data, member.size, ending.lower()))
    return found
