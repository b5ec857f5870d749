"""A list of labels beside those of the evaluation clips."""

from __future__ import annotations

import csv
from collections.abc import Collection, Sequence
from pathlib import Path

from mavil.data.labels import Vocabulary
from mavil.evaluation.label_subsets import SUBSETS, MarkedLabels
from mavil.structs import UserError

NUM_NAMED = 3
"""Names that a message tells."""


def read_marked_labels(path: Path, vocabulary: Vocabulary) -> MarkedLabels:
    """VGGSounder's table [source VGGSounder README]: one row per clip and label.

    Columns ``video_id`` (the clip's key), ``label`` and, where the list has it, ``modality`` (A audible, V visible, AV both).
    Other columns count for nothing.

    Raises:
        UserError: the file is no such table, or its labels are not those of the run.
    """
    marks: dict[str, dict[str, str]] = {}
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            if not {"video_id", "label"} <= set(rows.fieldnames or ()):
                raise UserError(
                    f"{path}: its first line is {','.join(rows.fieldnames or ())[:80]!r}; --labels takes VGGSounder's table with "
                    "the columns video_id, label and modality"
                )
            for row in rows:
                key, label, mark = ((row.get(name) or "").strip() for name in ("video_id", "label", "modality"))
                if not key or not label or mark not in SUBSETS["all"]:
                    raise UserError(
                        f"{path}, line {rows.line_num}: {key!r}, {label!r}, {mark!r} is no clip, label and modality (A, V or AV)"
                    )
                marks.setdefault(key, {})[label] = mark
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as a table of labels: {error}") from None
    if not marks:
        raise UserError(f"{path}: names no clip; --labels takes a table with the columns video_id, label and modality")
    found = MarkedLabels(marks)
    names = found.classes()
    _refuse_unknown(f"{path}: {{}} of its {len(names)} classes", sorted(names), vocabulary)
    return found


def _refuse_unknown(what: str, labels: Collection[str], vocabulary: Vocabulary) -> None:
    known = set(vocabulary.classes)
    unknown = [label for label in labels if label not in known]
    if unknown:
        raise UserError(
            f"{what.format(len(unknown))} are none of the {len(vocabulary)} classes of the run (first: {_first(unknown)}): use "
            "data with the run's classes, or correct the names; the run's are in its classes.txt"
        )


def _first(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names[:NUM_NAMED])
