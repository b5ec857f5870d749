"""Reading the files that lists come in: CSV with or without a header, JSON; mistakes are answered with the line."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mavil.structs import UserError


def read_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of a CSV without a header; blank lines and comments (``# ...``) are left out.

    Raises:
        UserError: the file cannot be read as CSV in UTF-8.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, skipinitialspace=True)
            for row in reader:
                if row and (row[0] or len(row) > 1) and not is_comment(row[0]):
                    yield reader.line_num, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as CSV in UTF-8: {error}") from None


def read_table(path: Path, *columns: str) -> list[tuple[int, dict[str, str]]]:
    """(line, row) of a CSV whose first line names its columns, among them ``columns``.

    Raises:
        UserError: the file cannot be read, lacks a column, or a row has more or fewer cells than there are columns.
    """
    rows = read_rows(path)
    _, header = next(rows, (0, []))
    names = [name.strip() for name in header]
    absent = [name for name in columns if name not in names]
    if absent:
        raise UserError(
            f"{path}: no column {absent[0]!r} among {', '.join(map(repr, names))}; the first line must name the columns"
        )
    table = []
    for line, row in rows:
        if len(row) != len(names):
            raise UserError(f"{path}, line {line}: {len(row)} cells under {len(names)} columns; is the list complete?")
        table.append((line, dict(zip(names, row, strict=True))))
    return table


def read_lines(path: Path, what: str) -> list[tuple[int, str]]:
    """(line, text) of a text file without its blank lines.

    Raises:
        UserError: the file cannot be read as ``what``.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as {what}: {error}") from None
    return [(number, text.strip()) for number, text in enumerate(lines, start=1) if text.strip()]


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        UserError: the file cannot be read as JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}") from None


def seconds_of(path: Path, line: int, text: str) -> float:
    """A time in a list.

    Raises:
        UserError: it is none.
    """
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise UserError(f"{path}, line {line}: {text!r} is not a time in seconds; is the list of the named format?")
    return seconds


def is_comment(cell: str) -> bool:
    """Whether a line that begins with this cell is a comment; ``#NAME?`` is what a spreadsheet makes of an id."""
    return cell.startswith("#") and not (cell.endswith(("?", "!")) or cell == "#N/A")
