"""Putting a checkpoint folder on disk so that it is complete or not there, and taking old ones away."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch

from mavil.atomic_files import sync, write_text
from mavil.engine.checkpoints.folder import MANIFEST, checkpoints, sealed, step_of
from mavil.engine.checkpoints.host_copy import tensors_of
from mavil.engine.checkpoints.reading import put_back, replaced_name

logger = logging.getLogger(__name__)

CHUNK_BYTES = 2**22
"""Written and hashed at a time. Both let go of Python's lock meanwhile, so training does not wait for either."""
SPARE_BYTES = 2**20
"""What a checkpoint needs beyond its tensors, at most about that."""


class NoSpaceError(OSError):
    """The disk has less space than the checkpoint needs."""


def write_folder(
    target: Path, files: dict[str, Any], description: dict[str, Any], may_appear: Callable[[], None] = lambda: None
) -> None:
    """Write ``files`` (content by name) and the manifest into a new checkpoint folder; one of that name is replaced.

    ``may_appear`` is called last before the folder gets its name; what it raises stops that.

    Raises:
        OSError: it could not be written; nothing of it is left, and other checkpoints are as they were.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(target.parent)
    _check_space(target.parent, files)
    hidden = target.with_name(f".{target.name}.partial")
    hidden.mkdir()
    try:
        entries = {name: _write_file(hidden / name, content) for name, content in files.items()}
        write_text(hidden / MANIFEST, json.dumps(sealed(description | {"files": entries}), indent=2) + "\n")
        sync(hidden)
        may_appear()
        _give_name(hidden, target)
    except BaseException:
        shutil.rmtree(hidden, ignore_errors=True)
        raise


def keep_newest(run: Path, keep: int, best: int | None) -> None:
    """Delete all checkpoints but the ``keep`` newest and the one of the step ``best``; what cannot be deleted is logged."""
    for old in checkpoints(run)[:-keep]:
        if step_of(old) != best:
            try:
                _retire(old)
            except OSError as error:
                logger.warning("the old checkpoint %s could not be deleted: %s", old, error)


def remove_leftovers(folder: Path) -> None:
    """Delete what interrupted saves left behind, as far as it can be; damaged checkpoints that were put aside stay."""
    put_back(folder.parent)
    for kind in ("partial", "retired", "replaced"):
        for leftover in folder.glob(f".step_*.{kind}"):
            shutil.rmtree(leftover, ignore_errors=True)
    for leftover in folder.glob(".best*.partial"):
        with contextlib.suppress(OSError):
            leftover.unlink()


def _check_space(folder: Path, files: dict[str, Any]) -> None:
    needed = sum(tensor.nbytes for tensor in tensors_of(files)) + SPARE_BYTES
    usage = shutil.disk_usage(folder)
    # Some file systems do not say how large they are.
    if usage.total > 0 and usage.free < needed:
        raise NoSpaceError(f"it needs {needed / 2**30:.2f} GiB and {usage.free / 2**30:.2f} GiB are free on its disk")


def _write_file(path: Path, content: Any) -> dict[str, Any]:
    """Write one file with ``torch.save``; its size and checksum, taken on the way to the disk."""
    with open(path, "wb") as file:
        hashed = _HashedFile(file)
        try:
            torch.save(content, cast("IO[bytes]", hashed))
        except Exception:
            # torch hides a full disk behind a RuntimeError of its own.
            if hashed.error is not None:
                raise hashed.error from None
            raise
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": hashed.size, "sha256": hashed.digest.hexdigest()}


class _HashedFile:
    """A file that is written from beginning to end, as torch does, and hashed on the way."""

    def __init__(self, file: BinaryIO) -> None:
        self.digest = hashlib.sha256()
        self.size = 0
        self.error: OSError | None = None
        self._file = file

    def write(self, data: bytes | memoryview) -> int:
        view = memoryview(data).cast("B")
        for start in range(0, len(view), CHUNK_BYTES):
            chunk = view[start : start + CHUNK_BYTES]
            self.digest.update(chunk)
            try:
                self._file.write(chunk)
            except OSError as error:
                self.error = error
                raise
        self.size += len(view)
        return len(view)

    def flush(self) -> None:
        try:
            self._file.flush()
        except OSError as error:
            self.error = self.error or error
            raise


def _give_name(hidden: Path, target: Path) -> None:
    replaced = replaced_name(target)
    if target.exists():
        os.rename(target, replaced)
    os.rename(hidden, target)
    sync(target.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _retire(folder: Path) -> None:
    """Delete a checkpoint so that a half-deleted one is never taken for a complete one."""
    hidden = folder.with_name(f".{folder.name}.retired")
    os.rename(folder, hidden)
    shutil.rmtree(hidden)
