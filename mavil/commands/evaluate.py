"""``mavil evaluate RUN [DATA]``: what a run is worth on a set of clips, with everything needed to compare the numbers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from mavil import distributed
from mavil.commands.assemble import CLASSES_FILE, read_recipe, task_for
from mavil.commands.audit import audit_run
from mavil.commands.evaluate_classifier import predict_run
from mavil.commands.evaluate_labels import read_marked_labels
from mavil.commands.evaluate_page import REPORT, evaluation_report
from mavil.commands.evaluate_results import (
    FOLDER,
    METRICS,
    carried_over,
    csv_text,
    print_results,
    refuse_foreign,
    remarks,
    shown_progress,
    write_folder,
    write_results,
)
from mavil.commands.inputs import loader_for, prepare_for
from mavil.commands.overlap import overlaps_of
from mavil.commands.words import names_in, split_words
from mavil.config import ClassifyTask, Recipe
from mavil.data.labels import Vocabulary
from mavil.data.prepare import prepared
from mavil.engine.checkpoints.reading import load_weights
from mavil.engine.process.runtime import choose_device, settle
from mavil.evaluation.classification import finite
from mavil.evaluation.results import judge
from mavil.models.weights import load_parts
from mavil.recipe import change_recipe
from mavil.report.page import write_page
from mavil.structs import Modality, UserError


@dataclass(frozen=True)
class Evaluated:
    """The metrics, and what they were computed from: the counts of all ranks' loaders (``samples`` are windows of clips)."""

    metrics: dict[str, float]
    counts: dict[str, int]


def evaluate_run(
    run: Path, recipe: Recipe, which: str = "newest", modalities: Sequence[Modality] | None = None
) -> Evaluated:
    """Evaluate a checkpoint of ``run`` (newest, best or a step) on ``recipe.data.evaluation``; the same numbers on every rank.

    ``modalities``: show the model only these of what it knows; ``None``: all that a clip has.
    """
    device = choose_device(recipe.trainer.device)
    settle(device, recipe.trainer.num_threads)
    vocabulary = Vocabulary.from_file(run / CLASSES_FILE) if isinstance(recipe.task, ClassifyTask) else None
    # The checkpoint holds the whole model; what the run itself started from need not exist any more (a teacher must).
    task = task_for(change_recipe(recipe, "task.weights=null"), vocabulary, device)
    load_parts(task.export_modules(), load_weights(run, which), str(run))
    task.model.eval()
    loader = loader_for(recipe, "evaluation", vocabulary, training=False, modalities=modalities)
    metrics = task.evaluate(prepared(loader, prepare_for(recipe, device, training=False), device))
    counts: Counter[str] = Counter()
    for own in distributed.gather_objects(loader.counts):
        counts.update(own)
    return Evaluated(metrics, dict(counts))


def modalities_in(recipe: Recipe, text: str | None) -> tuple[Modality, ...]:
    """``"audio"`` or ``"audio,video"`` as the modalities that a model is to be shown; all where nothing is said.

    Raises:
        UserError: the recipe has no such modality.
    """
    names = names_in(text)
    unknown = [name for name in names if name not in recipe.modalities]
    if unknown:
        raise UserError(
            f"--modalities {text}: {recipe.name} knows no {unknown[0]!r}; choose from {', '.join(recipe.modalities)}"
        )
    return tuple(m for m in recipe.modalities if m in names or not names)


def evaluate(
    run: Annotated[Path, typer.Argument(help="run folder of any task")],
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[DATA] [KEY=VALUE]...",
            help="shards to evaluate on (default: the run's data.evaluation), and settings to change",
        ),
    ] = None,
    checkpoint: Annotated[
        str, typer.Option(help="which one: newest, best (see trainer.best_metric) or a step")
    ] = "newest",
    modalities: Annotated[
        str | None, typer.Option(help="show the model only these of its modalities, e.g. audio; default: all")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="VGGSounder's table: judge by these labels too, beside the data's own")
    ] = None,
    bootstrap: Annotated[int, typer.Option(min=0, help="resamples of the clips for the intervals; 0: none")] = 1000,
    out: Annotated[
        Path | None, typer.Option(help="folder of the results; default: RUN/evaluation; replaced, but for audit.json")
    ] = None,
    audit: Annotated[
        bool,
        typer.Option("--audit", help="instead: try that a clip's logits depend on the clip alone; write audit.json"),
    ] = False,
    audit_clips: Annotated[int, typer.Option(min=2, help="clips that --audit tries, spread over the data")] = 64,
) -> None:
    """Evaluate a run; print the metrics and write the folder RUN/evaluation."""
    if not run.is_dir():
        raise UserError(f"{run}: no such run folder")
    data, changes = split_words(words or [])
    recipe = read_recipe(run, [*changes, *([f"data.evaluation={data}"] if data else [])])
    shown = modalities_in(recipe, modalities)
    if audit:
        audit_run(run, recipe, checkpoint, shown, audit_clips, out)
        return
    place = out or run / FOLDER
    refuse_foreign(place)
    if isinstance(recipe.task, ClassifyTask):
        _evaluate_classifier(run, recipe, checkpoint, shown, labels, bootstrap, place)
    elif labels is not None:
        raise UserError(f"--labels {labels}: {run} is a {recipe.task.kind} run, which predicts no classes")
    else:
        _evaluate_other(run, recipe, checkpoint, shown, place)


