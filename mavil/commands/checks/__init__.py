"""``mavil train --check``: everything that would go wrong, found without training; and what every start looks at."""

from __future__ import annotations

from pathlib import Path

import torch
import typer
from rich.console import Console

from mavil import distributed
from mavil.commands.assemble import CONFIG_FILE
from mavil.commands.checks.batch import refuse_on_ranks
from mavil.commands.checks.findings import Findings
from mavil.commands.checks.machine import check_machines, differing_precisions
from mavil.commands.checks.run import check_model, check_run, check_space, check_visible
from mavil.commands.checks.shards import check_shards, differing_shards
from mavil.commands.schedule import device_batch
from mavil.config import Recipe
from mavil.structs import UserError


def check_recipe(recipe: Recipe, run: Path, *, resume: bool, force: bool, ranks: int | None, console: Console) -> None:
    """Tell line by line what training would need and whether it is there; collective, rank 0 prints.

    Args:
        recipe: to be trained.
        run: its folder, which is not made.
        resume, force: as training would be told.
        ranks: assume so many, in one process, whose machines are not looked at; ``None``: those that run this.
        console: of rank 0.

    Raises:
        UserError: something is wrong; on rank 0, after all checks.
        typer.Exit: on the other ranks, with the same exit code 2.
    """
    found = Findings(console)
    # Over gloo, whatever the device: nothing is computed, and ranks that are not alike must still be able to say so.
    with distributed.process_group(torch.device("cpu"), compares=False):
        if ranks is not None and distributed.world_size() > 1:
            raise UserError(f"--ranks {ranks}: there are {distributed.world_size()} ranks already; leave it out")
        divides = check_machines(found, recipe, ranks)
        num_ranks = (ranks or distributed.world_size()) if divides else None
        clips = check_shards(found, recipe, run / CONFIG_FILE if resume else None, num_ranks)
        if clips is None:
            found.skip("model", "it depends on the training shards and their labels")
            size = None
        else:
            size = check_model(found, clips.recipe, clips.vocabulary)
        check_run(found, clips.recipe if clips else recipe, run, resume, force, num_ranks)
        if size is not None:
            check_space(found, recipe, run, size)
        is_main = distributed.is_main()
    if not found.problems:
        return
    if is_main:
        raise UserError(f"{len(found.problems)} check(s) failed; nothing was trained")
    raise typer.Exit(2)


def check_start(recipe: Recipe, run: Path, device: torch.device) -> None:
    """What every start of training looks at before anything large is made; collective.

    That the ranks themselves are alike was found when they met (:func:`mavil.distributed.process_group`).

    Raises:
        UserError: on every rank, with everything that is wrong: the batch does not divide or leaves a contrastive loss nothing
            to compare, the nodes have different shards, the devices would compute in different formats, or the run folder
            cannot be written or is not seen by all.
    """
    device_batch(recipe)  # raises the same on every rank, and so does the next
    refuse_on_ranks(recipe, distributed.world_size())
    found = Findings(Console(quiet=True))
    for split in ("train", "evaluation"):
        problem = differing_shards(recipe, split)
        if problem is not None:
            found.problems.append(problem)
    problem = differing_precisions(recipe, device)
    if problem is not None:
        found.problems.append(problem)
    check_visible(found, run)
    if found.problems:
        raise UserError("; ".join(found.problems))
