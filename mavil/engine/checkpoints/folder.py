"""One checkpoint folder: its manifest, and its files, which are read only after they agree with it."""

from __future__ import annotations

import errno
import hashlib
import json
import pickle
import re
from pathlib import Path
from typing import Any

import torch

from mavil.atomic_files import sha256_of
from mavil.structs import UserError

FORMAT = 2
"""Version of the layout in ``reading.py``; a reader refuses any other."""
MANIFEST = "manifest.json"
MODEL, AVERAGED, OPTIMIZER, RANKS = "model.pt", "averaged.pt", "optimizer.pt", "ranks.pt"
_MEDIUM_ERRORS = (
    errno.ENOENT,
    errno.EIO,
    errno.ENOTDIR,
    errno.ESTALE,
    errno.EBADMSG,
    getattr(errno, "EUCLEAN", errno.EIO),
)
"""The disk says that what was written is not there any more; with any other error it may well be."""


class DamagedError(UserError):
    """A checkpoint that is not what was written; ``reason`` names the file."""

    def __init__(self, folder: Path, reason: str, others: list[Path]) -> None:
        names = ", ".join(other.name for other in others if other != folder)
        advice = f"use another one by removing it ({names} remain)" if names else "no other one is left in this run"
        super().__init__(f"{folder}/{reason}: this checkpoint is damaged; {advice}")
        self.reason = reason


def checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    found = [p for p in (run / "checkpoints").glob("step_*") if re.fullmatch(r"step_\d+", p.name) and p.is_dir()]
    return sorted(found, key=step_of)


def step_of(folder: Path) -> int:
    """The step a checkpoint folder is named after."""
    return int(folder.name.removeprefix("step_"))


def folder_of(run: Path, step: int) -> Path:
    """Where the checkpoint of a step is or would be."""
    return run / "checkpoints" / f"step_{step:08d}"


def sealed(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest with its own checksum added."""
    return manifest | {"sha256": _checksum_of(manifest)}


def read_manifest(folder: Path) -> dict[str, Any]:
    """What a checkpoint says about itself.

    Raises:
        DamagedError: it is missing, not what was written, or that of another step.
        UserError: the checkpoint has another format, or may not be read.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
        version, own = manifest["format"], manifest.pop("sha256", None)
        is_whole = own == _checksum_of(manifest)
    except OSError as error:
        raise _unreadable(folder, MANIFEST, error) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(folder, f"{MANIFEST} cannot be read: {error!r}") from None
    if version != FORMAT and (is_whole or own is None):
        raise UserError(
            f"{folder} has checkpoint format {version}, this version reads format {FORMAT}: use the version that wrote it"
        )
    if not is_whole:
        raise _damaged(folder, f"{MANIFEST} differs from its own checksum")
    if re.fullmatch(r"step_\d+", folder.name) and manifest["step"] != step_of(folder):
        raise _damaged(folder, f"{MANIFEST} is that of step {manifest['step']}")
    return manifest


def check_files(folder: Path, manifest: dict[str, Any], *names: str) -> None:
    """Compare sizes and checksums of the files (all, unless some are named) with the manifest.

    Raises:
        DamagedError: they differ.
    """
    for name in names or manifest["files"]:
        _check_size(folder, name, manifest)
    for name in names or manifest["files"]:
        try:
            digest = sha256_of(folder / name)
        except OSError as error:
            raise _unreadable(folder, name, error) from None
        if digest != manifest["files"][name]["sha256"]:
            raise _damaged(folder, f"{name} differs from the checksum in its manifest")


def read_file(folder: Path, name: str, manifest: dict[str, Any]) -> Any:
    """The content of a file whose checksum was compared before. Tensors stay in the file until they are used.

    All ranks of a machine then read the file once, through the page cache. What is kept must be copied: on some network file
    systems the memory behind such a tensor disappears with the file.

    Raises:
        DamagedError: its size differs, or it cannot be loaded.
    """
    _check_size(folder, name, manifest)
    try:
        return torch.load(folder / name, map_location="cpu", weights_only=True, mmap=True)
    except OSError as error:
        raise _unreadable(folder, name, error) from None
    # Whatever torch makes of bytes that are no checkpoint.
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, ValueError, AttributeError, TypeError) as error:
        raise _damaged(folder, f"{name} cannot be loaded: {str(error).strip().splitlines()[0]}") from None


def _check_size(folder: Path, name: str, manifest: dict[str, Any]) -> None:
    try:
        size, expected = (folder / name).stat().st_size, manifest["files"][name]["bytes"]
    except OSError as error:
        raise _unreadable(folder, name, error) from None
    except KeyError:
        raise _damaged(folder, f"{name} is not in its manifest") from None
    if size != expected:
        raise _damaged(folder, f"{name} has {size} bytes instead of {expected}")


def _checksum_of(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _unreadable(folder: Path, name: str, error: OSError) -> UserError:
    if error.errno == errno.ENOENT:
        return _damaged(folder, f"{name} is missing")
    if error.errno in _MEDIUM_ERRORS:
        return _damaged(folder, f"{name} cannot be read: {error.strerror}")
    return UserError(f"{folder / name} cannot be read ({error.strerror or error}): the checkpoint itself may be sound")


def _damaged(folder: Path, reason: str) -> DamagedError:
    return DamagedError(folder, reason, checkpoints(folder.parent.parent))
