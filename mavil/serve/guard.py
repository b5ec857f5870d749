"""Who may talk to the server: its own page and programs of this machine, no page of another web site.

A browser lets any web site send requests to 127.0.0.1, and by a name that points there (DNS rebinding) even read the answers. The
first is told by the headers Origin and Sec-Fetch-Site, which pages cannot change, the second by the name in Host.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

READING = ("GET", "HEAD")


class Guard:
    """Answers 403 to requests of other web sites and 405 to other methods than are used, and adds headers to every answer.

    Args:
        app: what is guarded.
        names: host names by which the server may be called, beside addresses; see :func:`own_names`.
        policy: the Content-Security-Policy of all answers.
    """

    def __init__(self, app: ASGIApp, names: Iterable[str], policy: str) -> None:
        self._app, self._names = app, frozenset(name.lower() for name in names)
        self._headers = {
            "Content-Security-Policy": policy,
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        reason = refusal(Headers(scope=scope), scope["method"], scope["path"], self._names)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self._headers)
            await send(message)

        if reason is not None:
            await JSONResponse({"error": reason}, status_code=403)(scope, receive, send_with_headers)
            return
        await self._app(scope, receive, send_with_headers)


def refusal(headers: Mapping[str, str], method: str, path: str, names: Iterable[str]) -> str | None:
    """Why a request is not answered, or ``None``."""
    host = headers.get("host", "")
    if not is_own_name(host, names):
        return f"this server is not called {host!r}: open it by its address, e.g. http://127.0.0.1"
    origin = headers.get("origin")
    if origin is not None and origin != f"http://{host}":
        return "requests of other web sites are not answered"
    # Following a link to the page is harmless: it changes nothing, and the other site sees none of it.
    is_link = method in READING and path == "/" and headers.get("sec-fetch-mode") == "navigate"
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not is_link:
        return "requests of other web sites are not answered"
    return None


def is_own_name(host: str, names: Iterable[str]) -> bool:
    """Whether the header ``Host`` holds an address or one of ``names``; an address belongs to no other web site."""
    try:
        name = urlsplit(f"//{host}").hostname
        if not name or "@" in host or "/" in host:
            return False
        if name in names:
            return True
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def own_names(host: str) -> list[str]:
    """Host names for a server bound to ``host``: this machine's own only where others may reach it."""
    if is_loopback(host):
        return ["localhost"]
    return ["localhost", host, socket.gethostname(), socket.getfqdn()]


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine can reach a server bound to ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
