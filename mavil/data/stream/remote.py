"""Shards at an address: their small files fetched once into a local folder, the tars read from there or through a cache."""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Protocol, TypeVar

from mavil.atomic_files import sha256_of
from mavil.data.shards.clip_table import CLIPS, LABELS
from mavil.data.shards.index import INDEX, ShardIndex, ShardInfo, read_index
from mavil.data.shards.statistics import STATISTICS
from mavil.data.stream.addresses import check_index, check_name, kind_of, public
from mavil.data.stream.attempts import AccessDeniedError, FailedTry, MissingFileError, RemoteOptions, with_tries
from mavil.data.stream.http_files import HttpFiles
from mavil.data.stream.object_files import ObjectFiles
from mavil.data.stream.partial_files import remove_stale, written_aside
from mavil.data.stream.piped_files import PipedFiles
from mavil.data.stream.read_ahead import LARGEST_PIECE, ReadAhead
from mavil.data.stream.shard_cache import ShardCache, folder_of_set
from mavil.structs import UserError

T = TypeVar("T")


class Files(Protocol):
    """One way to reach files elsewhere. Called by one thread at a time."""

    def size(self, name: str) -> int | None:
        """Length of a file where that is known beforehand; raises as :meth:`get`."""

    def get(self, name: str, start: int, size: int) -> bytes:
        """``size`` bytes from ``start`` on, fewer only at the end of the file.

        Raises:
            FailedTry: this attempt failed.
            UserError: no attempt can succeed.
        """

    def close(self) -> None:
        """Close connections; the next call opens new ones."""


