"""Where a model may come from - a run, an export, a public checkpoint, the Hub - and what of it is read."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn

from torch import Tensor

from mavil.commands.assemble import CONFIG_FILE, read_recipe
from mavil.commands.conversion.importing import imported
from mavil.commands.starting import grids_of
from mavil.config import Recipe
from mavil.engine.checkpoints.reading import load_weights
from mavil.export.folder import CONFIG, WEIGHTS, is_export, read_export
from mavil.export.parts import Exported
from mavil.models.weights.parts import Grids
from mavil.recipe import change_recipe
from mavil.structs import UserError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
FILE_ENDINGS = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
_KINDS = "give a run folder, a folder of mavil export, a public checkpoint file, or a Hub id owner/name"


@dataclass(frozen=True)
class OpenedModel:
    """Recipe and weights of a model, on the CPU.

    Attributes:
        recipe: complete, with whatever changes were asked for.
        parts: tensors by part and name, as ``load_parts`` takes them.
        grids: how the weights' input is cut and how the recipe's, by modality.
        source: what it was opened by.
        exported: reads it again for an export, with what its card says.
    """

    recipe: Recipe
    parts: dict[str, dict[str, Tensor]]
    grids: Grids
    source: str
    exported: Callable[[], Exported]


def open_model(
    source: str | Path,
    checkpoint: str = "newest",
    changes: Sequence[str] = (),
    allow_pickle: bool = False,
    allow_changed: bool = False,
) -> OpenedModel:
    """Read a model.

    Args:
        source: a run folder, of pre-training or of a classifier; a folder of ``mavil export``, or its weights file; another
            project's checkpoint file; or ``owner/name`` on the Hugging Face Hub, perhaps with ``@revision``.
        checkpoint: of a run: newest, best or a step.
        changes: ``key.path=value`` for the recipe.
        allow_pickle: of a checkpoint file, see :func:`mavil.models.weights.read_file`; nothing else is ever unpickled.
        allow_changed: of an export, see :func:`mavil.export.folder.read_export`.

    Raises:
        UserError: none of these, or what is there cannot be read.
    """
    path, text = Path(source), str(source)
    if not text:
        raise UserError(f"no model is named: {_KINDS}")
    if (path / CONFIG_FILE).is_file():
        held, recipe = read_recipe(path, []), read_recipe(path, list(changes))
        from mavil.commands.export_facts import exported_run  # it reads results of every kind, and few export

        again = partial(exported_run, path, checkpoint)
        return _opened(held, recipe, load_weights(path, checkpoint), text, again)
    if checkpoint != "newest":
        raise UserError(f"checkpoint={checkpoint} belongs to a run folder, but {text} is none: leave it out")
    if path.name == WEIGHTS and path.is_file() and is_export(path.parent):
        path = path.parent
    if path.is_file():
        recipe, parts, _ = imported(path, changes, allow_pickle)
        return OpenedModel(
            recipe, parts, {}, text, partial(_refuse_export, text, "make a run of it with mavil convert")
        )
    if not path.exists() and _may_be_on_hub(text):
        path = _fetched(text)
    if (path / CONFIG).is_file():
        exported = read_export(path, allow_changed)
        recipe = change_recipe(exported.recipe, *changes) if changes else exported.recipe
        return _opened(exported.recipe, recipe, exported.parts, text, partial(read_export, path, allow_changed))
    if path.is_dir():
        raise UserError(
            f"{text} is neither a run folder (no {CONFIG_FILE}) nor an exported one (no {CONFIG}): {_KINDS}"
        )
    raise UserError(f"{text}: no such folder and no such checkpoint file: {_KINDS}")


def _opened(
    held: Recipe, recipe: Recipe, parts: dict[str, dict[str, Tensor]], source: str, exported: Callable[[], Exported]
) -> OpenedModel:
    before, now = grids_of(held), grids_of(recipe)
    if held != recipe:
        exported = partial(_refuse_export, source, "it was loaded with changes, load it without")
    return OpenedModel(recipe, parts, {m: (before[m], now[m]) for m in before if m in now}, source, exported)


def _refuse_export(source: str, remedy: str) -> NoReturn:
    raise UserError(f"{source} cannot be exported: {remedy}")


def _may_be_on_hub(text: str) -> bool:
    """Whether it is written like a Hub id and not like a file of a folder that is here."""
    is_id = HUB_ID.fullmatch(text) is not None and not text.endswith(FILE_ENDINGS)
    return is_id and not Path(text.partition("/")[0]).exists()


def _fetched(text: str) -> Path:
    """The export of a Hub id, in the Hub's cache.

    Raises:
        UserError: no network, no such model, or no right to it.
    """
    from mavil.export.hub import fetch_folder  # the Hub's client takes half a second, and most models lie here

    name, _, revision = text.partition("@")
    try:
        return fetch_folder(name, revision or None)
    except UserError as error:
        raise UserError(f"{text}: no such folder or file here, and as a Hub id: {error}") from None
