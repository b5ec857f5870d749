"""Checkpoints: everything a run needs to go on, and the weights other runs start from.

::

    runs/<name>/checkpoints/step_XXXXXXXX/
        state.pt        model, optimizer and, per rank, the training state, random generators and running averages
        weights.pt      the task's exported modules: {module: {parameter: tensor}}, without optimizer
        manifest.json   format, step, recipe, ranks, torch version; size and SHA-256 of the two files

A checkpoint is written into a hidden sibling folder, forced to disk file by file, and renamed at the end: a folder
without a leading dot is complete. What an interrupted save leaves behind is removed by the next one. Both files are read
with ``weights_only=True`` and only after size and checksum agree with the manifest.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from mavil import distributed
from mavil.engine.wording import first_names
from mavil.structs import TrainState, UserError

FORMAT = 1
"""Version of the layout above; a reader refuses any other."""


@dataclass
class Checkpoint:
    """What one rank needs to go on as if it had never stopped.

    ``random`` is :func:`mavil.engine.runtime.random_state`, ``None`` to begin anew; ``averages`` what was not logged yet.
    Every value must be plain (numbers, text, lists, dicts) or a tensor. ``source`` is the folder it was read from,
    ``positions`` the loaders' positions of all ranks that wrote it.
    """

    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    state: TrainState
    random: dict[str, Any] | None
    averages: dict[str, Any]
    source: Path | None = None
    positions: list[dict[str, Any]] | None = None


def save_checkpoint(run: Path, checkpoint: Checkpoint, modules: dict[str, nn.Module], keep: int) -> Path:
    """Write a checkpoint and delete all but the ``keep`` newest; called by every rank together, written by rank 0.

    Raises:
        TypeError: the loader's position or another part holds more than plain values and tensors.
        UserError: it could not be written, on every rank; earlier checkpoints are as they were.
    """
    target = run / "checkpoints" / f"step_{checkpoint.state.step:08d}"
    own = {"state": asdict(checkpoint.state), "random": checkpoint.random, "averages": checkpoint.averages}
    _check_plain(own, "checkpoint")
    ranks = distributed.gather_objects(own)
    problem = None
    if distributed.is_main():
        files = {
            "state.pt": {"model": checkpoint.model, "optimizer": checkpoint.optimizer, "ranks": ranks},
            "weights.pt": {name: module.state_dict() for name, module in modules.items()},
        }
        try:
            _write(target, files, _description(run, checkpoint.state.step))
            for old in checkpoints(run)[:-keep]:
                _retire(old)
        # torch.save reports a full disk as a RuntimeError.
        except (OSError, RuntimeError) as error:
            problem = f"{target}: the checkpoint could not be written ({error}); earlier checkpoints are untouched"
    problem = distributed.broadcast_object(problem)
    if problem is not None:
        raise UserError(problem)
    return target


def checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    found = [path for path in (run / "checkpoints").glob("step_*") if re.fullmatch(r"step_\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step_")))


def latest_checkpoint(run: Path) -> Path | None:
    """The newest complete checkpoint of a run, ``None`` where there is none yet."""
    found = checkpoints(run)
    return found[-1] if found else None


def load_checkpoint(path: Path) -> Checkpoint:
    """Read this rank's share of a checkpoint folder, on the CPU.

    A checkpoint of another number of ranks goes on too: its weights and optimizer are everybody's; random numbers and what
    was not logged yet begin anew, for they were each rank's own.

    Raises:
        UserError: damaged or of another format.
    """
    manifest = _read_manifest(path)
    content = _read(path, "state.pt", manifest)
    ranks = content["ranks"]
    positions = [rank["state"]["position"] for rank in ranks]
    is_same_world = len(ranks) == distributed.world_size()
    own = ranks[distributed.rank()] if is_same_world else {**ranks[0], "random": None, "averages": {}}
    return Checkpoint(
        model=content["model"],
        optimizer=content["optimizer"],
        state=TrainState(**own["state"]),
        random=own["random"],
        averages=own["averages"],
        source=path,
        positions=positions if all(position is not None for position in positions) else None,
    )


def load_weights(path: str | Path) -> dict[str, dict[str, Tensor]]:
    """The exported modules of a run's newest checkpoint, or of one checkpoint folder: ``{module: {parameter: tensor}}``.

    Raises:
        UserError: no such folder, no checkpoint in it, or a damaged one.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such run folder or checkpoint to take weights from")
    folder = path if (path / "manifest.json").exists() else latest_checkpoint(path)
    if folder is None:
        raise UserError(
            f"{path} holds no checkpoint: name a run that was trained, or one of its checkpoints/step_* folders"
        )
    weights: dict[str, dict[str, Tensor]] = _read(folder, "weights.pt", _read_manifest(folder))
    return weights


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


