"""Recipes in and out: YAML files, ``key.path=value`` changes, and messages for what cannot be a recipe.

A recipe is one YAML file; ``base: other.yaml`` lets it change another one (one level). Unknown keys and wrong types are
refused with the path and the nearest right name.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from mavil.config import Duration, Recipe
from mavil.structs import UserError

DEFAULT_KINDS = {"task": "pretrain", "fusion": "joint"}
"""Kind of a group whose recipe does not name one."""

OTHER_SPELLINGS = {"data.eval": "data.evaluation"}
"""What people write in a change, and the setting that it is."""


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads ``1e-4`` as a number, as YAML 1.2 does, and refuses a key that is written twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = [key for i, key in enumerate(keys) if key in keys[:i]]
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]!r} is written twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(\d[\d_]*\.?[\d_]*([eE][-+]?\d+)|\.\d[\d_]*([eE][-+]?\d+)?|\d[\d_]*\.[\d_]*|\.inf|\.nan)$",
        re.IGNORECASE,
    ),
    list("-+0123456789."),
)


def load_recipe(path: str | Path, changes: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply ``key.path=value`` changes.

    Raises:
        UserError: no such file, not YAML, an unknown key, a wrong type, or settings that do not fit together.
    """
    path = Path(path)
    tree = _read_tree(path)
    base = tree.pop("base", None)
    if base is not None:
        lower = _read_tree(path.parent / str(base))
        if "base" in lower:
            raise UserError(
                f"{path}: its base {base} has a base itself; one level is the limit, so name {lower['base']} directly"
            )
        tree = _merge(_with_kinds(lower), tree)
    tree = _with_kinds(tree)
    for change in changes:
        _apply_change(tree, change)
    tree.setdefault("name", path.stem)
    return recipe_from_tree(tree, source=str(path))


def recipe_from_tree(tree: dict[str, Any], source: str) -> Recipe:
    """Validate a tree of settings; ``source`` opens every error message.

    Raises:
        UserError: as :func:`load_recipe`.
    """
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{source}: " + "; ".join(_explain(problem) for problem in error.errors())) from None


def dump_recipe(recipe: Recipe) -> str:
    """The complete recipe as YAML; :func:`load_recipe` reads it back unchanged."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)


def change_recipe(recipe: Recipe, *changes: str) -> Recipe:
    """A copy with ``key.path=value`` changes applied; errors as :func:`load_recipe`."""
    tree = recipe.model_dump(mode="json")
    for change in changes:
        _apply_change(tree, change)
    return recipe_from_tree(tree, source=recipe.name)


def setting_paths(model: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[str]:
    """Every dotted path a recipe may contain."""
    for name, info in model.model_fields.items():
        yield prefix + name
        for group in settings_in(info.annotation):
            yield from setting_paths(group, f"{prefix}{name}.")


def settings_in(annotation: Any) -> list[type[BaseModel]]:
    """The groups of settings that a field of this type can hold: none for a plain value, several for a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [] if annotation is Duration else [annotation]
    return [group for part in getattr(annotation, "__args__", ()) for group in settings_in(part)]


def _read_tree(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.load(path.read_text(), _Loader)
    except FileNotFoundError:
        raise UserError(f"{path}: no such recipe; the ones that ship are listed in configs/README.md") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a recipe is a mapping of settings, not {type(tree).__name__}")
    return tree


def _with_kinds(tree: dict[str, Any]) -> dict[str, Any]:
    groups = {
        name: {"kind": kind} | tree[name] for name, kind in DEFAULT_KINDS.items() if isinstance(tree.get(name), dict)
    }
    return tree | groups


def _merge(lower: dict[str, Any], upper: dict[str, Any]) -> dict[str, Any]:
    merged = dict(lower)
    for key, value in upper.items():
        below = merged.get(key)
        same_kind = (
            isinstance(value, dict)
            and isinstance(below, dict)
            and value.get("kind", below.get("kind")) == below.get("kind")
        )
        merged[key] = _merge(below, value) if same_kind else value  # type: ignore[arg-type]
    return merged


def _apply_change(tree: dict[str, Any], change: str) -> None:
    path, separator, text = change.partition("=")
    if not separator or not path:
        raise UserError(f"{change!r} is not a change of a setting: write key.path=value, e.g. optimizer.base_lr=1e-4")
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError:
        value = text
    *groups, last = OTHER_SPELLINGS.get(path, path).split(".")
    for group in groups:
        if not isinstance(tree.get(group), dict):
            tree[group] = {"kind": DEFAULT_KINDS[group]} if group in DEFAULT_KINDS and last != "kind" else {}
        tree = tree[group]
    tree[last] = value


def _explain(problem: Any) -> str:
    # Discriminated unions put the chosen kind into the location; people never wrote it.
    path = ".".join(str(part) for part in problem["loc"] if part not in ("pretrain", "classify", "joint", "bottleneck"))
    if problem["type"] == "extra_forbidden":
        if path in setting_paths():
            return f"{path} belongs to another kind than the one chosen: leave it out"
        near = _nearest_setting(path)
        hint = f"did you mean {near}?" if near else "mavil inspect RECIPE prints every setting"
        return f"{path} is not a setting; {hint}"
    if problem["type"] == "value_error":
        reason = str(problem["ctx"]["error"])
        return f"{path}: {reason}" if path else reason
    return f"{path} = {problem['input']!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}"


def _nearest_setting(path: str) -> str | None:
    known = list(dict.fromkeys(setting_paths()))
    group, _, last = path.rpartition(".")
    siblings = [p for p in known if p.rpartition(".")[0] == group]
    near = difflib.get_close_matches(path, siblings, n=1, cutoff=0.6) or difflib.get_close_matches(
        path, known, n=1, cutoff=0.6
    )
    same_name = [p for p in known if p.rpartition(".")[2] == last]
    return near[0] if near else same_name[0] if same_name else None
