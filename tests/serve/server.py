"""``mavil serve`` in a process of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.support.processes import Running, kill_session, shared_launcher, wait_until

MOST_REQUESTS = 4
"""Searches at once that the tests' server lets in."""


@dataclass(frozen=True)
class Server:
    """A running server: ``uploads`` is where its temporary folder lies."""

    process: Running
    log: Path
    uploads: Path
    client: httpx.Client

    @property
    def address(self) -> str:
        return str(self.client.base_url)

    def search(self, content: bytes, **asked: str | int) -> httpx.Response:
        return self.client.post("/search", params=asked, content=content)

    def held(self) -> list[str]:
        """What lies in the folder for uploads."""
        folders = self.uploads.glob("mavil-serve-*")
        return [entry.name for folder in folders for entry in folder.iterdir() if entry.name != "lock"]

    def megabytes(self) -> float:
        """Resident in all of its processes, shared pages shared out among them."""
        kilobytes = 0
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if int((entry / "stat").read_text().rpartition(")")[2].split()[3]) == self.process.pid:
                    found = re.search(r"^Pss:\s+(\d+)", (entry / "smaps_rollup").read_text(), re.MULTILINE)
                    kilobytes += int(found[1]) if found else 0
            except OSError:  # it has ended meanwhile
                continue
        return kilobytes / 1000


@contextmanager
def running(index: Path, folder: Path, *options: object) -> Iterator[Server]:
    """Start a server and wait until it is ready."""
    log, uploads = folder / "log", folder / "uploads"
    uploads.mkdir()
    log.touch()  # the process makes it only once it runs
    process = None
    try:
        process = shared_launcher().start(
            ["serve", index, "--port", "0", "--device", "cpu", *options],
            folder,
            log,
            TMPDIR=str(uploads),
            OMP_NUM_THREADS="1",
        )

        def address() -> str | None:
            told = re.search(r"^(http://\S+) is ready", log.read_text(), re.MULTILINE)
            assert told or process.code() is None, log.read_text()
            return told[1] if told else None

        found = wait_until(address, 120)
        assert found, log.read_text()
        with httpx.Client(base_url=found, timeout=60, trust_env=False) as client:
            yield Server(process, log, uploads, client)
    finally:
        if process is not None:
            kill_session(process.pid)
