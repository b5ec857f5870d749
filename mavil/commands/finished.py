"""Whether a run has nothing left to do for a recipe: what pipelines and ablations leave out when they are started again."""

from __future__ import annotations

from pathlib import Path

from mavil.commands.assemble import CONFIG_FILE
from mavil.commands.inputs import open_split
from mavil.commands.normalisation import complete_recipe
from mavil.commands.schedule import global_batch, samples_per_epoch
from mavil.config import Recipe
from mavil.engine.checkpoints.folder import read_manifest, step_of
from mavil.engine.checkpoints.reading import latest_checkpoint
from mavil.engine.evaluating import evaluation_of
from mavil.engine.run.folder import compare
from mavil.recipe import dump_recipe
from mavil.structs import UserError


def is_finished(run: Path, recipe: Recipe) -> bool:
    """Whether the newest checkpoint of ``run`` is the last step of ``recipe`` and its evaluation is there.

    Not where the run was made with other settings, or cannot be read: ``mavil train --resume`` then says why.
    """
    newest = latest_checkpoint(run)
    if newest is None or not (run / CONFIG_FILE).is_file():
        return False
    try:
        complete, _ = complete_recipe(recipe, None, run / CONFIG_FILE)
        if compare(run, dump_recipe(complete)):
            return False
        is_last = step_of(newest) >= num_steps(recipe, int(read_manifest(newest)["ranks"]))
    except UserError:
        return False
    return is_last and (recipe.data.evaluation is None or bool(evaluation_of(run, step_of(newest))))


def num_steps(recipe: Recipe, ranks: int) -> int:
    """Optimizer steps of the whole run; opens the training shards only to count epochs.

    Raises:
        UserError: the shards are not there, or the global batch does not divide among the ranks.
    """
    length = recipe.schedule.length
    num_clips = open_split(recipe, "train").index.num_clips if length.unit == "epochs" else 0
    return length.steps(samples_per_epoch(recipe, num_clips), global_batch(recipe, ranks))
