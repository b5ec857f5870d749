"""Queries that are sent to the server: written to a temporary file as they come in, within limits, and removed in any case."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request

from mavil.structs import UserError

PREFIX = "mavil-serve-"
_LOCK = "lock"
_DRAINED_BYTES = 2**20


class Refused(Exception):  # noqa: N818 (an answer, not a fault of the program)
    """A request that is answered with a status and one sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


class UploadFolder:
    """A folder for queries, which goes with the server; those of servers that were killed go when the next one starts.

    Args:
        parent: where to make it; default: the system's folder for temporary files.

    Raises:
        UserError: it cannot be made.
    """

    def __init__(self, parent: Path | None = None) -> None:
        parent = parent or Path(tempfile.gettempdir())
        for left in parent.glob(f"{PREFIX}*"):
            _remove_if_left(left)
        try:
            self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        except OSError as error:
            raise UserError(
                f"{parent}: no folder for uploads can be made there ({error.strerror}); set TMPDIR to one that can be written"
            ) from None
        self._lock = open(self.path / _LOCK, "wb")  # noqa: SIM115 - it stays open as long as the folder is used
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def close(self) -> None:
        """Remove it with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()

    @contextlib.asynccontextmanager
    async def received(self, request: Request, most_bytes: int, seconds: float) -> AsyncIterator[Path]:
        """The body of a request as a file, which is gone afterwards.

        Args:
            request: of which nothing was read.
            most_bytes: it may have.
            seconds: it may take to come in.

        Raises:
            Refused: it is larger (413), slower (408), empty (400), or was broken off (400).
        """
        handle, name = tempfile.mkstemp(dir=self.path)
        try:
            try:
                with anyio.fail_after(seconds):
                    num_bytes = await _write(handle, request, most_bytes)
            except TimeoutError:
                raise Refused(408, f"the file did not arrive within {seconds:g} s") from None
            except ClientDisconnect:
                raise Refused(400, "the upload was broken off") from None
            finally:
                os.close(handle)
            if not num_bytes:
                raise Refused(400, "the file has no bytes: choose another one")
            yield Path(name)
        finally:
            Path(name).unlink(missing_ok=True)


async def _write(handle: int, request: Request, most_bytes: int) -> int:
    too_large = Refused(413, f"the file is larger than {most_bytes / 1e6:g} MB: cut out the part you mean")
    stated = request.headers.get("content-length", "0")
    if stated.isdecimal() and int(stated) > most_bytes:
        await drain(request)
        raise too_large
    num_bytes = 0
    async for chunk in request.stream():
        num_bytes += len(chunk)
        if num_bytes > most_bytes:
            raise too_large
        if chunk:
            await run_in_threadpool(os.write, handle, chunk)
    return num_bytes


async def drain(request: Request) -> None:
    """Read on a little before refusing: a program that is still sending may not look for the answer before it has finished."""
    num_bytes = 0
    with contextlib.suppress(ClientDisconnect), anyio.move_on_after(1.0):
        async for chunk in request.stream():
            num_bytes += len(chunk)
            if num_bytes > _DRAINED_BYTES:
                return


def _remove_if_left(folder: Path) -> None:
    """Remove the folder of a server that lives no more: nobody holds its lock."""
    with contextlib.suppress(OSError), open(folder / _LOCK, "rb") as lock:
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():
            return
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
