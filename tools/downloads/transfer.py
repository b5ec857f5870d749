"""One file over HTTP: continued where it broke off, tried again after growing pauses, checked before it gets its name."""

from __future__ import annotations

import http.client
import re
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mavil.atomic_files import sha256_of
from mavil.structs import UserError
from tools.downloads.catalog import RemoteFile

Progress = Callable[[int, "int | None"], None]
"""Called with the bytes that are there and the bytes of the whole file, ``None`` where nobody knows."""

LONGEST_PAUSE_SECONDS = 60.0
SLOWEST_BYTES_PER_SECOND = 1000
"""A transfer below this over a whole ``timeout_seconds`` counts as stalled [our choice: a modem was faster]."""
_CHUNK_BYTES = 1 << 20
_TRANSIENT_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})


class DownloadError(Exception):
    """A file that could not be fetched; one line for people. Other files can still be fetched."""


class _BrokenOff(Exception):  # noqa: N818 (may well be mended)
    """The transfer ended early; what has come is kept, and a later try may go on."""

    def __init__(self, reason: str, pause_seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.pause_seconds = pause_seconds


@dataclass(frozen=True)
class TransferOptions:
    """How patient to be.

    ``retries`` counts tries in a row that brought nothing new. ``headers`` go to the address itself, never to the one
    it may redirect to: they can hold a password.
    """

    retries: int = 8
    timeout_seconds: float = 30.0
    first_pause_seconds: float = 1.0
    headers: Mapping[str, str] = field(default_factory=dict)


def fetch_file(
    remote: RemoteFile, path: Path, options: TransferOptions, on_progress: Progress = lambda done, total: None
) -> bool:
    """Fetch a file to ``path``; ``False`` if it was there already. Until it is checked it is called ``<name>.part``.

    Raises:
        DownloadError: the server has not got it, went on failing, or sent something else than was published.
        UserError: the disk is full or the place cannot be written, or another file has that name.
    """
    if urlsplit(remote.url).scheme not in ("http", "https"):
        raise UserError(f"{remote.url}: not an address that can be fetched; it must begin with http:// or https://")
    if path.exists():
        if remote.num_bytes not in (None, path.stat().st_size):
            raise UserError(
                f"{path}: {path.stat().st_size} bytes, but {remote.num_bytes} were published; move or remove this file"
            )
        return False
    part = path.with_name(path.name + ".part")
    _receive_all(remote, part, options, on_progress)
    _check(remote, part)
    part.replace(path)
    _tag_file(part).unlink(missing_ok=True)
    return True


def _receive_all(remote: RemoteFile, part: Path, options: TransferOptions, on_progress: Progress) -> None:
    """Fill the part file, however many tries it takes while each brings something new."""
    failures, farthest = 0, _size(part)
    while True:
        try:
            _receive(remote, part, options, on_progress)
            return
        except _BrokenOff as error:
            # A server without ranges begins anew each time: only bytes nobody has had count as progress.
            if _size(part) > farthest:
                failures, farthest = 0, _size(part)
            failures += 1
            if failures > options.retries:
                kept = f"{_size(part)} bytes are kept: " if _size(part) else ""
                raise DownloadError(
                    f"{remote.url}: {error}; gave up after {failures} tries in a row. {kept}run the same command to go on"
                ) from None
            pause = options.first_pause_seconds * 2 ** (failures - 1)
            time.sleep(min(max(pause, error.pause_seconds), LONGEST_PAUSE_SECONDS))


def _receive(remote: RemoteFile, part: Path, options: TransferOptions, on_progress: Progress) -> None:
    start = _size(part)
    if remote.num_bytes is not None and start >= remote.num_bytes:
        if start == remote.num_bytes:
            return
        part.unlink()
        start = 0
    response = _open(remote, part, start, options)
    if response is None:
        return
    with response:
        if response.status == 206 and _range_start(response) != start:
            part.unlink(missing_ok=True)
            raise _BrokenOff("the server sent another range than the one asked for")
        start = start if response.status == 206 else 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length and length.isdigit() else None
        if remote.num_bytes is not None and total not in (None, remote.num_bytes):
            raise DownloadError(
                f"{remote.url}: the server offers {total} bytes, but {remote.num_bytes} were published; "
                "it has another file there (or a login page): look at the address, or try --base-url with a mirror"
            )
        _check_space(part, (total or remote.num_bytes or start) - start)
        if start == 0:
            _remember_tag(part, response)
        _copy(response, part, start, total or remote.num_bytes, options.timeout_seconds, on_progress)


def _open(remote: RemoteFile, part: Path, start: int, options: TransferOptions) -> Any:
    """The answer to one request, of status 200 or 206; ``None`` if the server has nothing beyond ``start``."""
    request = urllib.request.Request(remote.url, headers={"Accept-Encoding": "identity", "User-Agent": "mavil"})
    for name, value in options.headers.items():
        request.add_unredirected_header(name, value)
    if start:
        request.add_header("Range", f"bytes={start}-")
        if _tag_file(part).exists():
            # If the file on the server has changed meanwhile, it is sent whole instead of a wrong second half.
            request.add_header("If-Range", _tag_file(part).read_text(encoding="ascii"))
    try:
        return urllib.request.urlopen(request, timeout=options.timeout_seconds)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and error.headers.get("Content-Range", "") == f"bytes */{start}":
                return None
            raise _meaning(remote, part, start, error) from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise DownloadError(
                f"{remote.url}: its certificate is not trusted ({error.reason.verify_message})"
            ) from None
        raise _BrokenOff(_reason(error.reason)) from None
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenOff(_reason(error)) from None


def _meaning(remote: RemoteFile, part: Path, start: int, error: urllib.error.HTTPError) -> Exception:
    """What an error status means for the next step."""
    if error.code == 416 and start:
        part.unlink(missing_ok=True)
        return _BrokenOff("what was kept does not fit the server's file; beginning anew")
    if error.code in _TRANSIENT_STATUSES:
        wait = error.headers.get("Retry-After", "")
        return _BrokenOff(f"the server answers {error.code} {error.reason}", float(wait) if wait.isdigit() else 0.0)
    if error.code in (401, 403):
        return DownloadError(
            f"{remote.url}: the server refuses ({error.code} {error.reason}): it asks for a login; see --user and --base-url"
        )
    return DownloadError(
        f"{remote.url}: the server answers {error.code} {error.reason}; look at the address, or try --base-url with a mirror"
    )


def _copy(
    response: Any, part: Path, start: int, total: int | None, timeout_seconds: float, on_progress: Progress
) -> None:
    """From the connection to the part file, until the end, a break or a standstill."""
    with writing(part), part.open("ab" if start else "wb") as file:
        done, window_start, window_bytes = start, time.monotonic(), 0
        on_progress(done, total)
        while chunk := _read(response):
            file.write(chunk)
            done += len(chunk)
            window_bytes += len(chunk)
            on_progress(done, total)
            seconds = time.monotonic() - window_start
            if seconds >= timeout_seconds:
                if window_bytes < SLOWEST_BYTES_PER_SECOND * seconds:
                    raise _BrokenOff(f"stalled: {window_bytes} bytes in {seconds:.0f} s")
                window_start, window_bytes = time.monotonic(), 0
    if total is not None and done < total:
        raise _BrokenOff(f"the connection ended after {done} of {total} bytes")


def _read(response: Any) -> bytes:
    try:
        return response.read1(_CHUNK_BYTES)
    except TimeoutError:
        raise _BrokenOff("stalled: nothing came within the time limit") from None
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenOff(_reason(error)) from None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the disk says into one line for people.

    Raises:
        UserError: the disk is full, the place may not be written ...
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written: {error.strerror}; make room or choose another --out, then run the same command "
            "to go on"
        ) from None


