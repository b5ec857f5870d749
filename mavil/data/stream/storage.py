"""Where the bytes of shards come from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO, Protocol

from mavil.data.stream.addresses import check_name, kind_of
from mavil.data.stream.attempts import RemoteOptions
from mavil.data.stream.remote import open_remote

MOST_OPEN = 16
"""Shards of a local folder kept open at once: weighted draws read from all of them in turn [our choice]."""


class Storage(Protocol):
    """A folder of shards, here or elsewhere. It can be pickled; each process opens its own files and connections.

    Attributes:
        location: as the user wrote it, for messages.
        is_local: a read costs a seek and nothing more, so clips may be read in any order.
        bytes_read: fetched so far by this process, what was read and thrown away included.
    """

    location: str
    is_local: bool
    bytes_read: int

    def fetch(self, name: str) -> Path:
        """A small file of the folder as a local file.

        Raises:
            FileNotFoundError: it is not there.
            UserError: the place cannot be reached.
        """

    def read(self, name: str, offset: int, size: int) -> bytes:
        """``size`` bytes of a shard from ``offset`` on; fewer where it ends earlier.

        Raises:
            OSError: the shard is missing or cannot be read.
            UserError: the place cannot be reached.
        """


class LocalFolder:
    """A folder of this machine. Names are plain file names: none is ever taken for an address or a command."""

    is_local = True

    def __init__(self, folder: Path) -> None:
        self.location = str(folder)
        self.bytes_read = 0
        self._folder = folder
        self._open: dict[str, BinaryIO] = {}  # the shards used last, the latest at the end

    def fetch(self, name: str) -> Path:
        """See :class:`Storage`."""
        path = self._folder / check_name(name)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        return path

    def read(self, name: str, offset: int, size: int) -> bytes:
        """See :class:`Storage`."""
        file = self._open.pop(name, None)
        if file is None:
            file = open(self._folder / check_name(name), "rb", buffering=0)  # noqa: SIM115 - it stays open
        self._open[name] = file
        if len(self._open) > MOST_OPEN:
            self._open.pop(next(iter(self._open))).close()
        data = os.pread(file.fileno(), size, offset)
        self.bytes_read += len(data)
        return data

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open": {}, "bytes_read": 0}


def open_storage(location: str | Path, options: RemoteOptions = RemoteOptions()) -> Storage:  # noqa: B008 - it is frozen
    """The storage at a place: a folder, ``http(s)://``, what fsspec knows (``s3://`` ...), or ``pipe:COMMAND {name}``.

    Raises:
        UserError: the address cannot be reached, or holds no set of shards; a folder is not looked into.
    """
    if kind_of(location) == "folder":
        return LocalFolder(Path(location))
    return open_remote(str(location), options)[1]
