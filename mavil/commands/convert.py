"""``mavil convert``: a public checkpoint becomes a run folder, and a run a file in a public project's names."""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import safetensors.torch
import torch
import typer
from torch import Tensor

from mavil.atomic_files import write_text
from mavil.commands.assemble import CLASSES_FILE
from mavil.commands.conversion.importing import Imported, import_model
from mavil.commands.conversion.outgoing import TARGETS, outgoing
from mavil.data.labels import Vocabulary
from mavil.engine.checkpoints.reading import Checkpoint
from mavil.engine.checkpoints.saving import Saver, prefixes_of
from mavil.engine.run.folder import start_run
from mavil.engine.run.lock import holding
from mavil.recipe import dump_recipe
from mavil.structs import TrainState, UserError

Layout = Enum("Layout", {name: name for name in TARGETS}, type=str)  # type: ignore[misc]


def convert(
    source: Annotated[Path, typer.Argument(metavar="FROM", help="a public checkpoint file; with --to, a run folder")],
    target: Annotated[Path, typer.Argument(metavar="TO", help="the run folder to make; with --to, the file")],
    changes: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="settings the file does not tell")
    ] = None,
    to: Annotated[Layout | None, typer.Option(help="write a run in this project's names")] = None,
    checkpoint: Annotated[
        str, typer.Option(help="with --to, which one: newest, best (see trainer.best_metric) or a step")
    ] = "newest",
    classes: Annotated[
        Path | None, typer.Option(help="class names of a fine-tuned file, one per line in the order of its head")
    ] = None,
    allow_pickle: Annotated[
        bool, typer.Option(help="also files with other objects, read with placeholders: nothing of them runs")
    ] = False,
) -> None:
    """Make a run folder of a public checkpoint of Audio-MAE, MSM-MAE or MAE-AST; or write a run as such a file."""
    if to is not None:
        if changes or classes or allow_pickle:
            raise UserError("--to writes a run as it is: leave settings, --classes and --allow-pickle out")
        lines = write_file(source, target, to.value, checkpoint)
    elif source.is_dir():
        raise UserError(
            f"{source} is a folder: name a public checkpoint file, or add --to to write a run as one ({', '.join(TARGETS)})"
        )
    else:
        lines = make_run(source, target, changes or [], classes, allow_pickle)
    for line in lines:
        typer.echo(line)


def make_run(
    source: Path, run: Path, changes: list[str], classes: Path | None = None, allow_pickle: bool = False
) -> list[str]:
    """Write the run folder of a public checkpoint: its recipe, its weights as step 0, class names; return the remarks.

    A classifier whose class names nobody tells gets the numbers of its scores as names.

    Raises:
        UserError: the folder is not empty, ``classes`` has another number of names than the head, or as
            :func:`mavil.commands.conversion.importing.import_model`.
    """
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise UserError(f"{run} is there already and not empty: choose another folder for the run")
    found = import_model(source, changes, allow_pickle)
    names = _class_names(found, classes)
    with holding(run):
        start_run(run, dump_recipe(found.recipe), resume=False)
        if names:
            write_text(run / CLASSES_FILE, "".join(f"{name}\n" for name in names))
        saver = Saver(run, prefixes_of(found.model, found.model.parts()), keep=1)
        try:
            saver.save(Checkpoint(dict(found.model.state_dict()), {}, TrainState(), random=None, averages={}))
            problem = saver.settle()
        finally:
            saver.close()
    if problem is not None:
        raise UserError(problem)
    remarks = [] if classes or not names else [f"{CLASSES_FILE}: numbers, for the file has no names: see --classes"]
    return [*found.remarks, *remarks, f"{run}: written ({found.recipe.task.kind})"]


def write_file(run: Path, file: Path, to: str, which: str = "newest") -> list[str]:
    """Write a run's weights in a project's names, as torch's format or, by its ending, safetensors; return the remarks.

    Raises:
        UserError: the file is there already or cannot be written, or the project's model cannot be this one.
    """
    if not run.is_dir():
        raise UserError(f"{run}: no such run folder")
    if file.exists():
        raise UserError(f"{file} is there already: choose another name")
    found = outgoing(run, to, which)
    aside = file.with_name(f".{file.name}.partial")
    try:
        if file.suffix == ".safetensors":
            safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in found.state.items()}, aside)
        else:
            torch.save(_owned(found.content()), aside)
        os.replace(aside, file)
    except (OSError, RuntimeError) as error:
        aside.unlink(missing_ok=True)
        raise UserError(f"{file} cannot be written ({error}): choose another place") from error
    return [*found.remarks, f"{file}: {len(found.state)} tensors"]


def _class_names(found: Imported, classes: Path | None) -> tuple[str, ...]:
    if found.num_classes is None:
        if classes is not None:
            raise UserError(f"--classes {classes}: the checkpoint has no head; leave it out")
        return ()
    if classes is None:
        return tuple(str(number) for number in range(found.num_classes))
    names = Vocabulary.from_file(classes).classes
    if len(names) != found.num_classes:
        raise UserError(
            f"--classes {classes}: {len(names)} different names, but the head scores {found.num_classes} classes: give one "
            "per line, in its order"
        )
    return names


def _owned(value: Any) -> Any:
    """Tensors with memory of their own: torch.save writes whole storages, and these may be parts of larger ones."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    return {key: _owned(item) for key, item in value.items()} if isinstance(value, dict) else value
