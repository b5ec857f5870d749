"""Checkpoints: everything a run needs to go on, and the weights other runs start from.

::

    runs/<name>/checkpoints/
        step_XXXXXXXX/
            model.pt        every weight, by name
            averaged.pt     their moving average, by the same names, where the run keeps one
            optimizer.pt    the optimizer's state by parameter name
            ranks.pt        per rank: training state, random generators, running averages; the loss scale
            manifest.json   format, step, ranks, versions, commit, the recipe; which names each exported module has; size
                            and SHA-256 of the files, and its own
        best -> step_XXXXXXXX, best.json       the best evaluation so far; see best.py
        .step_XXXXXXXX.damaged                 one that could not be read, put aside; damage.txt says why

Weights exist once: an exported module is the names with its prefix in ``averaged.pt``, or ``model.pt`` where there is none.
A checkpoint is written into a hidden sibling folder, forced to disk file by file, and renamed at the end: a folder without a
leading dot is complete. Its files are read with ``weights_only=True`` and only after size and checksum agree with the
manifest. saving.py writes; this file reads.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mavil import distributed
from mavil.atomic_files import write_text
from mavil.distributed.on_main import on_main
from mavil.engine.checkpoints.folder import (
    AVERAGED,
    MANIFEST,
    MODEL,
    OPTIMIZER,
    RANKS,
    DamagedError,
    check_files,
    checkpoints,
    folder_of,
    read_file,
    read_manifest,
    step_of,
)
from mavil.engine.wording import first_names
from mavil.structs import TrainState, UserError

logger = logging.getLogger(__name__)

DAMAGE = "damage.txt"
"""In a checkpoint that was put aside: what is wrong with it."""


@dataclass
class Checkpoint:
    """What one rank needs to go on as if it had never stopped.

    Attributes:
        model: the complete weights by the plain model's names; when saving, ranks above 0 may leave it empty.
        optimizer: its state by parameter name, complete tensors; when saving, ranks above 0 may leave it empty.
        state: where the run is.
        random: :func:`mavil.engine.process.runtime.random_state`, ``None`` to begin anew.
        averages: what was not logged yet.
        averaged: moving average of the weights, by the names of ``model``; empty without one.
        loss_scale: of fp16 training.
        source: the folder it was read from.
        positions: the loaders' positions of all ranks that wrote it.
        remarks: what the run's log should say about how it was found.

    Every value must be plain (numbers, text, lists, dicts) or a tensor. Tensors that were read lie in the files: copy them.
    """

    model: dict[str, Tensor]
    optimizer: dict[str, dict[str, Tensor]]
    state: TrainState
    random: dict[str, Any] | None
    averages: dict[str, Any]
    averaged: dict[str, Tensor] = field(default_factory=dict)
    loss_scale: dict[str, float] | None = None
    source: Path | None = None
    positions: list[dict[str, Any]] | None = None
    remarks: list[str] = field(default_factory=list)


def latest_checkpoint(run: Path) -> Path | None:
    """The newest complete checkpoint of a run, damaged or not; ``None`` where there is none yet."""
    found = checkpoints(run)
    return found[-1] if found else None


def load_checkpoint(path: Path) -> Checkpoint:
    """Read this rank's share of a checkpoint folder, on the CPU.

    A checkpoint of another number of ranks goes on too: its weights and optimizer are everybody's; random numbers and what
    was not logged yet begin anew, for they were each rank's own.

    Raises:
        UserError: damaged or of another format.
    """
    check_files(path, read_manifest(path))
    return _read(path)


def newest_checkpoint(run: Path) -> Checkpoint | None:
    """The checkpoint a run goes on from, ``None`` where it has none yet; called by every rank together.

    Rank 0 looks for the newest that is whole. Newer ones that are damaged are put aside under a hidden name, logged as a
    warning, and named in ``remarks``: they are never chosen again, and their steps can be saved again. Call it where no other
    job can write to the run (:func:`mavil.engine.run.lock.holding`).

    Raises:
        UserError: every checkpoint is damaged (nothing is put aside then: the run must not begin anew unnoticed), one has
            another format, or a rank cannot read it; on every rank.
    """
    name, remarks = on_main(lambda: _choose(run))
    if name is None:
        return None
    checkpoint, problem = None, None
    try:
        checkpoint = _read(run / "checkpoints" / name)
    except UserError as error:
        problem = f"rank {distributed.rank()}: {error}"
    problems = [found for found in distributed.gather_objects(problem) if found is not None]
    if problems or checkpoint is None:
        raise UserError(
            f"{problems[0]} (seen by {len(problems)} of {distributed.world_size()} ranks; rank 0 found it whole)"
        )
    checkpoint.remarks = remarks
    return checkpoint


def load_weights(path: str | Path, which: str = "newest") -> dict[str, dict[str, Tensor]]:
    """The exported modules of a run's checkpoint, or of one checkpoint folder: ``{module: {parameter: tensor}}``.

    ``which`` is ``newest``, ``best`` (by the metric the run was told to keep the best of) or a step. Where the run keeps a
    moving average of its weights, that is what is exported.

    Raises:
        UserError: no such folder, no such checkpoint in it, or a damaged one.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such run folder or checkpoint to take weights from")
    folder = _named(path, which)
    try:
        return _exported(folder)
    except DamagedError:
        # A run that is still training may just have deleted it.
        if folder.exists():
            raise
    return _exported(_named(path, which))


