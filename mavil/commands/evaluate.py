"""``mavil evaluate RUN``: the task's own metrics on a folder of shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from mavil import distributed
from mavil.commands.assemble import CLASSES_FILE, evaluation_inputs, read_recipe, task_for
from mavil.config import ClassifyTask, Recipe
from mavil.data.labels import Vocabulary
from mavil.engine.checkpoints.reading import load_weights
from mavil.engine.process.runtime import choose_device, settle
from mavil.engine.run.atomic_files import write_text
from mavil.models.weights import load_parts
from mavil.recipe import change_recipe
from mavil.structs import UserError

RESULT_FILE = "evaluation.json"


def evaluate_run(run: Path, recipe: Recipe, which: str = "newest") -> dict[str, float]:
    """Evaluate a checkpoint of ``run`` (newest, best or a step) on ``recipe.data.evaluation``; the same numbers on every rank."""
    device = choose_device(recipe.trainer.device)
    settle(device, recipe.trainer.num_threads)
    vocabulary = Vocabulary.from_file(run / CLASSES_FILE) if isinstance(recipe.task, ClassifyTask) else None
    # The checkpoint holds the whole model; what the run itself started from need not exist any more (a teacher must).
    task = task_for(change_recipe(recipe, "task.weights=null"), vocabulary, device)
    load_parts(task.export_modules(), load_weights(run, which), str(run))
    task.model.eval()
    return task.evaluate(evaluation_inputs(recipe, "evaluation", vocabulary, device))


def evaluate(
    run: Annotated[Path, typer.Argument(help="run folder of any task")],
    changes: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="settings to change")] = None,
    shards: Annotated[
        str | None, typer.Option(help="shards to evaluate on; default: the run's data.evaluation")
    ] = None,
    checkpoint: Annotated[
        str, typer.Option(help="which one: newest, best (see trainer.best_metric) or a step")
    ] = "newest",
) -> None:
    """Evaluate a run; print the metrics and write RUN/evaluation.json."""
    if not run.is_dir():
        raise UserError(f"{run}: no such run folder")
    where = [f"data.evaluation={shards}"] if shards else []
    recipe = read_recipe(run, [*(changes or []), *where])
    with distributed.process_group(choose_device(recipe.trainer.device)):
        metrics = evaluate_run(run, recipe, checkpoint)
        if not distributed.is_main():
            return
        write_text(
            run / RESULT_FILE,
            json.dumps({"shards": recipe.data.evaluation, "checkpoint": checkpoint, **metrics}, indent=2) + "\n",
        )
        table = Table("metric", "value", title=f"{run} on {recipe.data.evaluation}", title_justify="left")
        for name, value in metrics.items():
            table.add_row(name, f"{value:.4g}")
        Console().print(table)
