"""Tar and zip archives into a folder: nothing lands outside it, and nothing half unpacked is ever seen in it."""

from __future__ import annotations

import errno
import json
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from mavil.structs import UserError
from tools.downloads.transfer import DownloadError

_CHUNK_BYTES = 1 << 20
Progress = Callable[[int, "int | None"], None]


def is_unpacked(archive: Path, folder: Path) -> bool:
    """Whether this archive has been unpacked here, and what it held is still in its place."""
    try:
        entries = json.loads(_receipt(archive).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return all((folder / entry).exists() for entry in entries)


def unpack(archive: Path, folder: Path, on_progress: Progress = lambda done, total: None) -> None:
    """Unpack beside ``folder``, then move everything into it; a kill at any moment leaves nothing that looks whole.

    Raises:
        DownloadError: the archive is damaged, or a member would land outside the folder or is a link or a device.
        UserError: the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    workplace = folder / f".{archive.name}.unpacking"
    shutil.rmtree(workplace, ignore_errors=True)
    workplace.mkdir()
    try:
        extract = _extract_zip if zipfile.is_zipfile(archive) else _extract_tar
        extract(archive, workplace, on_progress)
        entries = [path for path in workplace.glob("*/*") if path.is_dir()] + list(workplace.glob("*"))
        names = sorted(path.relative_to(workplace).as_posix() for path in entries)
        _move_into(workplace, folder)
        receipt = _receipt(archive)
        receipt.with_name(receipt.name + ".new").write_text(json.dumps(names), encoding="utf-8")
        receipt.with_name(receipt.name + ".new").replace(receipt)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            advice = "make room" if error.errno == errno.ENOSPC else "look at the folder"
            raise UserError(
                f"{folder}: cannot unpack {archive.name}: {error.strerror}; {advice}, then run again"
            ) from None
        raise DownloadError(
            f"{archive}: damaged ({' '.join(str(error).split())}); remove it and run again to fetch it anew"
        ) from None
    finally:
        shutil.rmtree(workplace, ignore_errors=True)


def _receipt(archive: Path) -> Path:
    """The file that says what came out of an archive; it stays when the archive is removed."""
    return archive.with_name(f".{archive.name}.unpacked.json")


def _extract_tar(archive: Path, folder: Path, on_progress: Progress) -> None:
    size = archive.stat().st_size
    # The filter exists since Python 3.10.12; the checks before it are the same everywhere.
    options: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    with archive.open("rb") as file, tarfile.open(fileobj=file, mode="r:*") as tar:
        for member in tar:
            if not (member.isfile() or member.isdir()):
                raise _refused(archive, member.name, "is a link or a device")
            _check_name(archive, member.name)
            tar.extract(member, folder, **options)
            on_progress(file.tell(), size)
        # The checksum of a gzip file stands at its very end, behind what tarfile reads.
        while tar.fileobj is not None and tar.fileobj.read(_CHUNK_BYTES):
            pass


def _extract_zip(archive: Path, folder: Path, on_progress: Progress) -> None:
    size, done = archive.stat().st_size, 0
    with zipfile.ZipFile(archive) as zip_file:
        for member in zip_file.infolist():
            if stat.S_ISLNK(member.external_attr >> 16):
                raise _refused(archive, member.filename, "is a link")
            _check_name(archive, member.filename)
            zip_file.extract(member, folder)
            done += member.compress_size
            on_progress(min(done, size), size)


def _check_name(archive: Path, name: str) -> None:
    is_absolute = PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor
    if is_absolute or ".." in name.replace("\\", "/").split("/"):
        raise _refused(archive, name, "would land outside the folder")


def _refused(archive: Path, name: str, why: str) -> DownloadError:
    return DownloadError(
        f"{archive}: its member {name!r} {why}; nothing was unpacked: this is not the published archive, do not use it"
    )


def _move_into(source: Path, target: Path) -> None:
    """Rename whole entries where the target has none, go down where both have a folder, replace files."""
    for entry in sorted(source.iterdir()):
        place = target / entry.name
        if entry.is_dir() and place.is_dir():
            _move_into(entry, place)
        else:
            entry.replace(place)
