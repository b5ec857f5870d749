"""``mavil train RECIPE``: pre-training, fine-tuning and linear probes, all through one trainer."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from mavil import distributed
from mavil.atomic_files import write_text
from mavil.commands.assemble import CLASSES_FILE, CONFIG_FILE, read_recipe, task_for
from mavil.commands.checks import check_recipe, check_start
from mavil.commands.checks.run import check_same_batch
from mavil.commands.fitting import check_evaluation_labels, check_same_classes, fit_modalities
from mavil.commands.inputs import loader_for, open_split, vocabulary_for
from mavil.commands.normalisation import audio_statistics, complete_recipe
from mavil.commands.packing import with_packed_clips
from mavil.commands.schedule import mean_steps, step_counts
from mavil.commands.training import build_trainer
from mavil.config import Recipe
from mavil.data.loading.loader import Loader
from mavil.data.loading.stacks import stacks_of_workers
from mavil.engine.checkpoints.reading import Checkpoint, newest_checkpoint
from mavil.engine.metrics.loggers import open_loggers
from mavil.engine.metrics.tracker import Tracker
from mavil.engine.process.runtime import choose_device, log_to, record_environment, seed_everything, settle
from mavil.engine.process.stopping import StopRequest, stop_on_signals
from mavil.engine.process.watchdog import Watchdog
from mavil.engine.run.folder import start_run
from mavil.engine.run.lock import holding
from mavil.recipe import dump_recipe
from mavil.structs import UserError

logger = logging.getLogger(__name__)


def train_recipe(recipe: Recipe, run: Path, resume: bool, console: Console, force: bool = False) -> dict[str, float]:
    """Carry a recipe out in the folder ``run``; return the last evaluation's metrics (empty without evaluation shards).

    What can be wrong with the recipe, the data or the weights is found before the run folder is made. ``force`` resumes
    although settings differ.
    """
    device = choose_device(recipe.trainer.device)
    with stop_on_signals() as request, _group(recipe, device, request):
        # A function of its own: what talks to other ranks must be gone when the group is left.
        return _train(recipe, run, resume, console, force, device, request)


def _train(
    recipe: Recipe, run: Path, resume: bool, console: Console, force: bool, device: torch.device, request: StopRequest
) -> dict[str, float]:
    settle(device, recipe.trainer.num_threads, recipe.trainer.deterministic)
    remarks: list[str] = []
    recipe = with_packed_clips(recipe, remarks)
    check_start(recipe, run, device)
    shards = open_split(recipe, "train").index
    recipe = fit_modalities(recipe, shards, remarks)
    recipe, origin = complete_recipe(recipe, shards, run / CONFIG_FILE if resume else None)
    vocabulary = vocabulary_for(recipe)
    loader = loader_for(recipe, "train", vocabulary, training=True)
    if resume:
        check_same_classes(run, vocabulary)
    if recipe.data.evaluation is None:
        remarks.append("data.evaluation is not set: nothing is evaluated")
    else:
        open_split(recipe, "evaluation")
        check_evaluation_labels(recipe, vocabulary)
    total, _ = step_counts(recipe, loader.samples_per_epoch)
    if recipe.trainer.mean_of_last is not None:
        mean_steps(recipe, total, loader.samples_per_epoch)  # its mistakes are told before the folder is taken
    seed_everything(recipe.seed)  # before the model is built: every rank builds the same one
    task = task_for(recipe, vocabulary, device, remarks)
    with holding(run):
        start_run(run, dump_recipe(recipe), resume, force)
        checkpoint = newest_checkpoint(run)
        if checkpoint:
            check_same_batch(recipe, checkpoint.state)
            loader = loader_for(recipe, "train", vocabulary, training=True, places=checkpoint.positions)
        if distributed.is_main() and vocabulary is not None:
            write_text(run / CLASSES_FILE, "\n".join(vocabulary.classes) + "\n")
        record_environment(run, device)
        request.leave_if_made()
        with ExitStack() as around:
            around.enter_context(log_to(run, console))
            if origin is not None:
                logger.info("log-mel mean %.4f, deviation %.4f: %s", *audio_statistics(recipe), origin)
            for remark in checkpoint.remarks if checkpoint else []:
                logger.warning("%s", remark)
            for remark in remarks if not checkpoint else []:
                logger.info("%s", remark)
            tracker = around.enter_context(_tracker(recipe, run, total, console, loader, checkpoint))
            watchdog = around.enter_context(Watchdog(run, recipe.trainer.hang_minutes, stacks_of_workers))
            trainer = build_trainer(
                recipe, run, task, loader, tracker, vocabulary, device, request, watchdog, checkpoint
            )
            around.callback(trainer.saver.close)
            around.callback(loader.close)
            return trainer.fit()


def _group(recipe: Recipe, device: torch.device, request: StopRequest) -> AbstractContextManager[None]:
    """The process group, entered by every rank."""
    minutes = recipe.trainer.hang_minutes
    # An exchange that hangs is the watchdog's to report, with stacks; it must come first.
    timeout = None if minutes is None else 2 * minutes + 5
    return distributed.process_group(device, timeout, look_up=request.leave_if_made)


def _tracker(
    recipe: Recipe, run: Path, total: int, console: Console, loader: Loader, checkpoint: Checkpoint | None
) -> Tracker:
    loggers = open_loggers(recipe.trainer.loggers, run, recipe.model_dump(mode="json"))
    step = checkpoint.state.step if checkpoint else 0
    return Tracker(run, total, console, step, lambda: loader.counts, loggers)


def train(
    recipe_path: Annotated[Path, typer.Argument(metavar="RECIPE", help="a YAML from configs/ or one of your own")],
    changes: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="settings to change, e.g. data.train=shards/mine"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="run folder; default: runs/<name of the recipe>")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the run in that folder where it stopped")] = False,
    force: Annotated[bool, typer.Option("--force", help="with --resume: also with other settings than before")] = False,
    check: Annotated[bool, typer.Option("--check", help="find out what would go wrong, and train nothing")] = False,
    ranks: Annotated[
        int | None, typer.Option(min=1, help="with --check: as many ranks as the run will have, on another machine")
    ] = None,
) -> None:
    """Train a recipe: pre-training, fine-tuning or a linear probe."""
    if force and not resume:
        raise UserError("--force goes with --resume: it continues a run although settings differ")
    if ranks is not None and not check:
        raise UserError(f"--ranks {ranks} goes with --check: a run takes as many ranks as processes were started")
    recipe = read_recipe(recipe_path, changes or [])
    run = out or Path("runs") / recipe.name
    if check:
        check_recipe(recipe, run, resume=resume, force=force, ranks=ranks, console=Console())
    else:
        train_recipe(recipe, run, resume, Console(), force)
