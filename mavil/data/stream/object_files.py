"""Files in the object stores that fsspec knows: ``s3://``, ``gs://``, ``hf://`` and others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import fsspec
from fsspec.asyn import AsyncFileSystem

from mavil.data.stream.addresses import public
from mavil.data.stream.attempts import FailedTry, denied, missing, within
from mavil.structs import UserError


class ObjectFiles:
    """The files under one address of an object store.

    Every call runs in a thread of its own, which is left to itself when nothing comes: not every back end has a time limit.

    Args:
        location: the address; credentials are those the back end finds by itself.
        timeout_seconds: longest time for a call.
        count: told the bytes that arrive; what a back end reads beyond that is not known.
    """

    def __init__(self, location: str, timeout_seconds: float, count: Callable[[int], None]) -> None:
        self._location = location
        self._seconds = timeout_seconds
        self._count = count
        self._system: tuple[Any, str] | None = None

    def size(self, name: str) -> int | None:
        """The length of a file, where the store tells it.

        Raises:
            FailedTry: no answer.
            UserError: the store will not give the file, whatever we try.
        """
        return self._call(name, lambda system, path: system.info(path)["size"])

    def get(self, name: str, start: int, size: int) -> bytes:
        """``size`` bytes from ``start`` on, fewer at the end of the file.

        Raises:
            FailedTry: no answer, or too long a one.
            UserError: the store will not give the file, whatever we try.
        """
        data = self._call(name, lambda system, path: _read_range(system, path, start, start + size))
        self._count(len(data))
        if len(data) > size:
            raise FailedTry(f"the server sent {len(data)} bytes instead of {size}")
        return data

    def close(self) -> None:
        """Forget the connections; the back end closes them when nothing refers to them any more."""
        self._system = None

    def _call(self, name: str, action: Callable[[Any, str], Any]) -> Any:
        address = f"{public(self._location)}/{name}"
        try:
            if self._system is None:
                self._system = within(self._seconds, self._open)
            system, root = self._system
            return within(self._seconds, lambda: action(system, f"{root.rstrip('/')}/{name}"))
        except (FailedTry, UserError):
            raise
        except Exception as error:
            raise _judged(error, address) from None

    def _open(self) -> tuple[Any, str]:
        try:
            # Instances that fsspec keeps are not for processes that were forked, nor for after a hung connection.
            return fsspec.core.url_to_fs(self._location, skip_instance_cache=True)
        except ImportError as error:
            raise UserError(
                f"{public(self._location)}: {error} (a package of its own, not installed with mavil)"
            ) from None
        except (ValueError, TypeError) as error:
            raise UserError(f"{public(self._location)}: no address fsspec can open ({error}); correct it") from None


def _read_range(system: Any, path: str, start: int, end: int) -> bytes:
    if isinstance(system, AsyncFileSystem):
        return system.cat_file(path, start=start, end=end)
    try:
        # Others open a file for it, whose own read-ahead would fetch what we do not use.
        return system.cat_file(path, start=start, end=end, cache_type="none")
    except TypeError:
        return system.cat_file(path, start=start, end=end)


def _judged(error: Exception, address: str) -> Exception:
    """What an error of some back end means: whether another try makes sense."""
    status = getattr(getattr(error, "response", None), "status_code", None) or getattr(error, "code", None)
    text = " ".join(f"{type(error).__name__}: {error}".split())
    if isinstance(error, FileNotFoundError) or status in (404, "404"):
        return missing(address, text)
    if isinstance(error, PermissionError) or "credentials" in text.lower() or status in (401, 403, "401", "403"):
        return denied(address, text)
    return FailedTry(text)