def load_state(module: nn.Module, state: dict[str, Tensor], source: str | Path) -> None:
    """Copy ``state`` into ``module``; names and shapes must agree exactly, and nothing is copied unless they do.

    Raises:
        UserError: they do not; the message names the first differing parameters with both shapes.
    """
    own = module.state_dict()
    shapes = [
        f"{name} is {tuple(state[name].shape)}, expected {tuple(value.shape)}"
        for name, value in own.items()
        if name in state and state[name].shape != value.shape
    ]
    problems = {
        "of another shape": shapes,
        "missing": [name for name in own if name not in state],
        "unknown here": [name for name in state if name not in own],
    }
    found = [f"{len(names)} {kind}: {first_names(names)}" for kind, names in problems.items() if names]
    if found:
        raise UserError(
            f"{source} does not fit this model; {'; '.join(found)}. Use the recipe these weights were trained with"
        )
    module.load_state_dict(state)


def replaced_name(target: Path) -> Path:
    """Where a checkpoint waits while another one of the same step takes its name."""
    return target.with_name(f".{target.name}.replaced")


def put_back(run: Path) -> None:
    """Undo a replacement that was cut off between its two renames, when neither of the two had the name."""
    for hidden in (run / "checkpoints").glob(".step_*.replaced"):
        target = hidden.with_name(hidden.name.removeprefix(".").removesuffix(".replaced"))
        if not target.exists():
            os.rename(hidden, target)


def _choose(run: Path) -> tuple[str | None, list[str]]:
    """Name of the newest whole checkpoint (rank 0), and what is to be told about it."""
    put_back(run)
    damaged: list[tuple[Path, str]] = []
    for folder in reversed(checkpoints(run)):
        try:
            manifest = read_manifest(folder)
            check_files(folder, manifest)
            for name in manifest["files"]:
                read_file(folder, name, manifest)
        except DamagedError as error:
            damaged.append((folder, error.reason))
            continue
        return folder.name, [_put_aside(other, reason, folder) for other, reason in damaged]
    if damaged:
        found = "; ".join(f"{folder.name}/{reason}" for folder, reason in damaged)
        raise UserError(
            f"{run}: every checkpoint is damaged ({found}): restore one from a copy, or start anew in another folder with --out"
        )
    return None, []


def _put_aside(folder: Path, reason: str, instead: Path) -> str:
    hidden, count = folder.with_name(f".{folder.name}.damaged"), 1
    while hidden.exists():
        count += 1
        hidden = folder.with_name(f".{folder.name}.damaged{count}")
    where = f"it is kept as {hidden}"
    try:
        os.rename(folder, hidden)
        write_text(hidden / DAMAGE, reason + "\n")
    except OSError as error:
        where = f"it could not be put aside completely ({error})"
    remark = f"{folder}/{reason}: this checkpoint is damaged, {where}; going on from {instead.name}"
    logger.warning("%s", remark)
    return remark


def _read(path: Path) -> Checkpoint:
    """This rank's share of a checkpoint whose checksums were compared."""
    manifest = read_manifest(path)
    content = read_file(path, RANKS, manifest)
    ranks = content["ranks"]
    positions = [rank["state"]["position"] for rank in ranks]
    is_same_world = len(ranks) == distributed.world_size()
    own = ranks[distributed.rank()] if is_same_world else {**ranks[0], "random": None, "averages": {}}
    return Checkpoint(
        model=read_file(path, MODEL, manifest),
        optimizer=read_file(path, OPTIMIZER, manifest),
        state=TrainState(**own["state"]),
        random=own["random"],
        averages=own["averages"],
        averaged=read_file(path, AVERAGED, manifest) if AVERAGED in manifest["files"] else {},
        loss_scale=content["loss_scale"],
        source=path,
        positions=positions if all(position is not None for position in positions) else None,
    )


def _exported(folder: Path) -> dict[str, dict[str, Tensor]]:
    manifest = read_manifest(folder)
    name = AVERAGED if AVERAGED in manifest["files"] else MODEL
    check_files(folder, manifest, name)
    weights = read_file(folder, name, manifest)
    return {
        module: {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
        for module, prefix in manifest["modules"].items()
    }


def _named(path: Path, which: str) -> Path:
    if (path / MANIFEST).exists():
        if which != "newest":
            raise UserError(f"{path} is one checkpoint, so {which!r} cannot be chosen in it: name the run folder")
        return path
    found = checkpoints(path)
    if not found:
        raise UserError(
            f"{path} holds no checkpoint: name a run that was trained, or one of its checkpoints/step_* folders"
        )
    if which == "newest":
        return found[-1]
    if which == "best":
        best = path / "checkpoints" / "best"
        if not best.is_dir():
            raise UserError(f"{path} has no best checkpoint: set trainer.best_metric, or name a step")
        return best.resolve()
    steps = [step_of(folder) for folder in found]
    if not which.isdecimal() or int(which) not in steps:
        raise UserError(
            f"{path} has no checkpoint {which!r}: choose newest, best or a step of {first_names([str(s) for s in steps])}"
        )
    return folder_of(path, int(which))
