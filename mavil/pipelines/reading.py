"""YAML files that describe several runs, and what is said of a mistake in one of them."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

import yaml


class PlanError(Exception):
    """A person's mistake in a file of several runs, in one line; exit code 2.

    Not a ``mavil.structs.UserError``: that one comes with torch.
    """


class _Loader(yaml.SafeLoader):
    """SafeLoader without numbers in base 60: ``12:00:00`` is a time, not 43200."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in pairs if not tag.endswith((":int", ":float"))]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?(0|[1-9]\d*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d*\.\d+$"), list("-+.0123456789"))


def read_mapping(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Raises:
        PlanError: it cannot be read as one.
    """
    try:
        tree = yaml.load(path.read_text(), _Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise PlanError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise PlanError(f"{path}: expected a mapping of settings, found {type(tree).__name__}")
    return {str(key): value for key, value in tree.items()}


def refuse_unknown(key: str, known: Any, what: str) -> None:
    """Raise a :class:`PlanError` with the nearest right name unless ``key`` is one of ``known``; ``what`` opens it."""
    if key in known:
        return
    near = difflib.get_close_matches(str(key), list(known), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(map(str, known))}"
    raise PlanError(f"{what} {key!r}: {hint}")


def mapping_in(tree: dict[str, Any], key: str, where: str) -> dict[str, Any]:
    """``tree[key]``, which must be a mapping; empty where it is not set. ``where`` opens the message of the error.

    Raises:
        PlanError: it is something else.
    """
    value = tree.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise PlanError(f"{where}: {key} is {value!r}, it must be a mapping")
    return {str(name): one for name, one in value.items()}


def texts_in(tree: dict[str, Any], key: str) -> list[str]:
    """``tree[key]`` as a list of texts; one value is a list of one, none is an empty one."""
    value = tree.get(key)
    return [] if value is None else [str(one) for one in value] if isinstance(value, list) else [str(value)]


def as_typed(value: Any) -> str:
    """A YAML value as one would type it after ``key=``."""
    if isinstance(value, str):
        return value
    return str(yaml.safe_dump(value, default_flow_style=True, width=10**6)).strip().removesuffix("...").strip()
