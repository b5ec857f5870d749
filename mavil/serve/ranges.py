"""Media sent piece by piece, as a browser asks for it when somebody jumps to a time."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator
from io import FileIO

from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response, StreamingResponse

from mavil.search.source_media import Place

BLOCK = 2**18
"""Bytes read and sent at once."""
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """First byte and number of bytes of what is asked for; ``None`` is the whole.

    One range is understood; several, or another unit, are answered with the whole, as the standard allows [source RFC 9110,
    section 14.2].

    Raises:
        ValueError: the range begins behind the end.
    """
    match = _RANGE.fullmatch((header or "").replace(" ", ""))
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        length = min(int(match[2]), size)
        if not length:
            raise ValueError("no bytes")
        return size - length, length
    first, last = int(match[1]), min(int(match[2] or size - 1), size - 1)
    if first >= size:
        raise ValueError(f"begins at {first} of {size}")
    return (first, last - first + 1) if last >= first else None


def media_response(place: Place, header: str | None, has_body: bool = True) -> Response:
    """The media at a place, whole (200) or the range that was asked for (206); 416 where there is no such range.

    Args:
        place: where it lies.
        header: ``Range`` of the request.
        has_body: not for HEAD.

    Raises:
        OSError: it cannot be opened.
    """
    headers = {"Accept-Ranges": "bytes", "Cache-Control": "no-store"}
    try:
        part = parse_range(header, place.size)
    except ValueError:
        headers["Content-Range"] = f"bytes */{place.size}"
        return JSONResponse({"error": "the clip has no such bytes"}, status_code=416, headers=headers)
    first, length = part or (0, place.size)
    headers["Content-Length"] = str(length)
    if part is not None:
        headers["Content-Range"] = f"bytes {first}-{first + length - 1}/{place.size}"
    status = 200 if part is None else 206
    if not has_body:
        return Response(status_code=status, headers=headers, media_type=place.content_type)
    # A file object: it is closed with the response, also one of which nothing was ever sent.
    blocks = _blocks(open(place.path, "rb", buffering=0), place.offset + first, length)  # noqa: SIM115
    return StreamingResponse(blocks, status_code=status, headers=headers, media_type=place.content_type)


async def _blocks(file: FileIO, offset: int, length: int) -> AsyncIterator[bytes]:
    with file:
        end = offset + length
        while offset < end:
            block = await run_in_threadpool(os.pread, file.fileno(), min(BLOCK, end - offset), offset)
            if not block:  # cut off since it was looked at; the connection ends short of what was promised
                return
            yield block
            offset += len(block)
