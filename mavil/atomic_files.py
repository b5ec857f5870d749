"""Small files that are always whole: whoever reads one, or comes after a power cut, sees the old content or the new."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

from mavil.structs import UserError


def write_text(path: Path, text: str) -> None:
    """Replace a small file so that at any moment either the old or the new content is there."""
    aside = path.with_name(f".{path.name}.partial")
    with open(aside, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def replace_link(path: Path, target: str) -> None:
    """Make ``path`` a symbolic link to ``target``, whether it was one before or not there."""
    aside = path.with_name(f".{path.name}.partial")
    aside.unlink(missing_ok=True)
    os.symlink(target, aside)
    os.replace(aside, path)


def sync(path: Path) -> None:
    """Force a file to disk, or which names a folder holds: a rename is not there after a power cut until this was done."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Checksum of a file, as hexadecimal text."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def unwritable(path: Path, error: OSError) -> UserError:
    """What to tell a person whose run folder cannot be written."""
    advice = {
        errno.ENOSPC: "make space, or choose a folder on another disk with --out",
        errno.EDQUOT: "make space in your quota, or choose a folder on another disk with --out",
        errno.EEXIST: "it is a file: choose another folder with --out",
        errno.ENOTDIR: "a part of it is a file: choose another folder with --out",
    }.get(error.errno or 0, "choose a folder you may write to with --out")
    return UserError(f"{path}: the run folder cannot be written ({error.strerror or error}); {advice}")
