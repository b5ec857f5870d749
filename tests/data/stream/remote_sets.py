"""Small sets of files for the tests of storages, which care for bytes and not for clips."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from mavil.atomic_files import sha256_of
from mavil.data.shards.clip_table import CLIPS, LABELS, ClipTable, write_table
from mavil.data.shards.index import ShardIndex, ShardInfo, write_index
from mavil.data.stream.attempts import RemoteOptions
from mavil.data.stream.storage import Storage

OPTIONS = RemoteOptions(tries=3, timeout_seconds=5.0)
QUICK = replace(OPTIONS, timeout_seconds=0.15)
"""For what hangs. A busy machine may be late as well, so more tries are allowed where reading is to succeed."""


def write_set(folder: Path, contents: dict[str, bytes]) -> Path:
    """An index and tables around files that need not be tars here."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    shards = tuple(ShardInfo(n, 1, len(data), hashlib.sha256(data).hexdigest()) for n, data in contents.items())
    write_table(folder, ClipTable.of([(0, 0, 0, 0, 0, 1.0)] * len(shards), [()] * len(shards)))
    tables = {name: sha256_of(folder / name) for name in (CLIPS, LABELS)}
    write_index(ShardIndex(folder, len(shards), len(shards), 0, (), {}, {}, shards, tables))
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def whole(storage: Storage, name: str, step: int = 700_000) -> bytes:
    parts = []
    while part := storage.read(name, step * len(parts), step):
        parts.append(part)
    return b"".join(parts)


def wait_until(is_true: Callable[[], bool]) -> None:
    for _ in range(3000):
        if is_true():
            return
        time.sleep(0.01)
    raise AssertionError("it never came true")
