"""``mavil evaluate RUN``: the task's own metrics on a folder of shards."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from mavil import distributed
from mavil.atomic_files import write_text
from mavil.commands.assemble import CLASSES_FILE, loader_for, prepare_for, read_recipe, task_for
from mavil.commands.retrieve import names_in
from mavil.config import ClassifyTask, Recipe
from mavil.data.labels import Vocabulary
from mavil.data.prepare import prepared
from mavil.engine.checkpoints.reading import load_weights
from mavil.engine.process.runtime import choose_device, settle
from mavil.models.weights import load_parts
from mavil.recipe import change_recipe
from mavil.structs import Modality, UserError

RESULT_FILE = "evaluation.json"


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
    changes: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="settings to change")] = None,
    shards: Annotated[
        str | None, typer.Option(help="shards to evaluate on; default: the run's data.evaluation")
    ] = None,
    checkpoint: Annotated[
        str, typer.Option(help="which one: newest, best (see trainer.best_metric) or a step")
    ] = "newest",
    modalities: Annotated[
        str | None, typer.Option(help="show the model only these of its modalities, e.g. audio; default: all")
    ] = None,
) -> None:
    """Evaluate a run; print the metrics and write RUN/evaluation.json."""
    if not run.is_dir():
        raise UserError(f"{run}: no such run folder")
    where = [f"data.evaluation={shards}"] if shards else []
    recipe = read_recipe(run, [*(changes or []), *where])
    shown = modalities_in(recipe, modalities)
    with distributed.process_group(choose_device(recipe.trainer.device)):
        found = evaluate_run(run, recipe, checkpoint, shown)
        if not distributed.is_main():
            return
        facts = {
            "shards": recipe.data.evaluation,
            "checkpoint": checkpoint,
            "modalities": shown,
            "evaluation_windows": recipe.data.evaluation_windows,
            "num_windows": found.counts["samples"],
        }
        write_text(run / RESULT_FILE, json.dumps({**facts, **found.metrics}, indent=2) + "\n")
        console = Console()
        for line in _remarks(recipe, shown, found.counts):
            console.print(line, highlight=False)
        table = Table("metric", "value", title=f"{run} on {recipe.data.evaluation}", title_justify="left")
        for name, value in found.metrics.items():
            table.add_row(name, f"{value:.4g}")
        console.print(table)


def _remarks(recipe: Recipe, shown: Sequence[Modality], counts: dict[str, int]) -> list[str]:
    """What of the clips the numbers are of, where it is not all of each clip's middle."""
    lines = [f"the model was shown {shown[0]} only"] if len(shown) < len(recipe.modalities) else []
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
