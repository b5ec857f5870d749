"""The datasets of archives: fetch, join, unpack, and say what to do next."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from tools.downloads.catalog import Archive, RemoteFile
from tools.downloads.transfer import DownloadError, TransferOptions, fetch_file, make_folder, writing
from tools.downloads.transfer import Progress as OnProgress
from tools.downloads.unpack import is_unpacked, unpack


@dataclass(frozen=True)
class Place:
    """Where archives come from and go to; ``base_url`` empty is the published address."""

    out: Path
    base_url: str = ""
    is_unpacking: bool = True
    is_keeping_archives: bool = True

    def source_of(self, file: RemoteFile) -> RemoteFile:
        """The file at its published address or on the mirror."""
        return file.moved_to(self.base_url) if self.base_url else file


def fetch_archives(
    archives: Sequence[Archive], place: Place, options: TransferOptions, console: Console
) -> list[DownloadError]:
    """Fetch and unpack archives one after the other; what fails is told, returned, and does not stop the others.

    Raises:
        UserError: what would stop every one of them, such as a full disk.
    """
    failures = []
    make_folder(place.out)
    for archive in archives:
        try:
            console.print(_fetch_archive(archive, place, options, console), highlight=False, soft_wrap=True)
        except DownloadError as error:
            console.print(f"failed: {error}", highlight=False, soft_wrap=True, markup=False)
            failures.append(error)
    return failures


def fetch_small_file(file: RemoteFile, place: Place, options: TransferOptions) -> Path:
    """A list or another small file that is used as it comes; its path.

    Raises:
        DownloadError, UserError: as :func:`~tools.downloads.transfer.fetch_file`.
    """
    make_folder(place.out)
    path = place.out / file.name
    fetch_file(place.source_of(file), path, options)
    return path


def _fetch_archive(archive: Archive, place: Place, options: TransferOptions, console: Console) -> str:
    path, folder = place.out / archive.name, place.out / archive.folder
    if place.is_unpacking and is_unpacked(path, folder):
        return f"{archive.name}: already there, unpacked in {folder}"
    is_new = _fetch_parts(archive, path, place, options, console)
    verb = "fetched" if is_new else "already there"
    if not place.is_unpacking:
        return f"{archive.name}: {verb}, {path}"
    with _bar(f"unpacking {archive.name}", console) as on_progress:
        unpack(path, folder, on_progress)
    if not place.is_keeping_archives:
        path.unlink()
    return f"{archive.name}: {verb}, unpacked in {folder}"


def _fetch_parts(archive: Archive, path: Path, place: Place, options: TransferOptions, console: Console) -> bool:
    """Have the archive in one piece; ``False`` if it was there already."""
    if len(archive.parts) == 1:
        with _bar(archive.name, console) as on_progress:
            return fetch_file(place.source_of(archive.parts[0]), path, options, on_progress)
    if path.exists():
        return False
    pieces = []
    for part in archive.parts:
        pieces.append(place.out / part.name)
        with _bar(part.name, console) as on_progress:
            fetch_file(place.source_of(part), pieces[-1], options, on_progress)
    joined = path.with_name(path.name + ".joining")
    with writing(joined), joined.open("wb") as target:
        for piece in pieces:
            with piece.open("rb") as source:
                shutil.copyfileobj(source, target, 1 << 20)
    joined.replace(path)
    for piece in pieces:
        piece.unlink()
    return True


@contextmanager
def _bar(name: str, console: Console) -> Iterator[OnProgress]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        tasks: list[TaskID] = []

        def on_progress(done: int, total: int | None) -> None:
            # Begun at the first call, with what was there already: the speed is that of what comes now.
            if not tasks:
                tasks.append(progress.add_task(name, completed=done, total=total))
            progress.update(tasks[0], completed=done, total=total)

        yield on_progress
