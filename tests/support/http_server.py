"""A web server on loopback that serves files of memory, with range requests and with the faults a test asks for."""

from __future__ import annotations

import contextlib
import mimetypes
import re
import socket
import struct
import threading
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LONGEST_STALL_SECONDS = 20.0
SLOWNESS = {"slow": 100, "slowest": 1}
"""Bytes every 20 ms."""


@dataclass
class FileServer:
    """What is served, what is to go wrong, and what was asked for.

    Attributes:
        address: of the folder, without a slash at the end.
        files: by name.
        faults: per file, what happens to the next requests, one by one; then all goes well. ``"500"`` or another status;
            ``"reset"`` and ``"short"``: half of the body, then the connection is reset or closed; ``"stall"``: half of the
            body, then nothing; ``"silent"``: not even a header; ``"wrong"``: bytes of another content; ``"slow"``: some
            bytes every 20 ms, ``"slowest"``: one.
        has_ranges: otherwise every answer is the whole file.
        has_lengths: otherwise the end of a body is the end of the connection.
        tags: ``ETag`` per file; a range of a file with another tag (``If-Range``) is answered with the whole file.
        redirects: per file, the address it has moved to.
        retry_after: seconds that error statuses ask to wait.
        requests: (name, first byte asked for) of every one.
        connections: opened so far.
        bytes_sent: of bodies.
        headers: of every request, names in lower case.
    """

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    has_ranges: bool = True
    has_lengths: bool = True
    tags: dict[str, str] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    retry_after: str = ""
    requests: list[tuple[str, int]] = field(default_factory=list)
    connections: int = 0
    bytes_sent: int = 0
    headers: list[dict[str, str]] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)


@contextlib.contextmanager
def serve(files: dict[str, bytes]) -> Iterator[FileServer]:
    """Serve files under ``/data`` on a free port until the block ends."""
    state = FileServer(files=dict(files))
    handler = type("Handler", (_Handler,), {"state": state})
    with _QuietServer(("127.0.0.1", 0), handler) as server:
        state.address = f"http://127.0.0.1:{server.server_address[1]}/data"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        try:
            yield state
        finally:
            state.closing.set()
            server.shutdown()


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is what these tests are about."""


class _Handler(BaseHTTPRequestHandler):
    state: FileServer
    protocol_version = "HTTP/1.1"
    wbufsize = 0

    def setup(self) -> None:
        super().setup()
        self.state.connections += 1

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        state = self.state
        name = unquote(urlsplit(self.path).path).removeprefix("/data/")
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        state.requests.append((name, int(asked[1]) if asked else 0))
        state.headers.append({name.lower(): value for name, value in self.headers.items()})
        fault = state.faults[name].pop(0) if state.faults[name] else ""
        content = state.files.get(name)
        tag = state.tags.get(name, "")
        if self.headers.get("If-Range", tag) != tag:
            asked = None
        if fault == "silent":
            self.stall()
        elif name in state.redirects:
            self.answer(302, b"", {"Location": state.redirects[name]})
        elif fault.isdigit() or content is None:
            self.answer(int(fault or 404), b"no", {"Retry-After": state.retry_after} if state.retry_after else {})
        elif asked and state.has_ranges and int(asked[1]) >= len(content):
            self.answer(416, b"", {"Content-Range": f"bytes */{len(content)}"})
        elif asked and state.has_ranges:
            start, end = int(asked[1]), min(int(asked[2] or len(content)) + 1, len(content))
            place = {"Content-Range": f"bytes {start}-{end - 1}/{len(content)}"}
            self.answer(206, content[start:end], place | self.about(name), fault)
        else:
            self.answer(200, content, self.about(name), fault)

    def about(self, name: str) -> dict[str, str]:
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        tag = self.state.tags.get(name)
        return {"Content-Type": kind} | ({"ETag": tag} if tag else {})

    def answer(self, status: int, body: bytes, headers: dict[str, str], fault: str = "") -> None:
        if fault == "wrong":
            body = bytes(255 - byte for byte in body[:100]) + body[100:]
        sent = body[: len(body) // 2] if fault in ("reset", "short", "stall") else body
        self.state.bytes_sent += len(sent)  # first: the client may look as soon as it has them
        self.send_response(status)
        if self.state.has_lengths:
            headers = {**headers, "Content-Length": str(len(body))}
        else:
            self.close_connection = True
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if fault in SLOWNESS:
            sent = self.trickle(body, SLOWNESS[fault])
        with contextlib.suppress(ConnectionError):
            self.wfile.write(sent)
        if fault == "stall":
            self.stall()
        elif fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if fault in ("reset", "short"):
            self.connection.close() if fault == "reset" else self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True

    def trickle(self, body: bytes, step: int) -> bytes:
        """Send slowly until the client has had enough; what is left then is nothing."""
        with contextlib.suppress(ConnectionError):
            for start in range(0, len(body), step):
                if self.state.closing.wait(0.02):
                    break
                self.wfile.write(body[start : start + step])
        self.close_connection = True
        return b""

    def stall(self) -> None:
        self.state.closing.wait(LONGEST_STALL_SECONDS)
        self.close_connection = True
