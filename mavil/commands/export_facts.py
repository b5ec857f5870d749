"""What is known of a run when it is exported: its weights without decoders and heads, its data, starts and results."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path, PurePosixPath
from typing import Any

import mavil
from mavil.commands.assemble import CONFIG_FILE, read_recipe
from mavil.commands.evaluate_results import FOLDER, METRICS
from mavil.commands.normalisation import audio_statistics
from mavil.commands.packing import known_shards
from mavil.commands.retrieve_results import RESULT_FILE
from mavil.config import PretrainTask, Recipe
from mavil.data.shards.index import read_index
from mavil.engine.checkpoints.folder import AVERAGED, folder_of, read_manifest
from mavil.engine.checkpoints.reading import latest_checkpoint, load_weights
from mavil.engine.process.code_version import commit
from mavil.export.parts import Exported, encoders_of, portable_recipe
from mavil.models.weights import LAYOUTS
from mavil.structs import UserError

ENVIRONMENT, LOG = "environment.json", "log.rank0.txt"
CSV = "metrics.csv"


def exported_run(run: Path, which: str = "newest", licence: str | None = None) -> Exported:
    """The encoders of a run's checkpoint with all that its card says; see :mod:`mavil.export.card` for the entries.

    Args:
        run: folder of a pre-training or fine-tuning run.
        which: newest, best or a step; where the run keeps averaged weights, those.
        licence: the owner's choice, as the Hub writes it.

    Raises:
        UserError: not a run, no such checkpoint, or its recipe lacks log-mel statistics.
    """
    if not (run / CONFIG_FILE).is_file():
        what = "a file: make a run of it first, with mavil convert" if run.is_file() else f"no run (no {CONFIG_FILE})"
        raise UserError(f"{run} is {what}")
    recipe = read_recipe(run, [])
    if "audio" in recipe.modalities:
        audio_statistics(recipe)
    folder = _checkpoint(run, which)
    # By its own folder where there is one: the run may be training, and newest another one in a moment.
    weights = load_weights(run, which) if folder is None else load_weights(folder)
    folder = folder or _checkpoint(run, which)
    assert folder is not None  # its weights were just read
    manifest = read_manifest(folder)
    return Exported(
        portable_recipe(recipe),
        encoders_of(recipe, weights, str(run)),
        {
            "name": recipe.name,
            "run": run.resolve().name,
            "checkpoint": which,
            "step": int(manifest["step"]),
            "averaged": AVERAGED in manifest["files"],
            "mavil_version": mavil.__version__,
            "commit": commit(),
            "data": {"train": _data(recipe.data.train), "evaluation": _data(recipe.data.evaluation)},
            "starts": starts_of(run, recipe, int(manifest["step"])),
            "licence": licence,
            "evaluation": _evaluation(run),
            "retrieval": _retrieval(run),
            "command": f"mavil export {run.name} OUT --checkpoint {which}"
            + (f" --licence {licence}" if licence else ""),
        },
    )


def starts_of(run: Path, recipe: Recipe, step: int | None = None) -> list[dict[str, Any]] | None:
    """Runs and files that a run's weights come from, also those of its earlier runs; ``None`` where nothing is recorded.

    Teachers count: what they learned is passed on. Entries are ``{"kind": "run", "name", "role", "found", "data"}`` and
    ``{"kind": "file", "name", "role", "layout"}``.
    """
    if not (run / ENVIRONMENT).is_file():
        # mavil convert leaves no record of a training, and names the run after the layout of its file.
        is_converted = recipe.name in LAYOUTS and step in (0, None)
        file = {"kind": "file", "name": "a public checkpoint", "role": "everything", "layout": recipe.name}
        return [file] if is_converted else None
    found: list[dict[str, Any]] = []
    waiting, seen = [(run, recipe)], {run.resolve()}
    while waiting:
        one, its = waiting.pop(0)
        found += _files_of(one, its)
        for role, folder in _runs_of(its):
            if folder.resolve() in seen:
                continue
            seen.add(folder.resolve())
            earlier = _recipe_of(folder)
            data = _data(earlier.data.train) if earlier else None
            found.append({"kind": "run", "name": folder.name, "role": role, "found": earlier is not None, "data": data})
            if earlier is None:
                continue
            if (folder / ENVIRONMENT).is_file():
                waiting.append((folder, earlier))
            else:
                found += starts_of(folder, earlier) or [found.pop() | {"found": False}]
    return found


def _runs_of(recipe: Recipe) -> list[tuple[str, Path]]:
    named = [("weights", recipe.task.weights)]
    if isinstance(recipe.task, PretrainTask) and recipe.task.teacher is not None:
        named.append(("teacher", recipe.task.teacher.run))
    return [(role, Path(folder)) for role, folder in named if folder]


def _files_of(run: Path, recipe: Recipe) -> list[dict[str, Any]]:
    start = recipe.task.start
    named = [(role, path) for role in ("audio", "video", "model") if (path := getattr(start, role))]
    try:
        log = (run / LOG).read_text(encoding="utf-8", errors="replace") if named else ""
    except OSError:
        log = ""
    return [
        {"kind": "file", "name": Path(path).name, "role": role, "layout": _layout_told(log, path)}
        for role, path in named
    ]


def _layout_told(log: str, path: str) -> str | None:
    """What the run's log says the file was: ``audio_encoder: 150 of 150 tensors from PATH (Audio-MAE)``."""
    told = re.search(rf"tensors from {re.escape(path)} \(([^)]*)\)", log)
    names = {text.partition(" (")[0]: layout for layout, text in LAYOUTS.items()}
    return names.get(told.group(1)) if told else None


