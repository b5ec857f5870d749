"""Files that a command prints: ``pipe:COMMAND {name}``. The only place where data reach a shell, and only if allowed."""

from __future__ import annotations

import contextlib
import os
import re
import select
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Callable
from typing import BinaryIO

from mavil.data.stream.addresses import PIPE
from mavil.data.stream.attempts import FailedTry, Silence
from mavil.structs import UserError

NAME = "{name}"
CHUNK = 256 << 10
_HARMLESS = re.compile(r"[\w.+=,@%-]+", re.ASCII)


class PipedFiles:
    """Files printed by a command, one process per file, read forward only; going back starts the command again.

    Args:
        location: ``pipe:`` and the command, with ``{name}`` where the file's name belongs.
        timeout_seconds: longest silence of the command.
        count: told the bytes that arrive.
        allow_shell: the user permits this.

    Raises:
        UserError: it is not permitted, or the command does not contain ``{name}``.
    """

    def __init__(self, location: str, timeout_seconds: float, count: Callable[[int], None], allow_shell: bool) -> None:
        if not allow_shell:
            raise UserError(
                f"{location}: this address runs a command in a shell; if you trust it, set data.remote.allow_shell=true"
            )
        if NAME not in location:
            raise UserError(f"{location}: the command must contain {NAME}, which stands for the name of a shard")
        self._command = location.removeprefix(PIPE)
        self._seconds = timeout_seconds
        self._count = count
        self._running: tuple[str, subprocess.Popen[bytes], BinaryIO] | None = None
        self._at = 0

    def size(self, name: str) -> int | None:
        """Not known."""
        return None

    def get(self, name: str, start: int, size: int) -> bytes:
        """``size`` bytes from ``start`` on, fewer at the end of the file; what lies before them is read and dropped.

        Raises:
            FailedTry: the command failed or said nothing for too long.
            UserError: the name has characters that mean something to a shell.
        """
        if self._running is None or self._running[0] != name or self._at > start:
            self.close()
            self._start(name)
        while self._at < start:
            if not self._read(min(CHUNK, start - self._at)):
                return b""
        parts, missing = [], size
        while missing and (part := self._read(min(CHUNK, missing))):
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def close(self) -> None:
        """End the command, with whatever it started."""
        if self._running is None:
            return
        _, process, errors = self._running
        self._running = None
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
        errors.close()

    def _start(self, name: str) -> None:
        # Quoting alone would not do: inside quotes of the user's command, or in a second shell behind ssh, it is undone.
        if not _HARMLESS.fullmatch(name):
            raise UserError(
                f"{name!r}: such a name is not put into a command; rename it: letters, digits and . _ - + = , @ %"
            )
        errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        process = subprocess.Popen(
            self._command.replace(NAME, shlex.quote(name)),
            shell=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            bufsize=0,
            start_new_session=True,  # so that all of a pipeline can be ended
        )
        self._running, self._at = (name, process, errors), 0

    def _read(self, size: int) -> bytes:
        assert self._running is not None
        _, process, errors = self._running
        assert process.stdout is not None
        poll = select.poll()
        poll.register(process.stdout, select.POLLIN)
        if not poll.poll(1000 * self._seconds):
            raise Silence(self._seconds)
        data = os.read(process.stdout.fileno(), size)
        self._at += len(data)
        self._count(len(data))
        if not data:
            self._check_exit(process, errors)
        return data

    def _check_exit(self, process: subprocess.Popen[bytes], errors: BinaryIO) -> None:
        try:
            status = process.wait(self._seconds)
        except subprocess.TimeoutExpired:
            raise Silence(self._seconds) from None
        if status:
            errors.seek(0)
            lines = errors.read()[-2000:].decode(errors="replace").split("\n")
            said = next((f": {' '.join(line.split())}" for line in reversed(lines) if line.strip()), "")
            raise FailedTry(f"the command ended with status {status}{said}")
