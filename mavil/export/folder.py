"""An exported model: one folder with the encoders' weights, what they are, and a card for people.

::

    OUT/
        model.safetensors   every tensor under PART.NAME: audio_encoder, video_encoder, fusion, audio_projection, ...
        config.json         format, the recipe without local paths, names and shapes, size and SHA-256 of the weights, and
                            what is known of where they come from
        README.md           the card; see card.py

Decoders and heads stay in the run: nothing that embeds a clip needs them. A folder is written beside its place and renamed,
so it is whole or not there. Nothing in it is ever unpickled, and the weights are read only after their size and checksum
agree with ``config.json``.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError

from mavil.atomic_files import sha256_of, sync
from mavil.config import Recipe
from mavil.export.parts import Exported, check_finite, num_bytes, wanted_parts
from mavil.recipe import recipe_from_tree
from mavil.structs import UserError

__all__ = ["Exported", "is_export", "read_config", "read_export", "write_export"]

FORMAT, VERSION = "mavil-export", 1
"""A reader refuses any other version."""
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".pkl")
"""Endings of files that may hold a pickle; no export has one."""
DIGEST_PLACE = "WEIGHTS-SHA256-IS-WRITTEN-HERE"
"""In a card, where the checksum of the weights goes once they are written."""
LARGEST_CONFIG = 16 << 20
"""A ``config.json`` beyond these bytes is none of ours: names and shapes of a ViT-H pair take 0.2 MB."""
_REMEDY = "get the folder again or, if it was you, mavil.load it with allow_changed=True and save_pretrained it anew"
OWN_KEYS = ("model_type", "format", "version", "weights_bytes", "weights_sha256", "parts", "recipe", "recipe_sha256")
"""What this file puts into ``config.json``; everything else there is ``about``."""


def write_export(folder: str | Path, exported: Exported, card: str, replaces: bool = False) -> Path:
    """Write an exported folder and return its path; whatever fails, what was there before stays as it was.

    Args:
        folder: to make; an empty one may be there.
        exported: what to write.
        card: text of ``README.md``.
        replaces: also where an earlier export is; all of it goes.

    Raises:
        UserError: the folder holds something, a weight is not finite, or nothing can be written there.
    """
    target = Path(folder).resolve()
    check_place(folder, replaces)
    check_finite(exported.parts, str(folder))
    aside = target.with_name(f".{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        _write_files(aside, exported, card)
        _move(aside, target)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise UserError(
            f"{folder} cannot be written ({getattr(error, 'strerror', None) or error}): choose a folder you may write to, with "
            f"{num_bytes(exported) >> 20} MiB free"
        ) from None
    return Path(folder)


def read_export(folder: str | Path, allow_changed: bool = False) -> Exported:
    """Read an exported folder, on the CPU; only what agrees with its ``config.json`` is returned.

    Args:
        folder: the export.
        allow_changed: also other values of weights and another recipe than were exported; ``about`` then says ``changed``.

    Raises:
        UserError: not such a folder (a pickle, say), of another version, tampered with or damaged, a part is missing, or a
            weight is not finite.
    """
    folder = Path(folder)
    config = read_config(folder)
    recipe = _recipe_in(folder, config, allow_changed)
    change = _change_of(folder, config)
    if change is not None and not allow_changed:
        raise UserError(f"{folder / WEIGHTS} {change}: {_REMEDY}")
    try:
        tensors = safetensors.torch.load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{folder / WEIGHTS} cannot be read as safetensors: {error}; export the run again") from None
    held = {name: list(tensor.shape) for name, tensor in tensors.items()}
    promised = {f"{p}.{name}": shape for p, names in config["parts"].items() for name, shape in names.items()}
    if different := sorted(name for name in {*held, *promised} if held.get(name) != promised.get(name)):
        raise UserError(
            f"{folder / WEIGHTS}: {different[0]} is {held.get(different[0], 'not there')}, {CONFIG} says "
            f"{promised.get(different[0], 'nothing of it')}: not one export; get the whole folder again"
        )
    parts = {part: {name: tensors[f"{part}.{name}"] for name in names} for part, names in config["parts"].items()}
    if missing := [part for part in wanted_parts(recipe) if not parts.get(part)]:
        raise UserError(f"{folder} has no {missing[0]}, which its recipe needs: export the run again")
    check_finite(parts, str(folder))
    about = {key: value for key, value in config.items() if key not in OWN_KEYS}
    if change is not None or _digest_of(config["recipe"]) != config["recipe_sha256"]:
        about["changed"] = True
    return Exported(recipe, parts, about)


def is_export(folder: str | Path) -> bool:
    """Whether a folder says that it is an export; nothing else of it is looked at."""
    try:
        read_config(Path(folder))
    except UserError as error:
        return not isinstance(error, ForeignError)
    return True


class ForeignError(UserError):
    """A folder or file that is no export at all."""


def read_config(folder: Path) -> dict[str, Any]:
    """The ``config.json`` of an export.

    Raises:
        ForeignError: not an exported folder.
        UserError: of another version, or not as it was written.
    """
    if folder.is_file():
        what = "a pickle is never loaded as one" if folder.suffix in PICKLES else f"it is a folder with {CONFIG}"
        raise ForeignError(f"{folder} is a file and no export: {what}; make one with: mavil export RUN OUT")
    try:
        with open(folder / CONFIG, "rb") as file:
            text = file.read(LARGEST_CONFIG + 1)
    except OSError as error:
        raise ForeignError(
            f"{folder} is no export ({CONFIG}: {error.strerror}); make one with: mavil export RUN OUT"
        ) from None
    try:
        config = json.loads(text) if len(text) <= LARGEST_CONFIG else None
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ForeignError(
            f"{folder / CONFIG} is not of this project (no format {FORMAT}): name a folder of mavil export"
        )
    if config.get("version") != VERSION:
        raise UserError(
            f"{folder} has export version {config.get('version')!r}, this mavil reads {VERSION}: use the mavil that wrote it"
        )
    if not _is_complete(config):
        raise UserError(f"{folder / CONFIG} is not what mavil export wrote (an entry is missing or of another type)")
    return config


def _is_complete(config: Mapping[str, Any]) -> bool:
    parts = config.get("parts")
    return (
        isinstance(config.get("recipe"), dict)
        and isinstance(config.get("weights_bytes"), int)
        and all(isinstance(config.get(key), str) for key in ("weights_sha256", "recipe_sha256"))
        and isinstance(parts, dict)
        and all(isinstance(names, dict) for names in parts.values())
    )


def _recipe_in(folder: Path, config: Mapping[str, Any], allow_changed: bool) -> Recipe:
    if _digest_of(config["recipe"]) != config["recipe_sha256"] and not allow_changed:
        raise UserError(f"{folder / CONFIG}: its recipe was changed after the export (checksum): {_REMEDY}")
    recipe = recipe_from_tree(config["recipe"], str(folder / CONFIG))
    audio = recipe.audio
    if "audio" in recipe.modalities and audio is not None and (audio.mean is None or audio.std is None):
        raise UserError(f"{folder / CONFIG}: audio.mean and audio.std are missing: export the run again")
    return recipe


def _change_of(folder: Path, config: Mapping[str, Any]) -> str | None:
    """How the weights differ from those that were exported.

    Raises:
        UserError: they are not there, or cannot be read.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        pickles = sorted(other.name for other in folder.iterdir() if other.suffix in PICKLES)
        instead = f", and {pickles[0]} may be a pickle, which is never read" if pickles else ""
        raise UserError(f"{folder} has no {WEIGHTS}{instead}: get the whole folder again")
    try:
        size = path.stat().st_size
        if size != config["weights_bytes"]:
            return f"has {size} bytes instead of {config['weights_bytes']}, it was cut off or exchanged"
        digest = sha256_of(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from None
    if digest == config["weights_sha256"]:
        return None
    return (
        f"is not what was exported, it is damaged or was tampered with (SHA-256 {digest[:12]}... instead of "
        f"{config['weights_sha256'][:12]}...)"
    )


def check_place(folder: str | Path, replaces: bool) -> None:
    """Refuse a place where something is that must not go; before minutes of work.

    Raises:
        UserError: a file, a folder that is no export, or an export without ``replaces``.
    """
    shown, target = Path(folder), Path(folder).resolve()
    _put_back(target)
    if not target.exists():
        return
    if not target.is_dir():
        raise UserError(f"{shown} is a file: name a folder for the export")
    if not any(target.iterdir()):
        return
    if not is_export(target):
        raise UserError(f"{shown} holds something that is not an export: choose another folder")
    if not replaces:
        raise UserError(f"{shown} holds an export already: choose another folder, or replace it with --force")


def _write_files(folder: Path, exported: Exported, card: str) -> None:
    tensors = {f"{part}.{name}": tensor for part, names in exported.parts.items() for name, tensor in names.items()}
    # The one entry that transformers looks for; more would come in any order, and two exports of one run would differ.
    safetensors.torch.save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    digest = sha256_of(folder / WEIGHTS)
    tree = exported.recipe.model_dump(mode="json")
    config = {
        "model_type": "mavil",
        "format": FORMAT,
        "version": VERSION,
        "weights_bytes": (folder / WEIGHTS).stat().st_size,
        "weights_sha256": digest,
        "recipe_sha256": _digest_of(tree),
        **{key: value for key, value in exported.about.items() if key not in OWN_KEYS},
        "recipe": tree,
        "parts": {p: {name: list(t.shape) for name, t in names.items()} for p, names in exported.parts.items()},
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    (folder / CARD).write_text(card.replace(DIGEST_PLACE, digest), encoding="utf-8")
    os.chmod(folder / WEIGHTS, (folder / CONFIG).stat().st_mode)  # safetensors writes for its owner alone
    for name in (WEIGHTS, CONFIG, CARD):
        with open(folder / name, "rb") as file:
            os.fsync(file.fileno())
    sync(folder)


def _move(aside: Path, target: Path) -> None:
    """Rename; of two exports the old one waits under a hidden name until the new one has its place."""
    replaced = target.with_name(f".{target.name}.replaced")
    if target.is_dir() and any(target.iterdir()):
        os.rename(target, replaced)
    try:
        os.rename(aside, target)
    except OSError:
        _put_back(target)
        raise
    sync(target.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _put_back(target: Path) -> None:
    """Undo a replacement that was cut off between its two renames."""
    replaced = target.with_name(f".{target.name}.replaced")
    if replaced.is_dir() and not target.exists():
        os.rename(replaced, target)


def _digest_of(tree: Any) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()
