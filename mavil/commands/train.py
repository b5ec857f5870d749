"""``mavil train RECIPE``: pre-training, fine-tuning and linear probes, all through one trainer."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from mavil import distributed
from mavil.commands.assemble import (
    CLASSES_FILE,
    CONFIG_FILE,
    evaluation_inputs,
    global_batch,
    learning_rate,
    loader_for,
    open_split,
    prepare_for,
    read_recipe,
    step_counts,
    task_for,
    vocabulary_for,
)
from mavil.commands.normalisation import audio_statistics, complete_recipe
from mavil.config import Duration, Recipe
from mavil.data.labels import Vocabulary
from mavil.data.loading.loader import Loader
from mavil.engine.checkpoint import Checkpoint, load_checkpoint, write_text
from mavil.engine.optim import build_optimizer
from mavil.engine.run_folder import start_run
from mavil.engine.runtime import choose_device, choose_precision, log_to, record_environment, seed_everything, settle
from mavil.engine.tracker import Tracker
from mavil.engine.trainer import Trainer
from mavil.recipe import dump_recipe
from mavil.structs import Inputs, UserError
from mavil.tasks.base import Task

logger = logging.getLogger(__name__)


def train_recipe(recipe: Recipe, run: Path, resume: bool, console: Console) -> dict[str, float]:
    """Carry a recipe out in the folder ``run``; return the last evaluation's metrics (empty without evaluation shards).

    What can be wrong with the recipe, the data or the weights is found before the run folder is made.
    """
    device = choose_device(recipe.trainer.device)
    with distributed.process_group(device):
        settle(device, recipe.trainer.num_threads)
        shards = open_split(recipe, "train").index
        recipe, origin = complete_recipe(recipe, shards, run / CONFIG_FILE if resume else None)
        vocabulary = vocabulary_for(recipe)
        loader = loader_for(recipe, "train", vocabulary, training=True)
        if recipe.data.evaluation is not None:
            open_split(recipe, "evaluation")
        total, warmup = step_counts(recipe, loader.samples_per_epoch)
        seed_everything(recipe.seed)  # before the model is built: every rank builds the same one
        task = task_for(recipe, vocabulary, device)
        newest = start_run(run, dump_recipe(recipe), resume)
        checkpoint = load_checkpoint(newest) if newest else None
        if checkpoint:
            _check_same_batch(recipe, checkpoint)
            loader = loader_for(recipe, "train", vocabulary, training=True, places=checkpoint.positions)
        if distributed.is_main() and vocabulary is not None:
            write_text(run / CLASSES_FILE, "\n".join(vocabulary.classes) + "\n")
        record_environment(run, device)
        resumed_step = checkpoint.state.step if checkpoint else 0
        tracker = Tracker(run, total, console, resumed_step, lambda: loader.counts)
        with log_to(run, console), tracker:
            if origin is not None:
                logger.info("log-mel mean %.4f, deviation %.4f: %s", *audio_statistics(recipe), origin)
            trainer = _build_trainer(recipe, run, task, loader, tracker, vocabulary, device, total, warmup)
            seed_everything(recipe.seed, distributed.rank())  # ranks drop different paths
            if checkpoint:
                trainer.restore(checkpoint)
            return trainer.fit()


def _check_same_batch(recipe: Recipe, checkpoint: Checkpoint) -> None:
    """A schedule counts steps: with another global batch it would not fit the samples that were seen."""
    before, now = checkpoint.state.samples_seen // max(1, checkpoint.state.step), global_batch(recipe)
    if checkpoint.state.step and before != now:
        raise UserError(
            f"the run's steps had {before} clips over all ranks, with {distributed.world_size()} ranks they would have {now}: "
            f"set trainer.device_batch so that the product with ranks and trainer.accumulation is {before} again"
        )


def _build_trainer(
    recipe: Recipe,
    run: Path,
    task: Task,
    loader: Loader,
    tracker: Tracker,
    vocabulary: Vocabulary | None,
    device: torch.device,
    total: int,
    warmup: int,
) -> Trainer:
    settings = recipe.trainer
    groups = task.parameter_groups(recipe.optimizer.weight_decay, recipe.optimizer.layer_decay)

    def evaluation() -> Iterator[Inputs]:
        return evaluation_inputs(recipe, "evaluation", vocabulary, device)

    def steps(length: Duration | None) -> int | None:
        return max(1, length.steps(loader.samples_per_epoch, global_batch(recipe))) if length else None

    return Trainer(
        task=task,
        batches=loader,
        prepare=prepare_for(recipe, device, training=True),
        optimizer=build_optimizer(groups, recipe.optimizer.betas, task.model),
        learning_rate=lambda step: learning_rate(recipe, step, total, warmup),
        num_steps=total,
        run=run,
        tracker=tracker,
        device=device,
        precision=choose_precision(settings.precision, device),
        accumulation=settings.accumulation,
        clip_norm=recipe.optimizer.clip_norm,
        log_every=settings.log_every,
        checkpoint_every=steps(settings.checkpoint_every),
        keep_checkpoints=settings.keep_checkpoints,
        evaluate_every=steps(settings.evaluate_every),
        evaluation=evaluation if recipe.data.evaluation is not None else None,
    )


def train(
    recipe_path: Annotated[Path, typer.Argument(metavar="RECIPE", help="a YAML from configs/ or one of your own")],
    changes: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="settings to change, e.g. data.train=shards/mine"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="run folder; default: runs/<name of the recipe>")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the run in that folder where it stopped")] = False,
) -> None:
    """Train a recipe: pre-training, fine-tuning or a linear probe."""
    recipe = read_recipe(recipe_path, changes or [])
    train_recipe(recipe, out or Path("runs") / recipe.name, resume, Console())