def write_text(path: Path, text: str) -> None:
    """Replace a small file so that at any moment either the old or the new content is there."""
    aside = path.with_name(f".{path.name}.partial")
    with open(aside, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def _check_plain(value: Any, path: str) -> None:
    """Find out now, not when the run is resumed, that ``torch.load(weights_only=True)`` would refuse a value."""
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_plain(inner, f"{path}.{key}")
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _check_plain(inner, f"{path}[]")
    elif type(value) not in (bool, int, float, str, type(None), Tensor):
        raise TypeError(f"{path} is a {type(value)}: only plain values and tensors can be saved in a checkpoint")


def _description(run: Path, step: int) -> dict[str, Any]:
    recipe = (run / "config.yaml").read_text() if (run / "config.yaml").exists() else ""
    return {
        "format": FORMAT,
        "step": step,
        "ranks": distributed.world_size(),
        "torch": torch.__version__,
        "recipe": {
            "name": (yaml.safe_load(recipe) or {}).get("name"),
            "sha256": hashlib.sha256(recipe.encode()).hexdigest(),
        },
    }


def _write(target: Path, files: dict[str, Any], description: dict[str, Any]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    for leftover in target.parent.glob(".step_*"):
        shutil.rmtree(leftover)
    hidden = target.with_name(f".{target.name}.partial")
    hidden.mkdir()
    entries = {}
    for name, content in files.items():
        with open(hidden / name, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        entries[name] = {"bytes": (hidden / name).stat().st_size, "sha256": _sha256(hidden / name)}
    write_text(hidden / "manifest.json", json.dumps(description | {"files": entries}, indent=2) + "\n")
    _sync_folder(hidden)
    if target.exists():
        _retire(target)
    os.rename(hidden, target)
    _sync_folder(target.parent)


def _retire(folder: Path) -> None:
    """Delete a checkpoint so that a half-deleted one is never taken for a complete one."""
    hidden = folder.with_name(f".{folder.name}.retired")
    os.rename(folder, hidden)
    shutil.rmtree(hidden)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((path / "manifest.json").read_text())
        version = manifest["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, "manifest.json", f"cannot be read: {error!r}") from None
    if version != FORMAT:
        raise UserError(
            f"{path} has checkpoint format {version}, this version reads format {FORMAT}: use the version that wrote it"
        )
    return manifest


def _read(path: Path, name: str, manifest: dict[str, Any]) -> Any:
    file, entry = path / name, manifest["files"][name]
    if not file.exists():
        raise _damaged(path, name, "is missing")
    if file.stat().st_size != entry["bytes"]:
        raise _damaged(path, name, f"has {file.stat().st_size} bytes instead of {entry['bytes']}")
    if _sha256(file) != entry["sha256"]:
        raise _damaged(path, name, "differs from the checksum in its manifest")
    return torch.load(file, map_location="cpu", weights_only=True)


def _damaged(path: Path, name: str, what: str) -> UserError:
    others = [other.name for other in checkpoints(path.parent.parent) if other != path]
    advice = (
        f"use another one by removing it ({', '.join(others)} remain)" if others else "no other one is left in this run"
    )
    return UserError(f"{path / name} {what}: this checkpoint is damaged; {advice}")
