from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mavil.search.source_media import SourceMedia
from mavil.structs import UserError
from tests.support.stored_embeddings import searchable


def test_a_member_of_a_shard_is_found_again(tmp_path: Path) -> None:
    made = searchable()
    (shard,) = (made.run.parent / "shards").glob("*.tar")
    moved = Path(shutil.copy(shard, tmp_path))
    media = SourceMedia()
    for file in made.files:
        place = media.place(f"{moved}::{file.stem}")
        content = moved.read_bytes()[place.offset : place.offset + place.size]
        assert content == file.read_bytes()
        assert place.content_type == "video/mp4"
    with pytest.raises(UserError, match="holds no media of that clip"):
        media.place(f"{moved}::another")
    moved.write_bytes(b"no tar any more")
    with pytest.raises(UserError, match="cannot be read"):
        media.place(f"{moved}::{made.files[0].stem}")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("/etc/passwd", "does not end like a media file"),
        ("/etc", "does not end like a media file"),
        ("/nowhere/clip.mp4", "No such file or directory"),
        ("/nowhere/000000.tar::clip", "No such file or directory"),
        ("https://example.com/000000.tar::clip", "is not on this machine"),
        ("s3://bucket/clip.mp4", "is not on this machine"),
        ("pipe:cat /etc/passwd #.tar::clip", "is not on this machine"),
    ],
)
def test_nothing_but_media_of_this_machine(source: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        SourceMedia().place(source)


def test_a_fifo_is_no_media(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "clip.mp4")
    with pytest.raises(UserError, match="is not a plain file"):
        SourceMedia().place(str(tmp_path / "clip.mp4"))
