"""How many clips a step has, how many steps a run, and the learning rate of each: from a recipe and the number of ranks."""

from __future__ import annotations

from mavil import distributed
from mavil.commands.packing import known_shards
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


def mean_steps(recipe: Recipe, total: int, samples_per_epoch: int, ranks: int | None = None) -> tuple[int, int]:
    """In how many last steps of ``total`` weights are taken for ``trainer.mean_of_last``, and every how many.

    Raises:
        UserError: more than there are, or so few that only the last weights would be taken.
    """
    settings = recipe.trainer
    assert settings.mean_of_last is not None
    batch = global_batch(recipe, ranks)
    last = settings.mean_of_last.steps(samples_per_epoch, batch)
    every = max(1, settings.mean_every.steps(samples_per_epoch, batch))
    if last > total:
        raise UserError(
            f"trainer.mean_of_last={settings.mean_of_last} is {last} steps, but the training has {total}: make it shorter"
        )
    if last <= every:
        raise UserError(
            f"trainer.mean_of_last={settings.mean_of_last} is {last} steps and trainer.mean_every={settings.mean_every} is "
            f"{every}, so it would be the mean of the last weights alone: make mean_of_last longer or mean_every shorter"
        )
    return last, every


def learning_rate(recipe: Recipe, step: int, total: int, warmup: int, ranks: int | None = None) -> float:
    """The applied learning rate of the update after ``step`` finished ones."""
    peak = scaled_learning_rate(recipe.optimizer.base_lr, global_batch(recipe, ranks))
    decay, minimum = DECAYS[recipe.schedule.decay], recipe.schedule.min_lr
    return decay(step, peak=peak, warmup_steps=warmup, total_steps=total, minimum=minimum)


def learning_rate_at(recipe: Recipe, assumed_samples: int, ranks: int) -> tuple[dict[str, float], list[str]]:
    """Learning rates at five points of the run, by step, and what had to be assumed to know them."""
    assumptions = []
    samples = assumed_samples
    folder = known_shards(recipe.data.train) if recipe.data.train else None
    if folder is not None:
        samples = samples_per_epoch(recipe, read_index(folder).num_clips)
    elif "epochs" in (recipe.schedule.length.unit, recipe.schedule.warmup.unit):
        assumptions.append(f"{assumed_samples} clips per epoch (data.train is not there to count)")
    total, warmup = step_counts(recipe, samples, ranks)
    points = sorted({0, warmup // 2, warmup, (warmup + total) // 2, total - 1})
    return {f"step {step}": learning_rate(recipe, step, total, warmup, ranks) for step in points}, assumptions
