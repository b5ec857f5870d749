"""Somebody's own CSV: it lists files, spans and labels."""

from __future__ import annotations

import csv
import math
import re
from collections import Counter
from pathlib import Path

from mavil.data.sources.keys import plain_key, with_own_keys
from mavil.data.sources.listing import Listing, SourceOptions
from mavil.data.sources.recordings import recording_of
from mavil.structs import Clip, UserError


def read_csv_list(path: Path, _options: SourceOptions) -> Listing:
    """One clip a row, in the order of the rows.

    Column ``path`` is relative to the CSV's folder; ``start`` and ``end`` (seconds) and ``labels`` (separated by ``;`` or
    ``|``) may be there; other columns become metadata.

    Raises:
        UserError: a mistake in the CSV, with its line.
    """
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
    return Listing(tuple(with_own_keys(clips, [name for name, _, _ in seen])))


def _check_columns(path: Path, columns: list[str]) -> None:
    if not columns:
        raise UserError(f"{path}: the file is empty; its first line must name the columns, one of them 'path'")
    if "path" not in columns:
        raise UserError(
            f"{path}: no column 'path' among {', '.join(map(repr, columns))}; the first line must name the columns; "
            "if it is a dataset's list, name its format"
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
        key=plain_key(file) + spans,
        path=str(path.parent / file),
        start_seconds=start,
        end_seconds=end,
        labels=tuple(
            dict.fromkeys(label.strip() for label in re.split("[;|]", row.get("labels", "")) if label.strip())
        ),
        metadata={name: text for name, text in row.items() if name not in ("path", "start", "end", "labels")},
        source_id=recording_of(file),
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
