"""Forward reading of a file elsewhere: in growing pieces, the next one on its way while this one is used."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future

from mavil.data.stream.attempts import in_background

FIRST_PIECE = 256 << 10
"""Bytes asked for after a jump, if the clip is not longer: where reading jumps, more would be thrown away."""
LARGEST_PIECE = 4 << 20
"""Bytes; pieces grow twofold up to here while reading goes on forward."""
LARGEST_GAP = 1 << 20
"""Bytes; a gap up to here is read through, because a new request costs about as much time."""


class ReadAhead:
    """Reads one file at a time; what is in memory is the clip and at most two of the largest pieces.

    Args:
        get: ``get(name, offset, size)`` asks for a piece and gives fewer bytes only at the end of the file. It is never
            called by two threads at once.
        size_of: the length of a file where it is known beforehand, so that nothing behind its end is asked for.
    """

    def __init__(self, get: Callable[[str, int, int], bytes], size_of: Callable[[str], int | None]) -> None:
        self._get = get
        self._size_of = size_of
        self._name: str | None = None
        self._size: int | None = None
        self._pieces: deque[tuple[int, bytes]] = deque()
        self._end = 0
        self._piece_size = FIRST_PIECE
        self._next: tuple[int, Future[bytes]] | None = None

    def read(self, name: str, offset: int, size: int) -> bytes:
        """``size`` bytes from ``offset`` on, fewer at the end of the file."""
        if name != self._name:
            self.forget()
            self._name, self._size = name, self._size_of(name)
        start = self._pieces[0][0] if self._pieces else self._end
        coming = self._next[0] if self._next else 0
        if not start <= offset <= self._end + coming + LARGEST_GAP:
            self._drop()
        if not self._pieces and self._next is None:
            self._end = offset  # a jump, or the first read
        end = offset + size if self._size is None else min(offset + size, self._size)
        while self._end < end:
            if not self._take_piece(end - self._end):
                break
            self._drop_before(offset)
        return self._cut(offset, end)

    def forget(self) -> None:
        """Drop everything that was read and what is known of the file."""
        self._drop()
        self._name = self._size = None

    def _drop(self) -> None:
        if self._next is not None:
            with contextlib.suppress(Exception):  # nobody needs this piece any more
                self._next[1].result()
        self._next = None
        self._pieces.clear()
        self._end = 0
        self._piece_size = FIRST_PIECE

    def _take_piece(self, needed: int) -> bool:
        """Append the next piece; whether there is more of the file behind it."""
        goes_on = bool(self._pieces) or self._next is not None
        if self._next is not None:
            (asked, future), self._next = self._next, None
            piece = future.result()
        else:
            asked = self._in_file(max(self._piece_size, needed))
            piece = self._ask(self._end, asked)
        self._pieces.append((self._end, piece))
        self._end += len(piece)
        if len(piece) < asked:
            self._size = self._end
            return False
        self._piece_size = min(2 * self._piece_size, LARGEST_PIECE)
        if goes_on and (coming := self._in_file(self._piece_size)):
            start = self._end
            self._next = coming, in_background(lambda: self._ask(start, coming))
        return True

    def _ask(self, start: int, size: int) -> bytes:
        assert self._name is not None
        return self._get(self._name, start, size)

    def _in_file(self, size: int) -> int:
        """``size`` as far as a piece from here on may have it."""
        size = min(size, LARGEST_PIECE)
        return size if self._size is None else max(0, min(size, self._size - self._end))

    def _drop_before(self, offset: int) -> None:
        while len(self._pieces) > 1 and self._pieces[1][0] <= offset:
            self._pieces.popleft()

    def _cut(self, start: int, end: int) -> bytes:
        parts = [
            memoryview(piece)[max(0, start - at) : max(0, end - at)]
            for at, piece in self._pieces
            if at < end and at + len(piece) > start
        ]
        return b"".join(parts)
