"""Arrays with a row per clip, made once and kept on disk under what they depend on.

::

    features/<digest>/          the digest of the identity: weights, clips, and all settings that change a number
        <name>.npy              [clips, ...] float32 or float16, clips in the order they came in
        clips.json              the identity in full, the clips' keys, which modality each has, what was left out

An entry is written into a hidden folder, forced to disk file by file, and renamed when it is complete: one without a leading
dot is whole. What an interrupted job left behind is removed a day later.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from mavil.atomic_files import sync
from mavil.structs import UserError

CLIPS_FILE = "clips.json"
FORMAT = 1
LEFTOVER_SECONDS = 24 * 3600.0
_HEADER_BYTES = 128
"""Of a ``.npy`` with few axes: the header is written last, when the number of rows is known."""


@dataclass(frozen=True)
class Stored:
    """An entry: ``arrays`` by name, mapped from disk; ``rows`` ``[n]`` int64 are the places in them of ``keys``, sorted.

    ``present`` ``[n]`` bool by modality goes with ``keys``; ``left_out`` counts by cause the clips that are not in it.
    """

    keys: list[str]
    rows: np.ndarray
    arrays: dict[str, np.ndarray]
    present: dict[str, np.ndarray]
    left_out: dict[str, int]

    @property
    def num_bytes(self) -> int:
        """Of all arrays, on disk."""
        return sum(array.nbytes for array in self.arrays.values())


class Writer:
    """Collects the rows of one entry; nothing is kept in memory but keys."""

    def __init__(self, folder: Path) -> None:
        self.left_out: dict[str, int] = {}
        self._folder = folder
        self._files: dict[str, BinaryIO] = {}
        self._kinds: dict[str, tuple[np.dtype, tuple[int, ...]]] = {}
        self._keys: list[str] = []
        self._present: dict[str, list[bool]] = {}

    def add(self, keys: Sequence[str], present: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
        """Append the rows ``[b, ...]`` of some clips; every call has the same names, types and shapes."""
        for name, rows in values.items():
            array = np.ascontiguousarray(rows.cpu().numpy())
            kind = (array.dtype, array.shape[1:])
            if name not in self._files:
                self._kinds[name] = kind
                self._files[name] = open(self._folder / f"{name}.npy", "wb")  # noqa: SIM115 - closed in finish
                self._files[name].write(b"\0" * _HEADER_BYTES)
            if kind != self._kinds[name] or len(array) != len(keys):
                raise ValueError(f"{name}: rows of {kind} for {len(keys)} clips, before {self._kinds[name]}")
            self._files[name].write(array.data)
        for name, flags in present.items():
            self._present.setdefault(name, []).extend(flags.tolist())
        self._keys += keys

    def finish(self, identity: Mapping[str, Any]) -> None:
        """Write what stands before and beside the rows, and force all to disk."""
        for name, file in self._files.items():
            dtype, shape = self._kinds[name]
            header = io.BytesIO()
            description = {
                "descr": np.lib.format.dtype_to_descr(dtype),
                "fortran_order": False,
                "shape": (len(self._keys), *shape),
            }
            np.lib.format.write_array_header_1_0(header, description)
            assert header.tell() == _HEADER_BYTES
            file.seek(0)
            file.write(header.getvalue())
            file.flush()
            os.fsync(file.fileno())
        about = {"identity": identity, "keys": self._keys, "present": self._present, "left_out": self.left_out}
        with open(self._folder / CLIPS_FILE, "w", encoding="utf-8") as text:
            json.dump(about, text)
            text.flush()
            os.fsync(text.fileno())

    def close(self) -> None:
        """Whether it was finished or not."""
        for file in self._files.values():
            file.close()


def digest_of(identity: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits that change with anything in the identity (JSON)."""
    text = json.dumps({"format": FORMAT, **identity}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def find(root: Path, identity: Mapping[str, Any]) -> Stored | None:
    """The entry of exactly this identity, or ``None`` where there is none or it is damaged."""
    folder = root / digest_of(identity)
    try:
        about = json.loads((folder / CLIPS_FILE).read_text(encoding="utf-8"))
        if about["identity"] != json.loads(json.dumps(identity)):
            return None
        arrays = {path.stem: np.load(path, mmap_mode="r", allow_pickle=False) for path in sorted(folder.glob("*.npy"))}
        keys: list[str] = about["keys"]
        if not arrays or any(len(array) != len(keys) for array in arrays.values()):
            return None
        order = np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)
        present = {name: np.array(flags, dtype=bool)[order] for name, flags in about["present"].items()}
        return Stored([keys[i] for i in order], order, arrays, present, about["left_out"])
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None


def make(root: Path, identity: Mapping[str, Any], num_bytes: int, fill: Callable[[Writer], None]) -> Stored:
    """Write the entry of an identity and return it.

    Args:
        root: the folder of all entries.
        identity: what it depends on.
        num_bytes: about how large it becomes.
        fill: hands all rows to the writer.

    Raises:
        UserError: no clip came, the disk has no room, or it cannot be written.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        _sweep(root)
        free = shutil.disk_usage(root).free
        if num_bytes > free:
            raise UserError(
                f"{root}: the features take about {size_text(num_bytes)}, but the disk has {size_text(free)} left: make space, "
                "or name another folder with --out"
            )
        aside = Path(tempfile.mkdtemp(prefix=f".{digest_of(identity)}.", suffix=".partial", dir=root))
        try:
            _fill(aside, identity, fill)
            _take_name(aside, root / digest_of(identity), identity)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        sync(root)
    except OSError as error:
        raise UserError(
            f"{root}: features cannot be written ({error.strerror or error}): make space, or name another folder with --out"
        ) from None
    found = find(root, identity)
    if found is None:
        raise UserError(f"{root}: the features just written cannot be read again: look after the disk")
    return found


def size_text(num_bytes: int) -> str:
    """For people: ``3.2 GiB``."""
    value, unit = float(num_bytes), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.3g} {unit}"


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """Sixteen hexadecimal digits of all tensors' names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _fill(aside: Path, identity: Mapping[str, Any], fill: Callable[[Writer], None]) -> None:
    writer = Writer(aside)
    try:
        fill(writer)
        writer.finish(identity)
    finally:
        writer.close()


def _take_name(aside: Path, folder: Path, identity: Mapping[str, Any]) -> None:
    if folder.exists() and find(folder.parent, identity) is None:
        shutil.rmtree(folder)  # damaged
    try:
        os.rename(aside, folder)
    except OSError:
        # Another job was faster; its entry has the same identity.
        if not folder.is_dir():
            raise


def _sweep(root: Path) -> None:
    """Remove what jobs that were killed left behind."""
    for folder in root.glob(".*.partial"):
        touched = max((path.stat().st_mtime for path in (folder, *folder.glob("*"))), default=0.0)
        if time.time() - touched > LEFTOVER_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)
