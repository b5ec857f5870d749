"""Checks of the run folder: written by rank 0, seen by all, room for the checkpoints, nobody else's, fit to be resumed."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from contextlib import suppress
from pathlib import Path

import torch

from mavil import distributed
from mavil.atomic_files import unwritable
from mavil.commands.assemble import read_recipe, task_for
from mavil.commands.checks.findings import Findings, Odd
from mavil.commands.finished import num_steps
from mavil.commands.schedule import global_batch
from mavil.config import Recipe
from mavil.data.labels import Vocabulary
from mavil.engine.checkpoints.folder import read_manifest, step_of
from mavil.engine.checkpoints.reading import latest_checkpoint, load_checkpoint
from mavil.engine.run.folder import SEEN_SECONDS, compare
from mavil.engine.run.lock import owner_of
from mavil.recipe import dump_recipe
from mavil.structs import TrainState, UserError

CHECKPOINTS_MORE = 2
"""Beside those that are kept: one that is being written, and one that is being deleted or is the best."""
_GIB = 2**30


def check_model(found: Findings, recipe: Recipe, vocabulary: Vocabulary | None) -> int | None:
    """Build the model, with the weights it starts from and its teacher; the bytes of one checkpoint, if that works."""
    size = 0

    def build() -> str:
        nonlocal size
        task = task_for(recipe, vocabulary, torch.device("cpu"))
        everything = sum(parameter.numel() for parameter in task.model.parameters())
        trained = sum(parameter.numel() for parameter in task.model.parameters() if parameter.requires_grad)
        # float32 weights, perhaps their average, and two moments of what is trained.
        size = 4 * (everything * (2 if recipe.trainer.has_average else 1) + 2 * trained)
        text = f"{everything / 1e6:.1f} M parameters, {trained / 1e6:.1f} M trained" + _origins(recipe)
        unfinished = [remark for folder in _runs_needed(recipe) if (remark := _left_of(Path(folder))) is not None]
        if unfinished:
            raise Odd(f"{text}; {'; '.join(unfinished)}")
        return text

    is_good = found.once("model", build)
    folders = [Path(folder) for folder in _runs_needed(recipe)]
    if folders and distributed.world_size() > 1:
        found.everywhere("earlier runs", lambda: _all_there(folders))
    return distributed.broadcast_object(size) if is_good else None


def check_run(found: Findings, recipe: Recipe, run: Path, resume: bool, force: bool, ranks: int | None) -> None:
    """What depends on the run folder, except how much fits in; nothing is left behind there.

    ``ranks`` train together; ``None`` where the global batch does not divide among them.
    """
    if check_visible(found, run):
        found.once("other jobs", lambda: _nobody_else(run))
    found.once("resume", lambda: _resume(recipe, run, resume, force, ranks))


def check_visible(found: Findings, run: Path) -> bool:
    """Rank 0 can write to the folder, or make it, and every rank sees what it writes."""
    place = _existing(run)
    probe = place / f".mavil-check-{uuid.uuid4().hex}"

    def write() -> str:
        try:
            probe.touch(exist_ok=False)
        except OSError as error:
            raise unwritable(run, error) from None
        return str(run) if place == run else f"{run} can be made in {place}"

    name = distributed.broadcast_object(probe)
    is_good = found.once("run folder", write)
    if is_good and distributed.world_size() > 1:
        is_good = found.everywhere("seen by all", lambda: _see(name, run))
    distributed.barrier()
    if distributed.is_main():
        with suppress(OSError):  # it was not made
            probe.unlink()
    return is_good


def check_space(found: Findings, recipe: Recipe, run: Path, checkpoint_bytes: int) -> None:
    """Whether all checkpoints that exist at the same time fit on the disk of the run folder."""

    def room() -> str:
        held = sum(file.stat().st_size for file in (run / "checkpoints").rglob("*.pt") if not file.is_symlink())
        number = recipe.trainer.keep_checkpoints + CHECKPOINTS_MORE
        needed, free = number * checkpoint_bytes - held, shutil.disk_usage(_existing(run)).free
        text = f"{free / _GIB:.1f} GiB free, {checkpoint_bytes / _GIB:.2f} GiB per checkpoint"
        if needed > free:
            raise UserError(
                f"{run}: {text}, and there may be {number} at a time: make space, choose another disk with --out, or set "
                "trainer.keep_checkpoints lower"
            )
        return text

    found.once("space", room)


def check_same_batch(recipe: Recipe, state: TrainState, ranks: int | None = None) -> None:
    """A schedule counts steps: with another global batch it would not fit the samples that were seen.

    Raises:
        UserError: the steps of the run so far had another number of clips.
    """
    ranks = ranks or distributed.world_size()
    before, now = state.samples_seen // max(1, state.step), global_batch(recipe, ranks)
    if state.step and before != now:
        raise UserError(
            f"the run's steps had {before} clips over all ranks, with {ranks} ranks they would have {now}: set "
            f"trainer.global_batch={before}, or trainer.device_batch so that the product with ranks and trainer.accumulation "
            f"is {before} again"
        )


def _resume(recipe: Recipe, run: Path, resume: bool, force: bool, ranks: int | None) -> str:
    latest = latest_checkpoint(run)
    if latest is None and not (run / "config.yaml").exists():
        return "a new run"
    reached = latest.name if latest is not None else "no checkpoint yet"
    if not resume:
        raise UserError(f"{run} already holds a run ({reached}): pass --resume, or choose another folder with --out")
    if not (run / "config.yaml").exists():
        raise UserError(f"{run} holds checkpoints but no config.yaml: put it back, or choose another folder with --out")
    differing = compare(run, dump_recipe(recipe))
    if differing and not force:
        raise UserError(
            f"{run} was started with other settings: {'; '.join(differing)}. Resume it with its own, choose another folder "
            "with --out, or pass --force"
        )
    if latest is not None and ranks is not None:
        check_same_batch(recipe, load_checkpoint(latest).state, ranks)
    if differing:
        raise Odd(f"goes on from {reached} by force with other settings: {'; '.join(differing)}")
    return f"goes on from {reached}"


def _runs_needed(recipe: Recipe) -> list[str]:
    """Run folders that this recipe starts from."""
    teacher = getattr(recipe.task, "teacher", None)
    return [folder for folder in (recipe.task.weights, teacher.run if teacher else None) if folder is not None]


def _origins(recipe: Recipe) -> str:
    folders = _runs_needed(recipe)
    return f"; from {' and '.join(folders)}" if folders else ""


def _left_of(run: Path) -> str | None:
    """What a run that others start from has not done of its schedule; ``None`` if it has done all, or nobody can tell."""
    newest = latest_checkpoint(run)
    assert newest is not None  # its weights were just loaded
    try:
        total = num_steps(read_recipe(run, []), int(read_manifest(newest)["ranks"]))
    except UserError:  # a schedule in epochs, and its shards are gone
        return None
    reached = step_of(newest)
    return f"{run} is not finished, its newest checkpoint is of step {reached} of {total}" if reached < total else None


def _all_there(folders: list[Path]) -> str:
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder} is not there: put runs that others start from where every node sees them")
    return "there"


def _nobody_else(run: Path) -> str:
    owner = owner_of(run)
    if owner is not None:
        raise UserError(
            f"{run} is being written by {owner}: wait until it has finished, or choose another folder with --out"
        )
    return "none writes there"


def _see(probe: Path, run: Path) -> str:
    end = time.monotonic() + SEEN_SECONDS
    while True:
        try:
            os.listdir(
                probe.parent
            )  # a network file system may remember that a file was not there, a listing asks again
            if probe.exists():
                return "yes"
        except OSError:
            pass
        if time.monotonic() > end:
            raise UserError(
                f"{run}: this node does not see what rank 0 writes: choose a folder that all nodes share with --out"
            )
        time.sleep(0.2)


def _existing(run: Path) -> Path:
    """The folder, or the nearest above it that is there; it may turn out to be a file."""
    run = run.absolute()
    return next(folder for folder in (run, *run.parents) if folder.exists())
