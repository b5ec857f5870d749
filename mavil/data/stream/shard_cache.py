"""Shards kept in a local folder that many processes share, whose size is bounded.

A folder::

    mavil-<host or bucket>-<key>/       one set of shards; the key is made of its address and its index
        index.json clips.npy labels.npz ...
        shards/000000.tar ...           complete and verified; the time of its last use is its modification time
        shards/000001.tar.<unique>.partial

There are no locks that a killed process could leave behind: a shard appears by a rename, two processes that fetch the same
one at once each fetch it, and a shard that is removed stays readable for whoever has it open.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from mavil.data.shards.index import ShardInfo
from mavil.data.stream.addresses import public
from mavil.data.stream.attempts import FailedTry
from mavil.data.stream.partial_files import PARTIAL, is_stale, writing_to, written_aside
from mavil.structs import UserError

_SETS, _SHARDS = "mavil-*", "shards"
_KEY_LENGTH = 20


def folder_of_set(root: Path, location: str, index: bytes) -> Path:
    """Where a set of shards has its place in a cache: another one for another address or another index."""
    address = public(location)
    key = hashlib.sha256(address.encode() + b"\n" + hashlib.sha256(index).digest()).hexdigest()[:_KEY_LENGTH]
    readable = re.sub(r"[^A-Za-z0-9]+", "-", address.partition(":")[2])[-40:].strip("-")
    return root / f"mavil-{readable}-{key}"


class ShardCache:
    """The shards of one set in a cache.

    Args:
        root: the cache, with other sets beside this one.
        folder: of this set.
        gib: size of all shards together, GiB. What is being fetched counts; a removed shard that somebody reads does not.
    """

    def __init__(self, root: Path, folder: Path, gib: float) -> None:
        self._root = root
        self._folder = folder / _SHARDS
        self._limit = int(gib * 2**30)

    def find(self, shard: ShardInfo) -> int | None:
        """A descriptor of a shard that is here, to be closed by the caller; it counts as used now."""
        try:
            descriptor = os.open(self._folder / shard.name, os.O_RDONLY)
        except FileNotFoundError:
            return None
        if os.fstat(descriptor).st_size != shard.bytes:  # damaged by something else than us
            os.close(descriptor)
            return None
        with contextlib.suppress(OSError):  # a cache that others own may be readable only
            os.utime(descriptor)
        return descriptor

    def add(self, shard: ShardInfo, content: Iterator[bytes]) -> int:
        """Write a shard, verify it and let it appear; gives a descriptor of it.

        Raises:
            FailedTry: its size or checksum is not the one in the index.
            UserError: it cannot be written, or is larger than the whole cache may be.
        """
        if shard.bytes > self._limit:
            raise UserError(
                f"{self._root}: a shard of {shard.bytes / 2**30:.3g} GiB ({shard.name}) does not fit into a cache of "
                f"{self._limit / 2**30:.3g} GiB: raise data.remote.cache_gib or leave out data.remote.cache"
            )
        digest, size = hashlib.sha256(), 0
        with written_aside(self._folder / shard.name) as file:
            file.truncate(shard.bytes)  # what others see when they add up sizes
            self._make_room()
            for data in content:
                digest.update(data)
                size += len(data)
                file.write(data)
            if size != shard.bytes:
                raise FailedTry(f"{size} bytes came, the index says {shard.bytes}")
            if digest.hexdigest() != shard.sha256:
                raise FailedTry("what came has not the checksum that the index says")
            # Open before it appears: another process may remove it at once.
            return os.open(file.name, os.O_RDONLY)

    def _make_room(self) -> None:
        """Remove what killed processes left, and the shards used least recently, until the rest fits."""
        kept: list[tuple[float, int, Path]] = []
        total = 0
        with writing_to(self._root):
            for folder in self._root.glob(f"{_SETS}/{_SHARDS}"):
                for entry in os.scandir(folder):
                    with contextlib.suppress(FileNotFoundError):
                        status = entry.stat()
                        is_partial = entry.name.endswith(PARTIAL)
                        if is_partial and is_stale(status):
                            os.unlink(entry)
                            continue
                        total += status.st_size
                        if not is_partial:
                            kept.append((status.st_mtime, status.st_size, Path(entry.path)))
            for _, size, path in sorted(kept):
                if total <= self._limit:
                    return
                path.unlink(missing_ok=True)
                total -= size
