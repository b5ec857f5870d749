"""One shard: a tar in which each clip is ``KEY.<container>`` beside ``KEY.json``; written, and surveyed for the table."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from webdataset.writer import TarWriter

RECORD_ENDING = "json"


def write_shard(path: Path, clips: Iterable[tuple[str, str, bytes, dict[str, Any]]]) -> None:
    """Write (key, ending, media, record) of each clip; the same clips give the same bytes."""
    # Owner, mode and time are fixed, for they would be in the bytes.
    options = {"user": "", "group": "", "mode": 0o644, "mtime": 0, "compress": False, "encoder": False}
    with path.open("wb") as file, TarWriter(file, **options) as tar:
        for key, ending, media, record in clips:
            text = json.dumps(record, ensure_ascii=False).encode()
            tar.write({"__key__": key, ending: media, RECORD_ENDING: text})


def survey_shard(path: Path) -> Iterator[tuple[str, tuple[int, int, int, int, int]]]:
    """Key and place of every clip: (offset, media_at, media_bytes, record_at, record_bytes), see ``clip_table.ROW``.

    Members of one clip follow each other; where one of the two is missing, its length is 0.

    Raises:
        tarfile.TarError: no tar, or a truncated one.
    """
    clip, place = "", [0, 0, 0, 0, 0]
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            key, _, ending = member.name.rpartition(".")
            if key != clip:
                if clip:
                    yield clip, (place[0], place[1], place[2], place[3], place[4])
                clip, place = key, [member.offset, 0, 0, 0, 0]
            first = 3 if ending == RECORD_ENDING else 1
            place[first : first + 2] = [member.offset_data - place[0], member.size]
    if clip:
        yield clip, (place[0], place[1], place[2], place[3], place[4])
