"""What ``mavil embed`` is given, as one numbered row of clips: shards here or elsewhere, lists, folders and media files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from mavil.data.shards.index import INDEX
from mavil.data.shards.plan import STAGING
from mavil.data.shards.reading import Target, locate, read_clip
from mavil.data.sources.keys import plain_key
from mavil.data.sources.listing import Reject
from mavil.data.sources.media_files import is_media
from mavil.data.sources.read import read_source
from mavil.data.stream.addresses import PIPE, kind_of, public
from mavil.data.stream.clips import ClipStream
from mavil.data.stream.shard_set import ShardSet, open_shards
from mavil.data.stream.storage import LocalFolder
from mavil.features.clips import clips_identity
from mavil.structs import Clip, UserError

SOURCE_MARK = "::"
"""Between a shard and a clip's key in the name of a source."""


@dataclass(frozen=True)
class Found:
    """A clip ready to be decoded, small to pickle but for bytes out of a shard.

    Attributes:
        key: its name in its own input.
        source: the media file's path, or ``SHARD.tar::KEY``.
        media: the file's path, or its bytes.
        clip: where the media must be cut out or put together first: how.
        reject: why it cannot be used, known before it is decoded.
    """

    key: str
    source: str
    media: str | bytes = b""
    clip: Clip | None = None
    reject: Reject | None = None


class Clips(Protocol):
    """The clips of one input, in a fixed order; ``len`` of them."""

    def __len__(self) -> int: ...

    def identity(self) -> Any:
        """What changes when any clip does (JSON)."""

    def read(self, first: int, stop: int) -> Iterator[Found]:
        """Clips ``first`` to ``stop`` - 1.

        Raises:
            UserError: the place of the shards cannot be reached.
        """


class AllClips:
    """Several inputs one after the other.

    Args:
        inputs: shard folders and addresses, lists (CSV), folders of media files, media files.

    Raises:
        UserError: one of them is none of these, or holds no clip.
    """

    def __init__(self, inputs: Sequence[str]) -> None:
        if not inputs:
            raise UserError("nothing to embed: name shards, media files, a folder of them or a CSV")
        self._files: list[Clips] = [_clips_at(location) for location in inputs]

    def __len__(self) -> int:
        return sum(map(len, self._files))

    def digest(self) -> str:
        """Sixteen hexadecimal digits that change with any clip, as far as its place, size and time of change tell."""
        text = json.dumps([clips.identity() for clips in self._files], sort_keys=True)
        return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]

    def read(self, first: int, stop: int) -> Iterator[Found]:
        """As :meth:`Clips.read`."""
        for clips in self._files:
            if first < len(clips) and stop > 0:
                yield from clips.read(max(0, first), min(stop, len(clips)))
            first, stop = first - len(clips), stop - len(clips)


class ShardClips:
    """The clips of a set of shards, read by this process in the order in which they lie there."""

    def __init__(self, location: str, shards: ShardSet) -> None:
        self._location, self._shards = location, shards

    def __len__(self) -> int:
        return self._shards.index.num_clips

    def identity(self) -> Any:
        """See :class:`Clips`."""
        return clips_identity(self._shards)

    def read(self, first: int, stop: int) -> Iterator[Found]:
        """See :class:`Clips`."""
        stream = ClipStream(self._shards, seed=0, training=False, shuffle_buffer=1)
        for raw in islice(stream.read(consumed=first), stop - first):
            source = f"{self._path_of(raw.shard)}{SOURCE_MARK}{raw.key}"
            if raw.damage is not None:
                yield Found(raw.key, source, reject=Reject(raw.key, source, "damaged_shard", raw.damage))
            elif raw.media is None:
                detail = "the shard has only the clip's record"
                yield Found(raw.key, source, reject=Reject(raw.key, source, "no_media", detail))
            else:
                yield Found(raw.key, source, raw.media)

    def _path_of(self, shard: str) -> str:
        if isinstance(self._shards.storage, LocalFolder):
            return os.path.join(os.path.abspath(self._location), shard)
        if self._location.startswith(PIPE):
            return self._location.replace("{name}", shard)
        return f"{public(self._location)}/{shard}"


class FileClips:
    """Media files, or spans of them; what a list names but does not have is rejected here."""

    def __init__(self, clips: Sequence[Clip], rejects: Sequence[Reject] = ()) -> None:
        self._clips, self._rejects = clips, rejects

    def __len__(self) -> int:
        return len(self._clips) + len(self._rejects)

    def identity(self) -> Any:
        """See :class:`Clips`."""
        places = [[_stamp(c.path), c.start_seconds, c.end_seconds, c.byte_range, c.stills] for c in self._clips]
        return [*places, *([reject.key, reject.cause] for reject in self._rejects)]

    def read(self, first: int, stop: int) -> Iterator[Found]:
        """See :class:`Clips`."""
        for clip in self._clips[first:stop]:
            path = os.path.abspath(clip.path)
            source = path if clip.byte_range is None else f"{path}{SOURCE_MARK}{clip.key}"
            yield Found(clip.key, source, path) if _is_whole_file(clip) else Found(clip.key, source, clip=clip)
        for reject in self._rejects[max(0, first - len(self._clips)) : max(0, stop - len(self._clips))]:
            yield Found(reject.key, reject.path, reject=reject)


def media_of(found: Found) -> tuple[str | bytes, float]:
    """Path or bytes of a clip's media, and where in the file it begins, s.

    A span of a file, a file inside a tar and a sound with stills are made ready as ``mavil shards make`` does, so that the
    clip's embedding is the same from there.

    Raises:
        DecodeError: the media is missing, or cannot be cut out of its file.
    """
    if found.clip is None:
        return found.media, 0.0
    return read_clip(found.clip), locate(found.clip, Target()).start_seconds or 0.0


def _is_whole_file(clip: Clip) -> bool:
    return (clip.start_seconds, clip.end_seconds, clip.byte_range, clip.stills) == (None,) * 4


def _clips_at(location: str) -> Clips:
    if kind_of(location) != "folder":
        return ShardClips(location, open_shards(location))
    path = Path(location)
    if path.is_dir() and ((path / INDEX).exists() or (path / STAGING).exists()):
        return ShardClips(location, open_shards(location))
    if path.is_file() and is_media(path.name):
        return FileClips([Clip(plain_key(path.name), str(path))])
    if not path.exists():
        raise UserError(
            f"{location}: there is nothing of this name; name shards, media files, a folder of them or a CSV"
        )
    listing = read_source(path)
    return FileClips(listing.clips, listing.rejects)


def _stamp(path: str) -> list[Any]:
    place = os.path.abspath(path)
    try:
        status = os.stat(place)
        return [place, status.st_size, status.st_mtime_ns]
    except OSError:
        return [place]
