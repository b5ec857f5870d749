"""Where clips come from: a folder of media files, or a CSV that lists files, spans and labels.

Nothing is opened here but the list itself; a source becomes :class:`~mavil.structs.Clip` objects in a fixed order.
"""

from __future__ import annotations

import csv
import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from mavil.data.media import CONVERTED_ENDINGS, MEDIA_ENDINGS
from mavil.structs import Clip, UserError

ENDINGS = MEDIA_ENDINGS + CONVERTED_ENDINGS
"""File endings taken from a folder."""
REJECT_COLUMNS = ("key", "path", "cause", "detail")


@dataclass(frozen=True)
class Reject:
    """A clip that was left out: ``cause`` to count by, ``detail`` for people."""

    key: str
    path: str
    cause: str
    detail: str


def read_source(source: Path) -> list[Clip]:
    """The clips of a folder or a CSV, in a fixed order, each with its own key.

    Folder: every media file below it, sorted by path; the first sub-folder's name is the label, files directly in the
    folder have none. CSV: one clip a row, in the order of the rows; column ``path`` (relative to the CSV's folder),
    optionally ``start`` and ``end`` (seconds) and ``labels`` (separated by ``;`` or ``|``); other columns become metadata.

    Raises:
        UserError: nothing there, no media files in the folder, or a mistake in the CSV, with its line.
    """
    if source.is_dir():
        return _read_folder(source)
    if source.suffix.lower() == ".csv" and source.is_file():
        return _read_csv(source)
    if source.exists():
        raise UserError(
            f"{source}: a source is a folder of media files or a .csv list, not a single {source.suffix or 'file'}"
        )
    raise UserError(f"{source}: no such folder or CSV; give a folder of media files or a .csv with a column 'path'")


def write_rejects(path: Path, rejects: Iterable[Reject]) -> None:
    """Write the clips that were left out as CSV, one a row; only the header if there are none."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(REJECT_COLUMNS)
        writer.writerows((reject.key, reject.path, reject.cause, reject.detail) for reject in rejects)


def _read_folder(folder: Path) -> list[Clip]:
    files = sorted(
        path.relative_to(folder)
        for path in folder.rglob("*")
        if path.suffix[1:].lower() in ENDINGS
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not files:
        raise UserError(f"{folder}: no media files in this folder; known endings are {', '.join(ENDINGS)}")
    clips = [
        Clip(
            key=_plain_key(file.as_posix()),
            path=str(folder / file),
            labels=file.parts[:1] if len(file.parts) > 1 else (),
        )
        for file in files
    ]
    return _with_own_keys(clips, [file.as_posix() for file in files])


def _read_csv(path: Path) -> list[Clip]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True, skipinitialspace=True)
            reader.fieldnames = columns = [name.strip() for name in reader.fieldnames or ()]
            _check_columns(path, columns)
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as CSV in UTF-8: {error}") from None
    if not rows:
        raise UserError(f"{path}: the list has a header but no clips; add one row per clip")
    seen: dict[tuple[str, float | None, float | None], int] = {}
    clips: list[Clip] = []
    for line, row in rows:
        clip = _clip_of_row(path, line, row)
        span = (row["path"].strip(), clip.start_seconds, clip.end_seconds)
        if span in seen:
            raise UserError(
                f"{path}, line {line}: the same clip as in line {seen[span]} ({span[0]}); remove one of the two"
            )
        seen[span] = line
        clips.append(clip)
    return _with_own_keys(clips, [name for name, _, _ in seen])


def _check_columns(path: Path, columns: list[str]) -> None:
    if not columns:
        raise UserError(f"{path}: the file is empty; its first line must name the columns, one of them 'path'")
    if "path" not in columns:
        raise UserError(
            f"{path}: no column 'path' among {', '.join(map(repr, columns))}; the first line must name the columns"
        )
    doubled = [name for name, count in Counter(columns).items() if count > 1]
    if doubled:
        raise UserError(
            f"{path}: column {doubled[0]!r} is there {columns.count(doubled[0])} times; rename or remove one"
        )


def _clip_of_row(path: Path, line: int, row: dict[str, str]) -> Clip:
    # csv.DictReader files surplus cells under None and leaves None in missing ones.
    if None in row or None in row.values():
        raise UserError(f"{path}, line {line}: not as many cells as columns; quote cells that contain a comma")
    file = row["path"].strip()
    if not file:
        raise UserError(f"{path}, line {line}: the path is empty; name a media file relative to {path.parent}")
    start, end = (_seconds_of(path, line, name, row.get(name, "")) for name in ("start", "end"))
    if end is not None and end <= (start or 0.0):
        raise UserError(
            f"{path}, line {line}: end {end:g} is not after start {start or 0:g}; both count seconds of the file"
        )
    spans = f"-{_milliseconds(start)}-{_milliseconds(end)}" if start is not None or end is not None else ""
    return Clip(
        key=_plain_key(file) + spans,
        path=str(path.parent / file),
        start_seconds=start,
        end_seconds=end,
        labels=tuple(
            dict.fromkeys(label.strip() for label in re.split("[;|]", row.get("labels", "")) if label.strip())
        ),
        metadata={name: text for name, text in row.items() if name not in ("path", "start", "end", "labels")},
    )


def _seconds_of(path: Path, line: int, column: str, text: str) -> float | None:
    if not text.strip():
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise UserError(
            f"{path}, line {line}: {column} {text!r} is not a time; write seconds, 0 or more, or leave it empty"
        )
    return seconds


def _milliseconds(seconds: float | None) -> str:
    return "end" if seconds is None else f"{round(seconds * 1000)}"


def _plain_key(relative_path: str) -> str:
    """A name without dots and slashes, which would split it in a WebDataset shard."""
    stem, dot, ending = relative_path.rpartition(".")
    name = stem if dot and "/" not in ending else relative_path
    return re.sub(r"[^A-Za-z0-9_-]", "_", name.replace("/", "__"))


def _with_own_keys(clips: list[Clip], names: list[str]) -> list[Clip]:
    """Tell clips apart whose plain keys are equal, by a digest of what makes them different."""
    counts = Counter(clip.key for clip in clips)
    return [
        clip if counts[clip.key] == 1 else _with_digest(clip, name) for clip, name in zip(clips, names, strict=True)
    ]


def _with_digest(clip: Clip, name: str) -> Clip:
    identity = f"{name}\n{clip.start_seconds}\n{clip.end_seconds}"
    return replace(clip, key=f"{clip.key}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}")
