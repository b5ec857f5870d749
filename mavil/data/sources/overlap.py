"""Which clips another list has too: AudioSet's evaluation ids inside VGGSound's training set are a known leak."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mavil.data.sources.list_files import is_comment, read_json, read_rows
from mavil.data.sources.recordings import recording_of, youtube_id_of_url
from mavil.structs import Clip, UserError

ID_COLUMNS = (
    "youtube_id",
    "ytid",
    "video_id",
    "videoid",
    "yt_id",
    "key",
    "path",
    "filename",
    "file",
    "wav",
    "id",
)
"""Columns that name a recording or its file, the surest first."""
_SPLIT_NUMBER = re.compile(r"[123]\s+(?=id\d+/)")


@dataclass(frozen=True)
class Overlap:
    """``keys`` of the clips whose recording is among the ``num_ids`` of ``path``, in the clips' order."""

    path: Path
    num_ids: int
    keys: tuple[str, ...]


def read_ids(path: Path) -> frozenset[str]:
    """The recordings that a list names, see :func:`~mavil.data.sources.recordings.recording_of`.

    Any list that can be imported, and VGGSounder, ``rejects.csv``, or one id or file name per line: CSV with one of
    :data:`ID_COLUMNS`, otherwise its first column; AST / CAV-MAE, MSR-VTT and YouCook2 JSON, or a JSON list of names.

    Raises:
        UserError: the file cannot be read, or names nothing.
    """
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name a list of clips to compare with")
    names = _json_names(read_json(path), path) if path.suffix.lower() == ".json" else _column(path)
    ids = frozenset(recording_of(name) for name in names if name.strip())
    if not ids:
        raise UserError(f"{path}: names no clip to compare with")
    return ids


def overlaps(clips: Iterable[Clip], lists: Sequence[Path]) -> tuple[Overlap, ...]:
    """For each list, the clips whose recording it names; another segment of the same recording counts.

    Compared are ``source_id`` and the key, which is the name of the clip in sets that call it otherwise (MSR-VTT).

    Raises:
        UserError: see :func:`read_ids`.
    """
    clips = list(clips)
    found = []
    for path in lists:
        ids = read_ids(path)
        keys = tuple(clip.key for clip in clips if clip.source_id in ids or clip.key in ids)
        found.append(Overlap(path, len(ids), keys))
    return tuple(found)


def _column(path: Path) -> Iterator[str]:
    rows = read_rows(path)
    _, first = next(rows, (0, [""]))
    header = [cell.strip().lower() for cell in first]
    if "display_name" in header:
        raise UserError(f"{path}: is a list of classes; name a list of clips to compare with")
    named = [header.index(name) for name in ID_COLUMNS if name in header]
    column = named[0] if named else 0
    if not named:
        yield _SPLIT_NUMBER.sub("", first[0])
    for _, row in rows:
        if column < len(row) and not (is_comment(row[column]) or row[column].startswith("#")):
            yield _SPLIT_NUMBER.sub("", row[column])


def _json_names(data: Any, path: Path) -> Iterator[str]:
    entries = data
    if isinstance(data, dict):
        if isinstance(data.get("database"), dict):
            yield from data["database"]
            return
        entries = data.get("data", data.get("videos"))
    if not isinstance(entries, list):
        raise UserError(f"{path}: no list 'data', 'videos' or 'database' of clips in this JSON")
    for entry in entries:
        if isinstance(entry, str):
            yield entry
        elif isinstance(entry, dict):
            yield str(entry.get("video_id") or entry.get("wav") or "")
            yield youtube_id_of_url(str(entry.get("url", ""))) or ""
