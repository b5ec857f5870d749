"""What a retrieval found: the folder that keeps it, and the tables a person reads in the terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mavil.commands.evaluate_results import csv_text
from mavil.evaluation.classification import finite
from mavil.evaluation.probing import CueResult
from mavil.structs import UserError

Results = dict[str, dict[str, dict[str, Any]]]
"""Numbers by gallery and direction."""
FOLDER, RESULTS, TABLE = "retrieval", "retrieval.json", "retrieval.csv"
"""Of a run folder, and in it the file by which it is known, and the same as rows."""
RESULT_FILE = f"{FOLDER}/{RESULTS}"


def refuse_foreign_folder(out: Path) -> None:
    """Before minutes of work: a folder that this command did not make is not replaced.

    Raises:
        UserError: it is a file, or holds something else.
    """
    if out.exists() and (not out.is_dir() or {one.name for one in out.iterdir()} - {RESULTS, TABLE}):
        raise UserError(f"{out}: holds something that is no retrieval; choose another folder with --out")


def write_retrieval(folder: Path, facts: dict[str, Any], results: Results) -> None:
    """``retrieval.json`` with everything, ``retrieval.csv`` with a row per number."""
    stored = finite({**facts, "retrieval": results})
    (folder / RESULTS).write_text(json.dumps(stored, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    rows: list[Sequence[object]] = [("gallery", "direction", "metric", "value", "low", "high")]
    for gallery, ways in results.items():
        for way, numbers in ways.items():
            for name, value in numbers.items():
                if not name.endswith(("_low", "_high")):
                    rows.append((gallery, way, name, value, numbers.get(f"{name}_low"), numbers.get(f"{name}_high")))
    (folder / TABLE).write_text(csv_text(rows), encoding="utf-8")


def print_retrieval(console: Console, results: Results, cues: Sequence[CueResult]) -> None:
    """A table per gallery: a row per number, a column per direction, with intervals; the cue probes below."""
    for gallery, ways in results.items():
        console.print(_gallery_table(gallery, ways))
    if cues:
        console.print(_cue_table(cues))


_ROWS = (
    *((f"R@{k}, %", f"recall_at_{k}_percent", f"chance_at_{k}_percent") for k in (1, 5, 10)),
    ("median rank", "median_rank", None),
    ("mean rank", "mean_rank", "chance_rank"),
    ("mAP by class, %", "class_map_percent", "chance_class_map_percent"),
)
"""Heading, number and what chance gives."""


def _gallery_table(gallery: str, ways: dict[str, dict[str, Any]]) -> Table:
    sizes = {way: f"{numbers['gallery_size']:.0f}" for way, numbers in ways.items()}
    title = f"retrieval, {gallery}, {' and '.join(dict.fromkeys(sizes.values()))} clips"
    table = Table("", *(way.replace("_", " ") for way in ways), "chance", title=title, title_justify="left")
    for heading, name, chance in _ROWS:
        if not any(name in numbers for numbers in ways.values()):
            continue
        cells = [_cell(numbers, name, ".1f") if name in numbers else "" for numbers in ways.values()]
        by_chance = {
            f"{numbers[chance]:.3g}": None for numbers in ways.values() if chance is not None and chance in numbers
        }
        table.add_row(heading, *cells, " / ".join(by_chance))
    return table


def _cell(numbers: dict[str, Any], name: str, form: str) -> str:
    value = f"{numbers[name]:{form}}"
    if f"{name}_low" not in numbers:
        return value
    return f"{value} ({numbers[f'{name}_low']:{form}}–{numbers[f'{name}_high']:{form}})"


def _cue_table(cues: Sequence[CueResult]) -> Table:
    table = Table("cue", "measure", "audio", "video", "shuffled", "chance", title="linear probes of embeddings")
    for cue in cues:
        scores = [f"{cue.probes[m].score:.3f}" for m in ("audio", "video")]
        shuffled = " / ".join(f"{cue.shuffled[m]:.3f}" for m in ("audio", "video"))
        measure = "R²" if cue.kind == "value" else "accuracy"
        table.add_row(cue.cue, measure, *scores, shuffled, f"{cue.chance:.3f}")
    return table
