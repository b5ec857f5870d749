"""The predictions of a fine-tuned run on every clip of its evaluation data: each modality alone and both, once decoded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mavil
from mavil import distributed
from mavil.commands.assemble import CLASSES_FILE, task_for
from mavil.commands.fitting import check_evaluation_labels
from mavil.commands.inputs import loader_for, prepare_for
from mavil.config import ClassifyTask, Recipe
from mavil.data.labels import Vocabulary
from mavil.data.prepare import prepared
from mavil.engine.checkpoints.folder import step_of
from mavil.engine.checkpoints.reading import latest_checkpoint, load_weights
from mavil.engine.process.runtime import choose_device, settle
from mavil.evaluation.predict import Collected
from mavil.evaluation.predictions import Predictions
from mavil.models.weights import load_parts
from mavil.recipe import change_recipe
from mavil.structs import Modality, UserError
from mavil.tasks.classify import JUDGED, TARGETS, Classification

ONE_WINDOW = ", one window"
"""Ends the name of scores from the middle of each clip, where others are averaged over several windows."""


def predict_run(run: Path, recipe: Recipe, which: str, modalities: Sequence[Modality]) -> Predictions:
    """Run a checkpoint of the fine-tuned ``run`` over ``recipe.data.evaluation``; the same answer on every rank.

    The model is shown each of ``modalities`` alone and, where there are two, both; a clip is decoded once for that. With
    ``data.evaluation_windows`` above 1 and a clip long enough for more than one, the middle window is scored in a second pass.

    Raises:
        UserError: no clip has a label, a label is not the run's, no clip can be used, or a score is not finite.
    """
    assert isinstance(recipe.task, ClassifyTask)
    device = choose_device(recipe.trainer.device)
    settle(device, recipe.trainer.num_threads)
    vocabulary = Vocabulary.from_file(run / CLASSES_FILE)
    check_evaluation_labels(recipe, vocabulary)
    # The checkpoint holds the whole model; what the run itself started from need not exist any more.
    task = task_for(change_recipe(recipe, "task.weights=null"), vocabulary, device)
    assert isinstance(task, Classification)
    load_parts(task.export_modules(), load_weights(run, which), str(run))
    task.model.eval()
    collected, counts, size = _pass(task, recipe, vocabulary, device, modalities)
    scores, targets = _scores(collected), collected.values[TARGETS]
    keys, lost = collected.keys, 0
    if counts["samples"] > len(collected):
        alone, _, _ = _pass(task, change_recipe(recipe, "data.evaluation_windows=1"), vocabulary, device, modalities)
        scores, targets, keys = _side_by_side(collected, alone)
        lost = max(len(collected), len(alone)) - len(keys)
    if not keys or all(bool(values.isnan().all()) for values in scores.values()):
        raise UserError(f"{recipe.data.evaluation}: no clip has {' or '.join(modalities)}: use other data")
    left_out = {name.removeprefix("skipped_"): n for name, n in sorted(counts.items()) if name.startswith("skipped_")}
    facts: dict[str, Any] = {
        "run": str(run),
        "checkpoint": which,
        "step": _step(run, which),
        "data": recipe.data.evaluation,
        "modalities": list(modalities),
        "evaluation_windows": recipe.data.evaluation_windows,
        "num_windows": counts["samples"],
        "num_clips": len(keys),
        "clips_in_data": size,
        "left_out": left_out | ({"not_in_both_passes": lost} if lost else {}),
        "without": {name: missing for name, values in scores.items() if (missing := int(values.isnan().all(1).sum()))},
        "loss": recipe.task.loss,
        "seed": recipe.seed,
        "mavil": mavil.__version__,
    }
    return Predictions(keys, vocabulary.classes, targets, task.multi_label, scores, facts)


def shown_sets(modalities: Sequence[Modality]) -> list[tuple[Modality, ...]]:
    """Each modality alone, then both."""
    return [chosen for size in range(1, len(modalities) + 1) for chosen in combinations(modalities, size)]


def _pass(
    task: Classification,
    recipe: Recipe,
    vocabulary: Vocabulary,
    device: torch.device,
    modalities: Sequence[Modality],
) -> tuple[Collected, Counter[str], int]:
    """Rows of all clips, the counts of all ranks' loaders, and how many clips the data have."""
    loader = loader_for(recipe, "evaluation", vocabulary, training=False, modalities=modalities)
    batches = prepared(loader, prepare_for(recipe, device, training=False), device)
    try:
        collected = task.predict(batches, shown_sets(modalities))
    finally:
        loader.close()
    counts: Counter[str] = Counter()
    for own in distributed.gather_objects(loader.counts):
        counts.update(own)
    return collected, counts, loader.num_clips


def _scores(collected: Collected) -> dict[str, Tensor]:
    """Logits by what was shown, NaN for a clip that has nothing of it.

    Raises:
        UserError: a score of another clip is not finite.
    """
    found: dict[str, Tensor] = {}
    for name in (n for n in collected.values if f"{n}{JUDGED}" in collected.values):
        is_judged = collected.values[f"{name}{JUDGED}"].bool()
        bad = int((~collected.values[name][is_judged].isfinite()).any(dim=1).sum())
        if bad:
            raise UserError(
                f"the scores of {bad} of {len(collected)} clips are not finite: the model has diverged, evaluate an earlier "
                "checkpoint"
            )
        found[name] = collected.values[name].masked_fill(~is_judged[:, None], torch.nan)
    return {name: found[name] for name in sorted(found, key=lambda name: ("+" in name, name))}


def _side_by_side(averaged: Collected, alone: Collected) -> tuple[dict[str, Tensor], Tensor, list[str]]:
    """Scores, targets and keys of the clips that both passes have: where one of several windows fails, the middle may not."""
    keys = sorted(set(averaged.keys) & set(alone.keys))
    places = [{key: row for row, key in enumerate(part.keys)} for part in (averaged, alone)]
    rows = [[place[key] for key in keys] for place in places]
    scores = {name: values[rows[0]] for name, values in _scores(averaged).items()}
    scores |= {f"{name}{ONE_WINDOW}": values[rows[1]] for name, values in _scores(alone).items()}
    return scores, averaged.values[TARGETS][rows[0]], keys


def _step(run: Path, which: str) -> int:
    """The step of the checkpoint that ``which`` names; it is there, or its weights would not have been loaded."""
    if which == "newest":
        newest = latest_checkpoint(run)
        assert newest is not None
        return step_of(newest)
    return step_of((run / "checkpoints" / "best").resolve()) if which == "best" else int(which)
