from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request

from mavil.serve.uploads import PREFIX, Refused, UploadFolder


def request(chunks: list[bytes], pause: float = 0.0, ends: str = "http.request", **headers: str) -> Request:
    waiting = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(pause)
        return waiting.pop(0) if waiting else {"type": ends, "body": b"", "more_body": False}

    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "method": "POST", "headers": raw}, receive)


def receive(folder: UploadFolder, asked: Request, look: Callable[[Path], None] = lambda path: None) -> None:
    async def run() -> None:
        async with folder.received(asked, 100, 0.3) as path:
            look(path)

    asyncio.run(run())


def test_a_body_becomes_a_file_that_goes_away(tmp_path: Path) -> None:
    folder = UploadFolder(tmp_path)
    seen = []
    receive(folder, request([b"ab", b"", b"cd"]), lambda path: seen.append((path, path.read_bytes())))
    ((path, content),) = seen
    assert content == b"abcd"
    assert path.parent.parent == tmp_path
    assert not path.exists()

    def fail(path: Path) -> None:
        raise KeyError

    with pytest.raises(KeyError):
        receive(folder, request([b"ab"]), fail)
    assert [entry.name for entry in folder.path.iterdir()] == ["lock"]
    folder.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        (lambda: request([b"x" * 60, b"y" * 60]), 413),
        (lambda: request([], content_length="101"), 413),
        (lambda: request([b"x"] * 10, pause=0.1), 408),
        (lambda: request([]), 400),
        (lambda: request([b"x"], ends="http.disconnect"), 400),
    ],
)
def test_uploads_that_are_not_taken(tmp_path: Path, asked: Callable[[], Request], status: int) -> None:
    folder = UploadFolder(tmp_path)
    with pytest.raises(Refused) as refused:
        receive(folder, asked())
    assert refused.value.status == status
    assert [entry.name for entry in folder.path.iterdir()] == ["lock"]
    folder.close()


def test_what_a_killed_server_left_goes_with_the_next_one(tmp_path: Path) -> None:
    living = UploadFolder(tmp_path)
    left = tmp_path / f"{PREFIX}left"
    left.mkdir()
    (left / "lock").touch()
    (left / "upload").write_bytes(b"somebody's")
    strange = tmp_path / f"{PREFIX}strange"  # without a lock it is none of ours
    strange.mkdir()
    os.symlink(living.path, tmp_path / f"{PREFIX}link")
    second = UploadFolder(tmp_path)
    assert not left.exists()
    assert strange.exists()
    assert living.path.exists()
    living.close()
    second.close()
