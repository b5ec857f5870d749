"""Lists of the real clips: what is pre-trained on, trained on and tested, so that no test clip is ever seen before.

Three folders are read, each with a ``manifest.csv``: ``berklee`` (``path,duration``), ``esc10`` (also ``label,fold``) and
``fsdd`` (also ``label,speaker``). Split k leaves out fold k of ESC-10 and the k-th speaker in alphabetical order, in
pre-training too, where no label is used. Split "choice" lies inside the training part of split 1: it trains on two folds and
two speakers, tests on the last of each, and is for choosing learning rates.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mavil.atomic_files import write_text
from mavil.structs import UserError

PIECE_SECONDS = 2.5
"""Longer clips are cut to pieces for pre-training, so that each fits its window of 2.56 s and is decoded only once."""
SHORTEST_PIECE_SECONDS = 0.5
SPLITS = (1, 2, 3, 4)

Row = Mapping[str, str]


def write_splits(clips: Path, out: Path) -> list[Path]:
    """Write all lists below ``out`` as ``mavil shards make`` reads them; return their paths.

    ``berklee.csv``, and for each split k ``pretrain_K.csv``, ``esc10_train_K.csv``, ``esc10_test_K.csv``,
    ``digits_train_K.csv`` and ``digits_test_K.csv``.

    Raises:
        UserError: a manifest is missing or lacks a column; there are not exactly four folds and four speakers.
    """
    berklee, sounds, digits = (
        _manifest(clips / name, columns, out)
        for name, columns in (("berklee", ()), ("esc10", ("label", "fold")), ("fsdd", ("label", "speaker")))
    )
    folds, speakers = _four(sounds, "fold", clips / "esc10"), _four(digits, "speaker", clips / "fsdd")
    lists = {"berklee": pieces_of(berklee)}
    for split, fold, speaker in zip(SPLITS, folds, speakers, strict=True):
        seen, tested = _parted(sounds, "fold", [fold])
        heard, asked = _parted(digits, "speaker", [speaker])
        lists |= {
            f"pretrain_{split}": [*lists["berklee"], *pieces_of(seen), *(_whole(row) for row in heard)],
            f"esc10_train_{split}": [_labelled(row, "fold") for row in seen],
            f"esc10_test_{split}": [_labelled(row, "fold") for row in tested],
            f"digits_train_{split}": [_labelled(row, "speaker") for row in heard],
            f"digits_test_{split}": [_labelled(row, "speaker") for row in asked],
        }
    for name, clips_of, field, values in (("esc10", sounds, "fold", folds), ("digits", digits, "speaker", speakers)):
        seen, tested = _parted(_parted(clips_of, field, values[:1])[0], field, values[-1:])
        lists |= {
            f"{name}_train_choice": [_labelled(row, field) for row in seen],
            f"{name}_test_choice": [_labelled(row, field) for row in tested],
        }
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, rows in lists.items():
        paths.append(out / f"{name}.csv")
        write_text(paths[-1], _as_csv(rows))
    return paths


def pieces_of(rows: Iterable[Row]) -> list[dict[str, str]]:
    """Clips as spans of at most :data:`PIECE_SECONDS`; a rest below :data:`SHORTEST_PIECE_SECONDS` is left out."""
    pieces = []
    for row in rows:
        seconds = float(row["duration"])
        if seconds <= PIECE_SECONDS:
            pieces.append(_whole(row))
            continue
        start = 0.0
        while seconds - start >= SHORTEST_PIECE_SECONDS:
            end = min(start + PIECE_SECONDS, seconds)
            pieces.append({"path": row["path"], "start": f"{start:g}", "end": f"{end:g}"})
            start += PIECE_SECONDS
    return pieces


def _whole(row: Row) -> dict[str, str]:
    return {"path": row["path"], "start": "", "end": ""}


def _labelled(row: Row, field: str) -> dict[str, str]:
    return {"path": row["path"], "labels": row["label"], field: row[field]}


def _parted(rows: Iterable[Row], field: str, values: Sequence[str]) -> tuple[list[Row], list[Row]]:
    """Rows without and with one of the values."""
    rows = list(rows)
    return [row for row in rows if row[field] not in values], [row for row in rows if row[field] in values]


def _four(rows: Iterable[Row], field: str, folder: Path) -> list[str]:
    values = sorted({row[field] for row in rows})
    if len(values) != len(SPLITS):
        raise UserError(
            f"{folder}/manifest.csv: column {field!r} has {len(values)} values ({', '.join(values)}), there must be "
            f"{len(SPLITS)}: one to leave out in each split"
        )
    return values


def _manifest(folder: Path, columns: Sequence[str], out: Path) -> list[Row]:
    """The manifest's rows with ``path`` as seen from ``out``."""
    path = folder / "manifest.csv"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}): name the folder that holds {folder.name}"
        ) from None
    for column in ("path", "duration", *columns):
        if not rows or column not in rows[0]:
            raise UserError(f"{path}: no column {column!r}, or no rows: it must list the clips of {folder.name}")
    place = os.path.relpath(folder, out)
    return [{**row, "path": f"{place}/{row['path']}"} for row in rows]


def _as_csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
