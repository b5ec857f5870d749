"""From a recipe to a trainer: the order in which its parts must be made stands here and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from mavil.commands.inputs import evaluation_inputs, prepare_for
from mavil.commands.schedule import global_batch, learning_rate, mean_steps, step_counts
from mavil.config import Duration, Recipe
from mavil.data.labels import Vocabulary
from mavil.data.loading.loader import Loader
from mavil.distributed import rank
from mavil.engine.blocks import check_compiler, checkpoint_activations, compile_blocks
from mavil.engine.checkpoints.reading import Checkpoint, load_state
from mavil.engine.checkpoints.saving import Saver, prefixes_of
from mavil.engine.evaluating import Evaluator
from mavil.engine.health import Health
from mavil.engine.metrics.tracker import Tracker
from mavil.engine.parallel import Parallel, parallelise
from mavil.engine.precision import choose_precision
from mavil.engine.process.runtime import seed_everything
from mavil.engine.process.stopping import StopRequest
from mavil.engine.process.watchdog import Watchdog
from mavil.engine.stand_in import StandIn
from mavil.engine.trainer import Intervals, Trainer
from mavil.engine.update import Updater
from mavil.engine.weight_average import MeanOfLast, WeightAverage
from mavil.structs import Inputs
from mavil.tasks.base import Monitored, Task


def build_trainer(
    recipe: Recipe,
    run: Path,
    task: Task,
    loader: Loader,
    tracker: Tracker,
    vocabulary: Vocabulary | None,
    device: torch.device,
    request: StopRequest,
    watchdog: Watchdog,
    checkpoint: Checkpoint | None,
) -> Trainer:
    """The trainer of a run, at its start or where ``checkpoint`` was saved.

    Raises:
        UserError: the checkpoint belongs to another model, or the device cannot do what the recipe asks for.
    """
    settings = recipe.trainer
    if checkpoint is not None:
        # Before the model is cut over ranks: every kind of parallelism begins with complete weights.
        load_state(task.model, checkpoint.model, checkpoint.source or "the checkpoint")
    saver = Saver(run, prefixes_of(task.model, task.export_modules()), settings.keep_checkpoints)
    parallel = _parallel(recipe, task, device)
    total, warmup = step_counts(recipe, loader.samples_per_epoch)

    def evaluation() -> Iterator[Inputs]:
        return evaluation_inputs(recipe, "evaluation", vocabulary, device)

    trainer = Trainer(
        updater=Updater(
            task=task,
            parallel=parallel,
            prepare=prepare_for(recipe, device, training=True),
            device=device,
            precision=choose_precision(settings.precision, device),
            accumulation=settings.accumulation,
            is_cached=_is_cached(recipe, task),
            clip_norm=recipe.optimizer.clip_norm,
            average=_average(recipe, parallel, total, loader.samples_per_epoch),
            reads_late=device.type == "cuda",
            term_gradients_every=_steps(recipe, settings.term_gradients_every, loader.samples_per_epoch),
        ),
        batches=loader,
        learning_rate=lambda step: learning_rate(recipe, step, total, warmup),
        num_steps=total,
        run=run,
        tracker=tracker,
        saver=saver,
        request=request,
        watchdog=watchdog,
        intervals=_intervals(recipe, loader.samples_per_epoch),
        evaluator=Evaluator(evaluation, settings.best_metric, settings.best_is) if recipe.data.evaluation else None,
        health=Health(
            task.collapse_limits() if isinstance(task, Monitored) else {}, warmup, stops=settings.on_collapse == "stop"
        ),
    )
    seed_everything(recipe.seed, rank())  # ranks drop different paths
    if checkpoint is not None:
        trainer.restore(checkpoint)
    return trainer


def _is_cached(recipe: Recipe, task: Task) -> bool:
    settings = recipe.trainer
    couples_clips = getattr(task, "couples_clips", False)  # only tasks that can be cut know the word
    return bool(settings.accumulation > 1 and settings.accumulation_negatives == "cached" and couples_clips)


def _parallel(recipe: Recipe, task: Task, device: torch.device) -> Parallel:
    settings, optimizer = recipe.trainer, recipe.optimizer
    model = task.model.to(device)
    if settings.compile:
        check_compiler(device)
        compile_blocks(model)  # first: what is computed again is then the compiled block
    checkpoint_activations(model, settings.activation_checkpointing)
    return parallelise(
        settings.parallel,
        model,
        lambda: task.parameter_groups(optimizer.weight_decay, optimizer.layer_decay),
        optimizer.betas,
        device,
        optimizer.eps,
    )


def _average(recipe: Recipe, parallel: Parallel, total: int, samples_per_epoch: int) -> StandIn | None:
    """What is evaluated and exported in place of the weights.

    Raises:
        UserError: a mean of the last weights that is longer than the training, or of the last step's alone.
    """
    settings = recipe.trainer
    if settings.ema_decay is not None:
        return WeightAverage(parallel, settings.ema_decay)
    if settings.mean_of_last is None:
        return None
    return MeanOfLast(parallel, total, *mean_steps(recipe, total, samples_per_epoch))


def _intervals(recipe: Recipe, samples_per_epoch: int) -> Intervals:
    settings = recipe.trainer
    return Intervals(
        log=settings.log_every,
        save=_steps(recipe, settings.checkpoint_every, samples_per_epoch),
        save_minutes=settings.checkpoint_minutes,
        evaluate=_steps(recipe, settings.evaluate_every, samples_per_epoch),
    )


def _steps(recipe: Recipe, length: Duration | None, samples_per_epoch: int) -> int | None:
    """At least one, or ``None`` where nothing is set."""
    return max(1, length.steps(samples_per_epoch, global_batch(recipe))) if length else None