def _recipe_of(folder: Path) -> Recipe | None:
    try:
        return read_recipe(folder, []) if (folder / CONFIG_FILE).is_file() else None
    except UserError:
        return None


def _checkpoint(run: Path, which: str) -> Path | None:
    """The folder that ``which`` names, if it is there."""
    if which == "newest":
        return latest_checkpoint(run)
    if which == "best":
        best = (run / "checkpoints" / "best").resolve()
        return best if best.is_dir() else None
    folder = folder_of(run, int(which)) if which.isdecimal() else None
    return folder if folder is not None and folder.is_dir() else None


def _data(location: str | None) -> dict[str, Any] | None:
    """Name of a set of clips (the last two parts of its place, no more leaves this machine) and their number."""
    if location is None:
        return None
    name = "/".join(PurePosixPath(re.sub(r"[?#].*", "", location)).parts[-2:]).strip("/")
    try:
        shards = known_shards(location)
        return {"name": name, "clips": read_index(shards, shards_are_here=False).num_clips if shards else None}
    except (UserError, OSError):
        return {"name": name, "clips": None}


def _evaluation(run: Path) -> dict[str, Any] | None:
    """The run's own evaluation: its facts, and one row per metric."""
    facts = _json(run / FOLDER / METRICS)
    if not isinstance(facts, dict):
        return None
    data = _data(str(facts["data"])) if facts.get("data") else None
    kept = {key: facts.get(key) for key in ("checkpoint", "step", "num_clips", "clips_in_data", "evaluation_windows")}
    rows: list[dict[str, Any]] = []
    try:
        with open(run / FOLDER / CSV, encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                numbers = {name: float(row[name]) if row.get(name) else None for name in ("value", "low", "high")}
                rows.append({"shown": row["shown"], "metric": row["metric"], **numbers})
    except (OSError, KeyError, ValueError):
        rows = []
    # What a second list of labels gave has its own protocol: the run's folder has it.
    kept["overlap"] = _seen(facts)
    return {**kept, "data": data["name"] if data else None, "rows": [r for r in rows if "/" not in r["metric"]]}


def _retrieval(run: Path) -> dict[str, Any] | None:
    """The run's retrieval: by gallery and direction the numbers as they were written."""
    stored = _json(run / RESULT_FILE)
    if not isinstance(stored, dict) or not isinstance(stored.get("retrieval"), dict):
        return None
    data = _data(str(stored["data"])) if stored.get("data") else None
    galleries = {
        str(gallery): {str(way): numbers for way, numbers in ways.items() if isinstance(numbers, dict)}
        for gallery, ways in stored["retrieval"].items()
        if isinstance(ways, dict)
    }
    kept = {key: stored.get(key) for key in ("checkpoint", "protocol", "evaluation_windows")}
    return {**kept, "data": data["name"] if data else None, "overlap": _seen(stored), "galleries": galleries}


def _seen(facts: dict[str, Any]) -> dict[str, Any] | None:
    """How many evaluation clips the run was trained on, as far as that was compared; names of clips stay here."""
    found = facts.get("overlap")
    return (
        {key: value for key, value in found.items() if key.startswith(("num_", "not_"))}
        if isinstance(found, dict)
        else None
    )


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