def make_folder(folder: Path) -> None:
    """Make the folder things go to.

    Raises:
        UserError: it cannot be made.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)


def _check_space(part: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if num_bytes > free:
        raise UserError(
            f"{part.parent}: {num_bytes / 1e9:.1f} GB are still to come but only {free / 1e9:.1f} GB are free; "
            "make room or choose another --out"
        )


def _check(remote: RemoteFile, part: Path) -> None:
    """Compare size and checksum with what was published; a wrong file is removed, for nothing can be done with it."""
    if remote.num_bytes is not None and _size(part) != remote.num_bytes:
        found, published = f"{_size(part)} bytes", f"{remote.num_bytes}"
    elif remote.sha256 and (digest := sha256_of(part)) != remote.sha256:
        found, published = f"SHA-256 {digest[:12]}...", f"{remote.sha256[:12]}..."
    else:
        return
    part.unlink()
    _tag_file(part).unlink(missing_ok=True)
    raise DownloadError(
        f"{remote.url}: what came has {found}, but {published} was published: damaged on the way or changed on the server. "
        "It was removed; run again, or try --base-url with a mirror"
    )


def _tag_file(part: Path) -> Path:
    return part.with_name(part.name + ".tag")


def _remember_tag(part: Path, response: Any) -> None:
    """Keep what tells the server's file from a later one: its strong ETag, else its date."""
    tag = response.headers.get("ETag") or ""
    tag = response.headers.get("Last-Modified", "") if not tag or tag.startswith("W/") else tag
    with writing(part):
        if tag.isascii() and tag:
            _tag_file(part).write_text(tag, encoding="ascii")
        else:
            _tag_file(part).unlink(missing_ok=True)


def _range_start(response: Any) -> int | None:
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _reason(error: object) -> str:
    return " ".join(str(error).split()) or type(error).__name__
