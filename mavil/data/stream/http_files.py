"""Files at ``http://`` and ``https://``, read by range requests over connections that are kept."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import BinaryIO
from urllib.parse import quote, unquote, urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3.exceptions import HTTPError, LocationParseError, MaxRetryError, NewConnectionError, TimeoutError

from mavil.data.stream.addresses import public
from mavil.data.stream.attempts import FailedTry, Silence, denied, missing
from mavil.data.stream.partial_files import writing_to
from mavil.structs import UserError

CHUNK = 256 << 10
SLOWNESS = 10.0
"""A transfer may take so many times the time limit, per started 4 MiB, while something keeps coming [our choice]."""
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)$")
_REDIRECTS = urllib3.Retry(total=None, redirect=10, connect=0, read=0, status=0, other=0)


class HttpFiles:
    """The files of one folder of a web server.

    A server that does not know range requests answers with the whole file: it is then kept in a temporary file, one at a
    time, and read from there.

    Args:
        location: the folder's address; a query is put behind each file's name, user and password into a header.
        timeout_seconds: longest silence.
        count: told the bytes that arrive.
        temporary: folder for temporary files; none: the system's.
    """

    def __init__(
        self, location: str, timeout_seconds: float, count: Callable[[int], None], temporary: str | None
    ) -> None:
        self._location = location
        self._parts = urlsplit(location)
        self._seconds = timeout_seconds
        self._count = count
        self._temporary = temporary
        self._pool: urllib3.PoolManager | None = None
        self._whole: tuple[str, BinaryIO] | None = None

    def size(self, name: str) -> int | None:
        """Not known before the first request."""
        return None

    def get(self, name: str, start: int, size: int) -> bytes:
        """``size`` bytes from ``start`` on, fewer at the end of the file.

        Raises:
            FailedTry: no answer, or not what was asked for.
            UserError: the server will not give the file, whatever we try.
        """
        if self._whole is None or self._whole[0] != name:
            with self._request(name, {"Range": f"bytes={start}-{start + size - 1}"}) as answer:
                if answer.status == 206:
                    return self._read_part(answer, start, size)
                if answer.status == 416:
                    return b""  # behind the end
                self._keep_whole(name, answer)
        assert self._whole is not None
        self._whole[1].seek(start)
        return self._whole[1].read(size)

    def close(self) -> None:
        """Close connections and temporary files."""
        if self._pool is not None:
            self._pool.clear()
        if self._whole is not None:
            self._whole[1].close()
        self._pool = self._whole = None

    def _url(self, name: str) -> str:
        netloc = self._parts.netloc.rpartition("@")[2]
        path = f"{self._parts.path.rstrip('/')}/{quote(name)}"
        return urlunsplit(self._parts._replace(netloc=netloc, path=path, fragment=""))

    @contextlib.contextmanager
    def _request(self, name: str, headers: dict[str, str]) -> Iterator[urllib3.BaseHTTPResponse]:
        headers = {"Accept-Encoding": "identity", **headers}
        if "@" in self._parts.netloc:
            secret = f"{unquote(self._parts.username or '')}:{unquote(self._parts.password or '')}"
            headers |= urllib3.make_headers(basic_auth=secret)
        if self._pool is None:
            self._pool = _open_pool(self._parts.scheme, self._parts.hostname or "", self._seconds)
        address = f"{public(self._location)}/{name}"
        answer = None
        try:
            answer = self._pool.request("GET", self._url(name), headers=headers, preload_content=False)
            _check_status(answer, address)
            yield answer
        except LocationParseError as error:
            raise UserError(f"{address}: no address ({error}); correct it") from None
        except HTTPError as error:
            cause = error.reason if isinstance(error, MaxRetryError) and error.reason else error
            if isinstance(cause, TimeoutError) and not isinstance(cause, NewConnectionError):
                raise Silence(self._seconds) from None
            # The first argument without the object in front: "Connection broken: ...", "Failed to establish a new ..."
            text = re.sub(r"^(<.*?>|\w+\(.*?\)): ", "", str(cause.args[0] if cause.args else cause))
            raise FailedTry(f"the connection failed ({text or type(cause).__name__})") from None
        finally:
            if answer is not None:
                answer.close()  # one that was read to its end has given its connection back already

    def _read_part(self, answer: urllib3.BaseHTTPResponse, start: int, size: int) -> bytes:
        told = answer.headers.get("Content-Range", "")
        match = _RANGE.match(told)
        if match is None or int(match[1]) != start or int(match[2]) >= start + size:
            raise FailedTry(
                f"the server sent another range than bytes {start}-{start + size - 1} ({told or 'not named'})"
            )
        length = int(match[2]) - start + 1
        if length < size and match[3] != "*" and start + length < int(match[3]):
            raise FailedTry(f"the server sent {length} of {size} bytes")
        data = b"".join(self._chunks(answer, length))
        if len(data) != length:
            raise FailedTry(f"the answer ended after {len(data)} of {length} bytes")
        return data

    def _keep_whole(self, name: str, answer: urllib3.BaseHTTPResponse) -> None:
        if self._whole is not None:
            self._whole[1].close()
            self._whole = None
        with writing_to(self._temporary or tempfile.gettempdir()):
            if self._temporary is not None:
                os.makedirs(self._temporary, exist_ok=True)
            file = tempfile.TemporaryFile(dir=self._temporary)  # noqa: SIM115 - read from until another file comes
        for chunk in self._chunks(answer, None):
            with writing_to(self._temporary or tempfile.gettempdir()):
                file.write(chunk)
        self._whole = name, file

    def _chunks(self, answer: urllib3.BaseHTTPResponse, length: int | None) -> Iterator[bytes]:
        received, began = 0, time.monotonic()
        while length is None or received < length:
            amount = CHUNK if length is None else min(CHUNK, length - received)
            chunk = answer.read1(amount, decode_content=False)
            if not chunk:
                return
            received += len(chunk)
            self._count(len(chunk))
            allowed = self._seconds * SLOWNESS * (1 + (received >> 22))
            if time.monotonic() - began > allowed:
                raise FailedTry(f"only {received} bytes came in {allowed:g} s")
            yield chunk


def _open_pool(scheme: str, host: str, timeout_seconds: float) -> urllib3.PoolManager:
    proxy = None if proxy_bypass(host) else getproxies().get(scheme)
    timeout = urllib3.Timeout(connect=timeout_seconds, read=timeout_seconds)
    if proxy:
        return urllib3.ProxyManager(proxy, timeout=timeout, retries=_REDIRECTS)
    return urllib3.PoolManager(timeout=timeout, retries=_REDIRECTS)


def _check_status(answer: urllib3.BaseHTTPResponse, address: str) -> None:
    status = f"{answer.status} {answer.reason or ''}".strip()
    if answer.status in (200, 206, 416):
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            raise FailedTry("the server sent it compressed although it was asked not to")
        return
    if answer.status in (404, 410):
        raise missing(address, status)
    if answer.status in (401, 403, 407):
        raise denied(address, status)
    if answer.status in (408, 429) or answer.status >= 500:
        pause = answer.headers.get("Retry-After", "")
        raise FailedTry(f"the server answered {status}", float(pause) if pause.isdecimal() else 0.0)
    raise UserError(f"{address}: the server answered {status}: check the address")
