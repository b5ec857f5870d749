"""``mavil compare RUN RUN ...``: whether runs differ by more than the choice of clips explains."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from mavil.commands.evaluate_results import csv_text, shown_progress, write_folder
from mavil.evaluation.classification import BOOTSTRAP_SEED, LEVEL, finite
from mavil.evaluation.comparison import (
    ClassDifference,
    Difference,
    Paired,
    class_differences,
    differences,
    pair,
)
from mavil.evaluation.predictions import Predictions, read_predictions
from mavil.structs import UserError

PREDICTIONS = Path("evaluation/predictions.npz")
"""Inside a run folder, as ``mavil evaluate`` writes it."""
RESULT_FILE = "comparison.json"
"""Also says that a folder was made by this command and may be replaced by it."""
PROTOCOL = ("data", "modalities", "evaluation_windows", "loss", "left_out")
"""Facts that should be the same for runs whose numbers are compared."""


def read_side(text: str) -> list[Predictions]:
    """The predictions of one run, or of several seeds with commas between: run folders or the files themselves.

    Raises:
        UserError: there are none, with the command that makes them.
    """
    return [read_predictions(_predictions_of(Path(part.strip()))) for part in text.split(",") if part.strip()]


def _predictions_of(place: Path) -> Path:
    if place.is_file():
        return place
    if not place.is_dir():
        raise UserError(f"{place}: no such run folder or file of predictions")
    for path in (place / PREDICTIONS, place / PREDICTIONS.name):
        if path.is_file():
            return path
    raise UserError(f"{place}: has no {PREDICTIONS}; run mavil evaluate {place} first")


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            help="evaluated runs, the baseline first; seeds of one system with commas between: a/seed0,a/seed1"
        ),
    ],
    bootstrap: Annotated[int, typer.Option(min=100, help="resamples of the clips")] = 2000,
    out: Annotated[Path, typer.Option(help="folder for tables and figure; replaced")] = Path("comparison"),
) -> None:
    """Compare runs on the clips that all of them have predicted; nothing is evaluated anew."""
    if len(runs) < 2:
        raise UserError(f"{runs[0]}: name two runs or more, the baseline first")
    if len(set(runs)) < len(runs):
        raise UserError(f"{' '.join(runs)}: a run is named twice; name each once")
    _refuse_foreign(out)
    sides = {name: read_side(name) for name in runs}
    paired = pair(sides)
    with shown_progress(bootstrap) as progress_of:
        rows = differences(paired, bootstrap, progress_of)
    classes = class_differences(paired)
    differing = _differing_facts(sides)
    told = _result(sides, paired, rows, classes, differing, bootstrap)
    _write(out, runs[0], told, rows, classes)
    _print(Console(), runs, paired, rows, classes, differing)
    Console().print(f"written: {out}", highlight=False, soft_wrap=True)


def _differing_facts(sides: Mapping[str, Sequence[Predictions]]) -> dict[str, list[Any]]:
    """Of :data:`PROTOCOL` what is not the same for all: the values, run by run."""
    runs = [one for members in sides.values() for one in members]
    found = {name: [one.facts.get(name) for one in runs] for name in PROTOCOL}
    return {name: values for name, values in found.items() if any(value != values[0] for value in values)}


def _result(
    sides: Mapping[str, Sequence[Predictions]],
    paired: Paired,
    rows: Sequence[Difference],
    classes: Sequence[ClassDifference],
    differing: Mapping[str, list[Any]],
    num_resamples: int,
) -> dict[str, Any]:
    """All of it, for JSON."""
    return {
        "baseline": next(iter(sides)),
        "runs": {name: len(members) for name, members in sides.items()},
        "num_clips": len(paired.keys),
        "left_out": paired.left_out,
        "not_compared": paired.dropped,
        "evaluated_differently": dict(differing),
        "resamples": num_resamples,
        "seed": BOOTSTRAP_SEED,
        "interval_percent": LEVEL,
        "facts": {name: [one.facts for one in members] for name, members in sides.items()},
        "differences": [{**asdict(row), "difference": row.difference} for row in rows],
        "classes": [{**asdict(row), "difference": row.difference} for row in classes],
    }


def _write(
    out: Path,
    baseline: str,
    told: Mapping[str, Any],
    rows: Sequence[Difference],
    classes: Sequence[ClassDifference],
) -> None:
    """Replace the folder as a whole, once everything is written."""
    from mavil.report.comparison import comparison_figure  # matplotlib only now

    def write(folder: Path) -> None:
        (folder / RESULT_FILE).write_text(json.dumps(finite(told), indent=2, allow_nan=False) + "\n", encoding="utf-8")
        (folder / "comparison.csv").write_text(_csv(Difference, rows), encoding="utf-8")
        (folder / "classes.csv").write_text(_csv(ClassDifference, classes), encoding="utf-8")
        (folder / "comparison.svg").write_bytes(comparison_figure(baseline, rows))

    write_folder(out, write)


def _refuse_foreign(out: Path) -> None:
    """Before minutes of work: whatever this command did not make is not replaced."""
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / RESULT_FILE).is_file())):
        raise UserError(f"{out}: holds something that is not a comparison; choose another folder with --out")


def _csv(kind: type[Difference] | type[ClassDifference], rows: Sequence[Difference] | Sequence[ClassDifference]) -> str:
    """A line per row, with what JSON has of it but the lists."""
    names = [one.name for one in fields(kind) if not one.name.endswith("by_run")] + ["difference"]
    return csv_text([names, *([getattr(row, name) for name in names] for row in rows)])


def _print(
    console: Console,
    runs: Sequence[str],
    paired: Paired,
    rows: Sequence[Difference],
    classes: Sequence[ClassDifference],
    differing: Mapping[str, list[Any]],
) -> None:
    for line in _remarks(runs, paired, differing):
        console.print(line, highlight=False, soft_wrap=True)
    # A table for each run and what it was shown: names of both are long, and none is cut off.
    for side, shown in dict.fromkeys((row.side, row.shown) for row in rows):
        chosen = [row for row in rows if (row.side, row.shown) == (side, shown)]
        title = f"{side} against {runs[0]}, {shown}, {chosen[0].num_clips} clips, points (percent)"
        console.print(_differences(title, chosen, has_holm=len(runs) > 2))
    last = classes[-1].shown if classes else ""
    for side in dict.fromkeys(one.side for one in classes):
        table = Table(
            "class",
            "clips",
            "baseline",
            "run's",
            "difference",
            title_justify="left",
            title=f"{side} against {runs[0]}, {last}, average precision per class",
        )
        for one in (one for one in classes if (one.side, one.shown) == (side, last)):
            values = [_points(one.baseline), _points(one.value), _signed(one.difference)]
            table.add_row(one.name, str(one.num_positive), *values)
        console.print(table)


def _differences(title: str, rows: Sequence[Difference], has_holm: bool) -> Table:
    has_mcnemar = any(row.p_mcnemar is not None for row in rows)
    columns = ["metric", "baseline", "run's", "difference", f"{LEVEL:g} % interval", "p"]
    columns += [*(["p, Holm"] if has_holm else []), *(["p, McNemar"] if has_mcnemar else [])]
    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        cells = [row.metric, _points(row.baseline), _points(row.value), _signed(row.difference)]
        cells += [f"{_signed(row.low)} to {_signed(row.high)}", f"{row.p:.2g}"]
        cells += [f"{row.p_holm:.2g}"] if has_holm else []
        cells += ["" if row.p_mcnemar is None else f"{row.p_mcnemar:.2g}"] if has_mcnemar else []
        table.add_row(*cells)
    return table


def _remarks(runs: Sequence[str], paired: Paired, differing: Mapping[str, list[Any]]) -> list[str]:
    """Which clips the numbers are of, and what about them is not equal."""
    lines = [f"{len(paired.keys)} clips that all runs have predicted"]
    for name in runs:
        beside = [number for number in paired.left_out[name] if number]
        if beside:
            lines.append(f"{name}: {', '.join(map(str, beside))} more clips, left out")
    if paired.dropped:
        lines.append(f"not compared, because not all runs were shown it: {'; '.join(paired.dropped)}")
    for fact, values in differing.items():
        lines.append(f"the runs were not evaluated alike: {fact} is {', '.join(str(value) for value in values)}")
    if len(runs) > 2:
        lines.append(
            f"p, Holm: corrected for {len(runs) - 1} runs compared with the baseline, for each metric by itself"
        )
    return lines


def _points(value: float) -> str:
    return f"{100 * value:.2f}"


def _signed(value: float) -> str:
    return f"{100 * value:+.2f}"
