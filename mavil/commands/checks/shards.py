"""Checks of the clips: shards on every node, a clip of each split decoded, enough of them, labels, statistics, steps."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from mavil import distributed
from mavil.commands.checks.findings import Findings, Odd
from mavil.commands.fitting import check_evaluation_labels, fit_modalities
from mavil.commands.inputs import loader_for, open_split, prepare_for, shards_of, vocabulary_for
from mavil.commands.normalisation import audio_statistics, complete_recipe
from mavil.commands.packing import is_media, with_packed_clips
from mavil.commands.schedule import (
    device_batch,
    global_batch,
    learning_rate,
    mean_steps,
    samples_per_epoch,
    step_counts,
)
from mavil.config import Duration, Recipe
from mavil.data.labels import Vocabulary
from mavil.data.shards.index import ShardIndex
from mavil.data.stream.addresses import kind_of
from mavil.distributed.members import listed
from mavil.recipe import change_recipe
from mavil.structs import UserError

SPOT_CHECKS = 64
"""Shards of a folder whose size each rank looks up; other ranks look at others. All of them would be a load on a file system
that a thousand ranks share, and ``mavil shards check`` does that and more."""


class Clips(NamedTuple):
    """What the shards gave: the recipe with their statistics, and their classes."""

    recipe: Recipe
    vocabulary: Vocabulary | None


def check_shards(found: Findings, recipe: Recipe, run_config: Path | None, ranks: int | None) -> Clips | None:
    """What depends on the shards; ``None`` if they cannot be used.

    Args:
        found: collects what is wrong.
        recipe: to be trained.
        run_config: of a run to resume.
        ranks: that train together; ``None`` where the global batch does not divide among them.
    """
    splits = ["train"] + (["evaluation"] if recipe.data.evaluation is not None else [])
    if any(location is not None and is_media(location) for location in (recipe.data.train, recipe.data.evaluation)):
        packed = _pack(found, recipe)
        if packed is None:
            return None
        recipe = packed
    usable = [split for split in splits if _check_split(found, recipe, split)]
    if "evaluation" not in splits:
        found.skip("evaluation", "data.evaluation is not set: the run is not evaluated")
    if "train" not in usable:
        return None
    index = open_split(recipe, "train").index
    completed = recipe

    def statistics() -> str:
        nonlocal completed
        completed, origin = complete_recipe(fit_modalities(recipe, index, []), index, run_config)
        if origin is None:
            return "no sound"
        mean, std = audio_statistics(completed)
        text = f"log-mel mean {mean:.4f}, deviation {std:.4f}: {origin}"
        if origin.startswith("AudioSet's"):  # nobody's measurement of these shards
            raise Odd(text)
        return text

    vocabulary: Vocabulary | None = None

    def labels() -> str:
        nonlocal vocabulary
        vocabulary = vocabulary_for(recipe)
        if vocabulary is None:
            return "none needed"
        if "evaluation" in usable:
            check_evaluation_labels(recipe, vocabulary)
        return f"{len(vocabulary)} classes"

    is_good = found.everywhere("statistics", statistics)
    is_good = found.everywhere("labels", labels) and is_good
    if ranks is not None:
        found.once("steps", lambda: _steps(recipe, index, ranks))
    if not is_good:
        return None
    for split in usable:
        found.everywhere(f"a clip ({split})", _decoding(completed, split, vocabulary))
    return Clips(completed, vocabulary)


def _pack(found: Findings, recipe: Recipe) -> Recipe | None:
    """The recipe with shards in place of lists and folders of media; ``None`` if they cannot be packed."""
    packed = recipe

    def pack() -> str:
        nonlocal packed
        remarks: list[str] = []
        packed = with_packed_clips(recipe, remarks)
        return "; ".join(remarks)

    return packed if found.everywhere("clips as files", pack) else None


def differing_shards(recipe: Recipe, split: str) -> str | None:
    """Why the ranks do not read the same shards of a local split, for people, each node named; collective.

    A rank that cannot read them at all tells why; the shards at an address are the same for all.
    """
    location = getattr(recipe.data, split)
    if location is None or kind_of(location) != "folder":
        return None
    problem, checksum = None, ""
    try:
        checksum = _checksum(_looked_at(recipe, split))
    except (UserError, OSError) as error:
        problem = str(error)
    answers = distributed.gather_objects((distributed.here().node, problem, checksum))
    problems = {text: [node for node, other, _ in answers if other == text] for _, text, _ in answers if text}
    told = [
        text if len(nodes) == len(answers) else f"{listed(list(dict.fromkeys(nodes)))}: {text}"
        for text, nodes in problems.items()
    ]
    by_checksum: dict[str, list[str]] = {}
    for node, other, checksum in answers:
        if other is None:
            by_checksum.setdefault(checksum, []).append(node)
    if len(by_checksum) > 1:
        groups = sorted(by_checksum.values(), key=len)
        sides = " and ".join(listed(list(dict.fromkeys(nodes))) for nodes in groups)
        told.append(f"{location} holds other shards on {sides}: copy the same ones to every node")
    return "; ".join(told) or None


def _check_split(found: Findings, recipe: Recipe, split: str) -> bool:
    topic = f"shards ({split})"
    if getattr(recipe.data, split) is None:
        found.wrong(topic, f"data.{split} is not set: name a folder of shards, e.g. data.{split}=shards/mine")
        return False
    problem = differing_shards(recipe, split)
    if problem is not None:
        found.wrong(topic, problem)
        return False

    def describe() -> str:
        index = open_split(recipe, split).index
        return f"{shards_of(recipe, split)}: {index.num_clips} clips in {len(index.shards)} shards"

    return found.everywhere(topic, describe)


def _looked_at(recipe: Recipe, split: str) -> ShardIndex:
    """The index of a local split, some of whose shards were found to be as large as it says."""
    index = open_split(recipe, split).index
    chosen = random.Random(distributed.rank()).sample(index.shards, min(SPOT_CHECKS, len(index.shards)))
    wrong = [shard.name for shard in chosen if (index.folder / shard.name).stat().st_size != shard.bytes]
    if wrong:
        raise UserError(
            f"{index.folder}: {len(wrong)} of {len(chosen)} shards looked at do not have the size that its index says, "
            f"e.g. {wrong[0]}: copy them again, then run mavil shards check"
        )
    return index


def _checksum(index: ShardIndex) -> str:
    tree = {**asdict(index), "folder": None}
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def _decoding(recipe: Recipe, split: str, vocabulary: Vocabulary | None) -> Callable[[], str]:
    def decode() -> str:
        alone = change_recipe(recipe, "data.num_workers=0", "trainer.global_batch=null", "trainer.device_batch=1")
        batch = next(iter(loader_for(alone, split, vocabulary, training=False)), None)
        if batch is None:
            return "this rank has none"
        prepare_for(alone, batch.seeds.device, training=split == "train")(batch)
        return f"decoded by {recipe.data.backend}"

    return decode


def _steps(recipe: Recipe, index: ShardIndex, ranks: int) -> str:
    """How long the run is, told in everything that follows from the recipe and the number of clips."""
    if index.num_clips < device_batch(recipe, ranks) * ranks:
        raise UserError(
            f"{recipe.data.train}: {index.num_clips} clips are fewer than one training batch of "
            f"{device_batch(recipe, ranks) * ranks} (over all ranks): set trainer.device_batch smaller or pack more clips"
        )
    samples = samples_per_epoch(recipe, index.num_clips)
    total, warmup = step_counts(recipe, samples, ranks)
    if recipe.trainer.mean_of_last is not None:
        mean_steps(recipe, total, samples, ranks)
    batch = global_batch(recipe, ranks)

    def every(length: Duration | None, what: str) -> str:
        if length is None:
            return f"1 {what}"
        interval = max(1, length.steps(samples, batch))
        return f"{-(-total // interval)} {what}s, every {interval} steps"

    minutes = recipe.trainer.checkpoint_minutes
    text = (
        f"{total} steps ({total * batch / samples:.3g} epochs of {samples} samples), warm-up {warmup}, learning rate up to "
        f"{learning_rate(recipe, min(warmup, total - 1), total, warmup, ranks):.3g}; "
        f"{every(recipe.trainer.checkpoint_every, 'checkpoint')}"
        + (f" and every {minutes:g} min" if minutes is not None else "")
        + f", {recipe.trainer.keep_checkpoints} kept"
        + (f"; {every(recipe.trainer.evaluate_every, 'evaluation')}" if recipe.data.evaluation else "")
    )
    if recipe.schedule.warmup.steps(samples, batch) >= total:
        raise Odd(f"{text}; the warm-up of {recipe.schedule.warmup} takes the whole run")
    if recipe.trainer.best_metric is not None and recipe.data.evaluation is None:
        raise UserError(
            "trainer.best_metric needs evaluations, but data.evaluation is not set: set it, or best_metric=null"
        )
    return text