def _evaluate_classifier(
    run: Path,
    recipe: Recipe,
    checkpoint: str,
    shown: Sequence[Modality],
    labels: Path | None,
    bootstrap: int,
    place: Path,
) -> None:
    """The clips on all ranks, then the numbers on the main one."""
    listed = None if labels is None else read_marked_labels(labels, Vocabulary.from_file(run / CLASSES_FILE))
    with distributed.process_group(choose_device(recipe.trainer.device)):
        predictions = predict_run(run, recipe, checkpoint, shown)
        if not distributed.is_main():
            return
    overlaps = overlaps_of(recipe)
    predictions = replace(predictions, facts={**predictions.facts, **overlaps.facts()})
    with shown_progress(bootstrap) as progress_of:
        results = judge(predictions, bootstrap, listed, str(labels or ""), progress_of)
    report = evaluation_report(results, run, recipe)

    def write(folder: Path) -> None:
        write_results(folder, results)
        write_page(folder / REPORT, report)

    write_folder(place, carried_over(place, write))
    console = Console()
    for line in [*_shown_remark(recipe, shown), *remarks(results), *overlaps.lines()]:
        console.print(line, highlight=False, soft_wrap=True)
    print_results(console, results, f"{run} on {predictions.facts['data']}")
    console.print(f"written: {place}", highlight=False, soft_wrap=True)


def _evaluate_other(run: Path, recipe: Recipe, checkpoint: str, shown: Sequence[Modality], place: Path) -> None:
    """The task's own metrics."""
    with distributed.process_group(choose_device(recipe.trainer.device)):
        found = evaluate_run(run, recipe, checkpoint, shown)
        if not distributed.is_main():
            return
    overlaps = overlaps_of(recipe)
    facts = {
        "run": str(run),
        "data": recipe.data.evaluation,
        "checkpoint": checkpoint,
        "modalities": shown,
        "evaluation_windows": recipe.data.evaluation_windows,
        "num_windows": found.counts["samples"],
        **overlaps.facts(),
    }
    text = json.dumps(finite({**facts, **found.metrics}), indent=2) + "\n"
    rows = [("shown", "metric", "value", "low", "high")]
    rows += [("+".join(shown), name, str(value), "", "") for name, value in found.metrics.items()]

    def write(folder: Path) -> None:
        (folder / METRICS).write_text(text, encoding="utf-8")
        (folder / "metrics.csv").write_text(csv_text(rows), encoding="utf-8")

    write_folder(place, carried_over(place, write))
    console = Console()
    for line in [
        *_shown_remark(recipe, shown),
        *_remarks(recipe, shown, found.counts),
        *overlaps.lines(),
    ]:
        console.print(line, highlight=False, soft_wrap=True)
    table = Table("metric", "value", title=f"{run} on {recipe.data.evaluation}", title_justify="left")
    for name, value in found.metrics.items():
        table.add_row(name, f"{value:.4g}")
    console.print(table)


def _shown_remark(recipe: Recipe, shown: Sequence[Modality]) -> list[str]:
    return [f"the model was shown {shown[0]} only"] if len(shown) < len(recipe.modalities) else []


def _remarks(recipe: Recipe, shown: Sequence[Modality], counts: dict[str, int]) -> list[str]:
    """What of the clips the numbers are of, where it is not all of each clip's middle."""
    lines: list[str] = []
    if recipe.data.evaluation_windows > 1:
        lines.append(
            f"{counts['samples']} windows used, at most {recipe.data.evaluation_windows} of a clip; each clip's "
            "predictions are averaged"
        )
    what = "windows" if recipe.data.evaluation_windows > 1 else "clips"
    lines += [
        f"{number} {what} without {modality}" for modality in shown if (number := counts.get(f"without_{modality}", 0))
    ]
    return lines
