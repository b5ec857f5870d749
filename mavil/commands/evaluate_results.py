"""The folder that keeps an evaluation, and what a person reads in the terminal."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from mavil.atomic_files import unwritable
from mavil.evaluation.classification import Estimate
from mavil.evaluation.modality_gap import BOTH
from mavil.evaluation.predictions import write_predictions
from mavil.evaluation.results import Results
from mavil.structs import UserError

FOLDER, METRICS = "evaluation", "metrics.json"
"""Of a run folder, and of it the file by which it is known."""
AUDIT = "audit.json"
"""What ``mavil evaluate --audit --out OUT`` adds to the folder of an evaluation, before or after it."""


@contextmanager
def shown_progress(resamples: int) -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """One bar per named thing, on standard error, where somebody looks."""
    with Progress(console=Console(stderr=True), transient=True, disable=not resamples) as bars:

        def told(name: str) -> Callable[[int, int], None]:
            bar = bars.add_task(f"{name}: {resamples} resamples", total=None)
            return lambda done, total: bars.update(bar, completed=done, total=total)

        yield told


def print_results(console: Console, results: Results, title: str) -> None:
    """One column for everything that was shown, and beside it what guessing gives."""
    names = list(results.scored)
    table = Table("metric", *names, "chance", title=title, title_justify="left")
    metrics = list(dict.fromkeys(metric for scored in results.scored.values() for metric in scored.metrics))
    for metric in metrics:
        # The interval below its number: three columns fit into 80 characters then.
        cells = [_cell(scored.metrics[metric], between="\n") for scored in results.scored.values()]
        chance = next(iter(results.scored.values())).chance.get(metric)
        table.add_row(metric, *cells, "" if chance is None else f"{chance:.4g}")
    for name in ("ece", "brier"):
        table.add_row(name, *[f"{getattr(scored.calibration, name):.4g}" for scored in results.scored.values()], "")
    table.add_row("clips", *[str(scored.num_clips) for scored in results.scored.values()], "")
    console.print(table)
    for shown, gaps in results.gaps.items():
        for gap in gaps:
            line = f"modality gap of {gap.metric}: {_cell(gap.estimate, signed=True)}, {shown} over {gap.best_single}"
            console.print(f"{line}, {gap.num_clips} clips with both", highlight=False, soft_wrap=True)
    if results.listed is not None:
        _print_list(console, results)


def _print_list(console: Console, results: Results) -> None:
    listed = results.listed
    assert listed is not None
    table = Table(
        "shown", "labels", "clips", "hit@1", "subset accuracy@1", "F1@1", "mAP", title=f"labels of {listed.name}"
    )
    for shown, subsets in listed.metrics.items():
        for subset, (number, found) in subsets.items():
            picked = [found[name] for name in ("hit_at_1", "accuracy_at_1", "f1_at_1", "map") if name in found]
            cells = [f"{one.value:.4f}" for one in picked]
            table.add_row(shown, subset, str(number), *cells, *[""] * (4 - len(cells)))
    console.print(table)
    console.print(
        f"{listed.num_clips} clips with both predictions and these labels; {listed.without_prediction} of the list have no "
        f"prediction, {listed.not_in_list} evaluated clips are not in the list",
        highlight=False,
        soft_wrap=True,
    )


def _cell(found: Estimate, signed: bool = False, between: str = " ") -> str:
    if math.isnan(found.value):
        return "–"
    value = f"{found.value:+.4f}" if signed else f"{found.value:.4f}"
    return value if math.isnan(found.low) else f"{value}{between}({found.low:.3f}–{found.high:.3f})"


def remarks(results: Results) -> list[str]:
    """What of the data the numbers are of, where it is not all of it."""
    facts, classes = results.predictions.facts, results.predictions.classes
    windows = facts["num_windows"]
    lines = [f"{facts['num_clips']} of {facts['clips_in_data']} clips used"]
    if facts["left_out"]:
        lines[0] += "; left out: " + ", ".join(f"{number} {cause}" for cause, number in facts["left_out"].items())
    lines += [f"{number} clips without {name}" for name, number in facts["without"].items()]
    if facts["evaluation_windows"] > 1:
        lines.append(
            f"{windows} windows used, at most {facts['evaluation_windows']} of a clip; each clip's predictions are averaged"
        )
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, scored in results.scored.items():
        groups.setdefault(tuple(scored.left_out), []).append(name)
    for missing, names in groups.items():
        if missing:
            first = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
            lines.append(
                f"{' / '.join(names)}: {len(missing)} of {len(classes)} classes have no positive or no negative clip and are "
                f"left out of map, auc and d_prime ({first})"
            )
    return lines


def refuse_foreign(out: Path) -> None:
    """Before minutes of work: a folder that this command did not make is not replaced.

    Raises:
        UserError: it is a file, or holds something else.
    """
    if out.exists() and (not out.is_dir() or _others_in(out)):
        raise UserError(f"{out}: holds something that is no evaluation; choose another folder with --out")


def carried_over(out: Path, write: Callable[[Path], None]) -> Callable[[Path], None]:
    """``write`` for :func:`write_folder`, and then what :data:`AUDIT` holds in ``out``: an evaluation does not replace it."""

    def both(folder: Path) -> None:
        write(folder)
        if (out / AUDIT).is_file():
            shutil.copy2(out / AUDIT, folder / AUDIT)

    return both


def write_folder(out: Path, write: Callable[[Path], None]) -> None:
    """Replace ``out`` as a whole by what ``write`` puts into a new folder, once all of it is written.

    Raises:
        UserError: it cannot be written; what was there before is still there.
    """
    aside, before = out.with_name(f".{out.name}.partial"), out.with_name(f".{out.name}.before")
    try:
        for folder in (aside, before):
            shutil.rmtree(folder, ignore_errors=True)
        aside.mkdir(parents=True)
        write(aside)
        if out.exists():
            os.replace(out, before)
        os.replace(aside, out)
        shutil.rmtree(before, ignore_errors=True)
    except OSError as error:
        raise unwritable(out, error) from None


def write_results(folder: Path, results: Results) -> None:
    """``metrics.json``, ``metrics.csv``, ``classes.csv`` and ``predictions.npz``."""
    (folder / METRICS).write_text(json.dumps(results.as_json(), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    rows = [("shown", "metric", "value", "low", "high"), *metric_rows(results)]
    (folder / "metrics.csv").write_text(csv_text(rows), encoding="utf-8")
    lines: list[Sequence[object]] = [("shown", "class", "positives", "average_precision", "auc", "recall")]
    for name, scored in results.scored.items():
        lines += [(name, row.name, row.positives, row.average_precision, row.auc, row.recall) for row in scored.classes]
    (folder / "classes.csv").write_text(csv_text(lines), encoding="utf-8")
    write_predictions(folder / "predictions.npz", results.predictions)


def metric_rows(results: Results) -> list[tuple[str, str, float, float, float]]:
    """(shown, metric, value, low, high) of everything that is one number."""
    rows: list[tuple[str, str, float, float, float]] = []

    def add(shown: str, metric: str, found: Estimate) -> None:
        rows.append((shown, metric, found.value, found.low, found.high))

    for shown, scored in results.scored.items():
        for metric, found in scored.metrics.items():
            add(shown, metric, found)
        for metric, value in scored.chance.items():
            add(shown, f"chance_{metric}", Estimate(value))
        add(shown, "ece", Estimate(scored.calibration.ece))
        add(shown, "brier", Estimate(scored.calibration.brier))
        add(shown, "num_clips", Estimate(float(scored.num_clips)))
    for shown, gaps in results.gaps.items():
        for gap in gaps:
            add(shown, f"gap_{gap.metric}_over_{gap.best_single}", gap.estimate)
    if results.listed is not None:
        for shown, subsets in results.listed.metrics.items():
            for subset, (number, metrics) in subsets.items():
                add(shown, f"labels/{subset}/num_clips", Estimate(float(number)))
                for metric, found in metrics.items():
                    add(shown, f"labels/{subset}/{metric}", found)
        for name, share in results.listed.confusion.items():
            add(BOTH, f"labels/confusion/{name}", Estimate(share))
    return rows


def _others_in(out: Path) -> bool:
    """Whether a folder holds anything but an evaluation or an audit."""
    return not (out / METRICS).is_file() and any(path.name != AUDIT for path in out.iterdir())


def csv_text(rows: Sequence[Sequence[object]]) -> str:
    """Rows as CSV; a number that is not finite is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in rows:
        writer.writerow(["" if isinstance(cell, float) and not math.isfinite(cell) else cell for cell in row])
    return text.getvalue()
