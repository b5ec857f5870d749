"""Which places of shards there are, and which names the files there may have."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit, urlunsplit

from mavil.data.shards.index import INDEX, ShardIndex
from mavil.structs import UserError

PIPE = "pipe:"
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_NO_NAME = re.compile(r"[/\\:\0-\x1f]|^[.-]|^$|\.\.")


def kind_of(location: str | Path) -> Literal["folder", "http", "objects", "pipe"]:
    """What a location is; a :class:`Path` is always a folder of this machine.

    Raises:
        UserError: it is an address that names no place, or one with another inside (``simplecache::s3://``).
    """
    if isinstance(location, Path):
        return "folder"
    if location.startswith(PIPE):
        return "pipe"
    scheme = _SCHEME.match(location)
    if scheme is not None and scheme[1].lower() in ("http", "https"):
        try:
            host = urlsplit(location).hostname
        except ValueError as error:
            raise UserError(f"{location}: no address ({error}); correct it") from None
        if not host:
            raise UserError(f"{location}: the address names no server; correct it")
        return "http"
    if "::" in location and _SCHEME.search(location):
        raise UserError(
            f"{location}: chained addresses are not supported; name the place itself, and a data.remote.cache to keep shards"
        )
    if scheme is None:
        return "folder"
    if not location[scheme.end() :].strip("/"):
        raise UserError(f"{location}: the address names no place; correct it")
    return "objects"


def public(location: str) -> str:
    """An address without what may be secret: user, password and query. Commands are left as they are."""
    if location.startswith(PIPE) or not _SCHEME.match(location):
        return location
    parts = urlsplit(location)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="")).rstrip("/")


def check_name(name: str) -> str:
    """``name``, which is that of a file directly in the place: no path, no address, no option of a command.

    Raises:
        UserError: it is something else.
    """
    if _NO_NAME.search(name):
        raise UserError(
            f"{name!r}: no plain file name, so nothing is read there; the index is damaged or not to be trusted"
        )
    return name


def check_index(index: ShardIndex, place: str) -> None:
    """Refuse an index that could lead somewhere else than to the files of its own place.

    Raises:
        UserError: it has names that are none, shards twice, or numbers that are none.
    """
    for shard in index.shards:
        numbers = (shard.num_clips, shard.bytes)
        if not isinstance(shard.name, str) or not all(type(number) is int and number >= 0 for number in numbers):
            raise UserError(f"{place}: {INDEX} is damaged at {shard}; copy it again or make the shards again")
        try:
            check_name(shard.name)
        except UserError as error:
            raise UserError(f"{place}: {error}") from None
    if len({shard.name for shard in index.shards}) < len(index.shards):
        raise UserError(f"{place}: {INDEX} names a shard twice; make the shards again")
    if not isinstance(index.tables, dict):
        raise UserError(f"{place}: {INDEX} is damaged at its tables; copy it again or make the shards again")
