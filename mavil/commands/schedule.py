"""How many clips a step has, how many steps a run, and the learning rate of each: from a recipe and the number of ranks."""

from __future__ import annotations

from pathlib import Path

from mavil import distributed
from mavil.config import Recipe
from mavil.data.shards.index import read_index
from mavil.engine.optim import DECAYS, scaled_learning_rate
from mavil.structs import UserError


def device_batch(recipe: Recipe, ranks: int | None = None) -> int:
    """Clips per rank and micro-step, with ``ranks`` processes, by default those of the process group.

    Raises:
        UserError: ``trainer.global_batch`` does not divide evenly among them.
    """
    settings = recipe.trainer
    if settings.global_batch is None:
        return settings.device_batch
    ranks = ranks or distributed.world_size()
    shares = ranks * settings.accumulation
    batch, rest = divmod(settings.global_batch, shares)
    if rest:
        raise UserError(_does_not_divide(settings.global_batch, ranks, settings.accumulation))
    return batch


def _does_not_divide(batch: int, ranks: int, accumulation: int) -> str:
    """For people: with the nearest numbers that would do."""
    shares = ranks * accumulation
    batches = [number for number in (batch // shares * shares, (batch // shares + 1) * shares) if number]
    fitting = [number for number in range(1, batch // accumulation + 1) if batch % (number * accumulation) == 0]
    nearest = sorted(sorted(fitting, key=lambda number: abs(number - ranks))[:3])
    others = f", {' or '.join(map(str, nearest))} rank(s)" if nearest else ""
    cut = f" x {accumulation} micro-steps" if accumulation > 1 else ""
    return (
        f"trainer.global_batch {batch} does not divide among {ranks} rank(s){cut}: take "
        f"trainer.global_batch={' or '.join(map(str, batches))}{others}, or another trainer.accumulation"
    )


def global_batch(recipe: Recipe, ranks: int | None = None) -> int:
    """Clips per optimizer step over ``ranks`` processes, by default those of the process group."""
    ranks = ranks or distributed.world_size()
    return device_batch(recipe, ranks) * recipe.trainer.accumulation * ranks


def samples_per_epoch(recipe: Recipe, num_clips: int) -> int:
    """Samples that one pass over ``num_clips`` training clips gives: clips or weighted draws, times views."""
    sampling = recipe.data.sampling
    return (sampling.draws if sampling else num_clips) * recipe.data.views_per_clip


def step_counts(recipe: Recipe, samples_per_epoch: int, ranks: int | None = None) -> tuple[int, int]:
    """Optimizer steps of the whole run and of its warm-up.

    Raises:
        UserError: the run would have no step.
    """
    batch = global_batch(recipe, ranks)
    total = recipe.schedule.length.steps(samples_per_epoch, batch)
    if total < 1:
        raise UserError(
            f"schedule.length {recipe.schedule.length} over {samples_per_epoch} clips is less than one step of "
            f"{batch} clips: make it longer or the batch smaller"
        )
    return total, min(recipe.schedule.warmup.steps(samples_per_epoch, batch), total)


def learning_rate(recipe: Recipe, step: int, total: int, warmup: int, ranks: int | None = None) -> float:
    """The applied learning rate of the update after ``step`` finished ones."""
    peak = scaled_learning_rate(recipe.optimizer.base_lr, global_batch(recipe, ranks))
    decay, minimum = DECAYS[recipe.schedule.decay], recipe.schedule.min_lr
    return decay(step, peak=peak, warmup_steps=warmup, total_steps=total, minimum=minimum)


def learning_rate_at(recipe: Recipe, assumed_samples: int, ranks: int) -> tuple[dict[str, float], list[str]]:
    """Learning rates at five points of the run, by step, and what had to be assumed to know them."""
    assumptions = []
    samples = assumed_samples
    if recipe.data.train and Path(recipe.data.train).is_dir():
        samples = samples_per_epoch(recipe, read_index(Path(recipe.data.train)).num_clips)
    elif "epochs" in (recipe.schedule.length.unit, recipe.schedule.warmup.unit):
        assumptions.append(f"{assumed_samples} clips per epoch (data.train is not there to count)")
    total, warmup = step_counts(recipe, samples, ranks)
    points = sorted({0, warmup // 2, warmup, (warmup + total) // 2, total - 1})
    return {f"step {step}": learning_rate(recipe, step, total, warmup, ranks) for step in points}, assumptions