class RemoteFolder:
    """The storage of shards at an address, see :class:`mavil.data.stream.storage.Storage`.

    Connections, threads and open files belong to the process that made them: a copy in another process begins without.
    """

    is_local = False
    _open: tuple[str, int] | None
    _ahead: ReadAhead

    def __init__(self, location: str, options: RemoteOptions) -> None:
        self.location = public(location)
        self.bytes_read = 0
        self._address = location
        self._options = options
        self._folder: Path | None = None
        self._fetched: set[str] = set()
        self._tables: dict[str, str] = {}
        self._shards: dict[str, ShardInfo] = {}
        self._cache: ShardCache | None = None
        self._reset()

    def open(self) -> ShardIndex:
        """Fetch the index, which says where the local folder is, what the shards are and what the tables must be.

        Raises:
            UserError: the place cannot be reached, holds no set of shards, or one that is not to be trusted.
        """
        try:
            text = b"".join(self._blocks(INDEX))
        except MissingFileError:
            raise UserError(
                f"{self.location}: holds no {INDEX}, so it is no finished set of shards; check the address, or upload the "
                "whole folder that mavil shards make has made"
            ) from None
        if self._options.cache is None:
            self._folder = _temporary_folder()
        else:
            root = Path(self._options.cache)
            self._folder = folder_of_set(root, self._address, text)
            self._cache = ShardCache(root, self._folder, self._options.cache_gib)
            remove_stale(self._folder)
        with written_aside(self._folder / INDEX) as file:
            file.write(text)
        self._fetched.add(INDEX)
        try:
            index = read_index(self._folder, shards_are_here=False)
        except UserError as error:
            raise UserError(f"{self.location}: {error}") from None
        check_index(index, self.location)
        if not {CLIPS, LABELS} <= index.tables.keys():
            raise UserError(
                f"{self.location}: its {INDEX} has no checksums of the tables of clips; make the shards again"
            )
        self._tables = index.tables
        self._shards = {shard.name: shard for shard in index.shards}
        return index

    def fetch(self, name: str) -> Path:
        """See :class:`mavil.data.stream.storage.Storage`; a table is verified with the checksum in the index."""
        assert self._folder is not None, "open() comes first"
        path = self._folder / check_name(name)
        expected = self._tables.get(name)
        if name in self._fetched or (expected and path.is_file() and sha256_of(path) == expected):
            self._fetched.add(name)
            return path
        try:
            self._with_tries(name, lambda: self._download(path, expected))
        except MissingFileError as error:
            path.unlink(missing_ok=True)
            raise FileNotFoundError(str(error)) from None
        self._fetched.add(name)
        return path

    def fetch_statistics(self) -> None:
        """Fetch ``stats.json`` if it is there.

        Raises:
            UserError: the place cannot be reached.
        """
        options, is_pipe = self._options, kind_of(self._address) == "pipe"
        if is_pipe:  # a command that fails does not say why; most sets are not measured, so one try must do
            self._options = replace(options, tries=1)
        try:
            self.fetch(STATISTICS)
        except (FileNotFoundError, AccessDeniedError):  # some stores deny what is not there
            return
        except UserError:
            if not is_pipe:
                raise
        finally:
            self._options = options

    def _download(self, path: Path, expected: str | None) -> None:
        digest = hashlib.sha256()
        with written_aside(path) as file:
            for block in self._blocks(path.name):
                digest.update(block)
                file.write(block)
            if expected is not None and digest.hexdigest() != expected:
                raise FailedTry("what came has not the checksum that the index says")

    def read(self, name: str, offset: int, size: int) -> bytes:
        """See :class:`mavil.data.stream.storage.Storage`."""
        check_name(name)
        if self._pid != os.getpid():
            self._reset()
        if self._cache is None or name not in self._shards:
            return self._ahead.read(name, offset, size)
        if self._open is None or self._open[0] != name:
            self._close_file()
            self._open = name, self._cached(self._cache, self._shards[name])
        return os.pread(self._open[1], size, offset)

    def _cached(self, cache: ShardCache, shard: ShardInfo) -> int:
        descriptor = cache.find(shard)
        if descriptor is None:
            descriptor = self._with_tries(shard.name, lambda: cache.add(shard, self._blocks(shard.name)))
        return descriptor

    def close(self) -> None:
        """Close everything; a later read opens it again."""
        self._forget_connections()
        self._close_file()

    def _blocks(self, name: str) -> Iterator[bytes]:
        """A whole file, piece by piece, each with tries of its own."""
        position = 0
        while block := self._ahead.read(name, position, LARGEST_PIECE):
            yield block
            position += len(block)

    def _get(self, name: str, start: int, size: int) -> bytes:
        is_shard = name in self._shards

        def ask() -> bytes:
            data = self._files.get(name, start, size)
            # The reader never asks for what lies behind the end that the index gives.
            if is_shard and len(data) < size:
                raise FailedTry(f"it ends {size - len(data)} bytes before the place that the index says")
            return data

        with self._one_at_a_time:
            return with_tries(ask, f"{self.location}/{name}", self._options, self._files.close)

    def _size_of(self, name: str) -> int | None:
        if name in self._shards:
            return self._shards[name].bytes
        with self._one_at_a_time:
            address = f"{self.location}/{name}"
            return with_tries(lambda: self._files.size(name), address, self._options, self._files.close)

    def _with_tries(self, name: str, action: Callable[[], T]) -> T:
        return with_tries(action, f"{self.location}/{name}", self._options, self._forget_connections)

    def _forget_connections(self) -> None:
        self._ahead.forget()
        with self._one_at_a_time:
            self._files.close()

    def _close_file(self) -> None:
        if self._open is not None:
            os.close(self._open[1])
            self._open = None

    def _count(self, num_bytes: int) -> None:
        with self._counting:
            self.bytes_read += num_bytes

    def _reset(self) -> None:
        """Begin without connections, threads and open files."""
        self._pid = os.getpid()
        self._open = None
        self._counting = threading.Lock()
        self._one_at_a_time = threading.Lock()
        self._files = _files_at(self._address, self._options, self._count)
        self._ahead = ReadAhead(self._get, self._size_of)

    def __getstate__(self) -> dict[str, object]:
        own = ("_pid", "_open", "_counting", "_one_at_a_time", "_files", "_ahead")
        return {name: value for name, value in self.__dict__.items() if name not in own} | {"bytes_read": 0}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._reset()


def _files_at(location: str, options: RemoteOptions, count: Callable[[int], None]) -> Files:
    kind = kind_of(location)
    if kind == "http":
        return HttpFiles(location, options.timeout_seconds, count, options.cache)
    if kind == "pipe":
        return PipedFiles(location, options.timeout_seconds, count, options.allow_shell)
    return ObjectFiles(location, options.timeout_seconds, count)


def _temporary_folder() -> Path:
    """A folder that goes when this process ends."""
    folder = tempfile.mkdtemp(prefix="mavil-shards-")
    atexit.register(_remove_own, folder, os.getpid())
    return Path(folder)


def _remove_own(folder: str, pid: int) -> None:
    if os.getpid() == pid:  # not in a fork
        shutil.rmtree(folder, ignore_errors=True)


def open_remote(location: str, options: RemoteOptions) -> tuple[ShardIndex, RemoteFolder]:
    """The index and the storage of shards at an address, with the small files of the set fetched and the tables verified.

    Raises:
        UserError: as :meth:`RemoteFolder.open`, or a table is missing or damaged.
    """
    storage = RemoteFolder(location, options)
    index = storage.open()
    try:
        for name in (CLIPS, LABELS):
            storage.fetch(name)
    except FileNotFoundError as error:
        raise UserError(str(error)) from None
    storage.fetch_statistics()
    storage.close()
    return index, storage
