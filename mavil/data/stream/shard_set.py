"""A set of shards ready to be read: its index, the folder that holds its tables, and the storage of its tars."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mavil.data.shards.clip_table import ClipTable, read_rows, read_table
from mavil.data.shards.index import ShardIndex, read_index
from mavil.data.stream.addresses import check_index, kind_of
from mavil.data.stream.attempts import RemoteOptions
from mavil.data.stream.remote import open_remote
from mavil.data.stream.storage import LocalFolder, Storage
from mavil.seeds import sample_seed
from mavil.structs import UserError


@dataclass(frozen=True)
class ShardSet:
    """What the stream needs to know of a set of shards; small to pickle, for the tables stay files."""

    index: ShardIndex
    storage: Storage

    @functools.cached_property
    def digest(self) -> int:
        """Of the shards' names and sizes, for a place in the data means nothing in others; every batch carries it."""
        return sample_seed(*((shard.name, shard.num_clips) for shard in self.index.shards))

    def rows(self) -> np.ndarray:
        """``[clips]`` of :data:`mavil.data.shards.clip_table.ROW`, memory-mapped."""
        return read_rows(self.index.folder, self.index.num_clips)

    def table(self) -> ClipTable:
        """The whole table, with labels."""
        return read_table(self.index.folder, self.index.num_clips)

    def records(self) -> Iterator[bytes]:
        """The JSON record of every clip, in order; no media is read from a local folder.

        Raises:
            UserError: a shard cannot be read.
        """
        rows, first = self.rows(), 0
        for shard in self.index.shards:
            for row in rows[first : first + shard.num_clips]:
                try:
                    yield self.storage.read(shard.name, int(row["offset"] + row["record_at"]), int(row["record_bytes"]))
                except OSError as error:
                    where = f"{self.storage.location}: shard {shard.name}"
                    raise UserError(f"{where} cannot be read ({error}): run mavil shards check") from None
            first += shard.num_clips


def open_shards(location: str | Path, options: RemoteOptions = RemoteOptions()) -> ShardSet:  # noqa: B008 - it is frozen
    """The shards at a place: a folder, or an address as in :func:`mavil.data.stream.storage.open_storage`.

    From an address the index and the tables are fetched once, by this process, into the cache or a folder that goes when it
    ends; ``index.folder`` is where they are.

    Raises:
        UserError: as :func:`mavil.data.shards.index.read_index`; or the address cannot be reached, or is not to be trusted.
    """
    if kind_of(location) == "folder":
        folder = Path(location)
        index = read_index(folder)
        check_index(index, str(folder))
        return ShardSet(index, LocalFolder(folder))
    index, storage = open_remote(str(location), options)
    return ShardSet(index, storage)
