"""Stages and the runs they are made of: what a file of several runs comes down to, whoever starts them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mavil.pipelines.reading import PlanError, as_typed, read_mapping, refuse_unknown

_REFERENCE = re.compile(r"\{([A-Za-z0-9_.-]+)\}")
_NAME = re.compile(r"[A-Za-z0-9_.-]+")

Waits = Literal["for success", "for the same point", "for any end"]
"""When a stage may start: after all points of those it depends on ended well; each point after the same point of each of
them did; or after all have ended, well or not."""


@dataclass(frozen=True)
class Point:
    """One run: of a stage, or of one combination of a sweep's values.

    Attributes:
        run: the run folder.
        arguments: of ``mavil``, without what the launcher adds (``--out``, ``--resume``).
        label: the values of a sweep in words, else empty.
    """

    run: Path
    arguments: list[str]
    label: str = ""


@dataclass(frozen=True)
class Stage:
    """What is started together: one job, or an array of jobs.

    Attributes:
        name: of the stage in its pipeline, or of the recipe.
        points: the runs; more than one is a sweep.
        is_training: whether the arguments are a recipe's (``mavil train``) and the job goes on with ``--resume``.
        depends_on: names of stages.
        resources: settings over the profile of a cluster, as they stand in the file.
        folder: of the job's files: the run folder of a stage with one run, the folder above the runs of a sweep.
        is_sweep: also with one combination.
        waits: for what of the stages it depends on.
    """

    name: str
    points: list[Point]
    is_training: bool
    folder: Path
    depends_on: list[str] = field(default_factory=list)
    resources: dict[str, Any] = field(default_factory=dict)
    is_sweep: bool = False
    waits: Waits = "for success"


def single_stage(recipe: Path, changes: list[str], out: Path | None) -> Stage:
    """A recipe as a pipeline of one stage.

    Raises:
        PlanError: the recipe cannot be read.
    """
    name = recipe_name(recipe, changes)
    run = out or Path("runs") / name
    return Stage(name, [Point(run, [str(recipe), *changes])], is_training=True, folder=run)


def recipe_name(recipe: Path, changes: Iterable[str] = ()) -> str:
    """What `mavil train` calls the recipe: its ``name``, its base's, or the file's."""
    given = [change.partition("=")[2] for change in changes if change.startswith("name=")]
    if given:
        return given[-1]
    tree = read_mapping(recipe)
    if "name" not in tree and "base" in tree:
        tree = read_mapping(recipe.parent / str(tree["base"])) | tree
    return str(tree.get("name", recipe.stem))


def recipe_setting(recipe: Path, changes: Iterable[str], key: str) -> str | None:
    """A setting's text where the changes, the recipe or its base set it."""
    given = [change.partition("=")[2] for change in changes if change.startswith(f"{key}=")]
    if given:
        return given[-1]
    tree = read_mapping(recipe)
    for layer in [tree, *([read_mapping(recipe.parent / str(tree["base"]))] if "base" in tree else [])]:
        value: Any = layer
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            return str(value)
    return None


def existing_recipe(value: Any, where: str) -> str:
    """The path of a recipe, which must be there; ``where`` opens the message of the error.

    Raises:
        PlanError: it is not.
    """
    if not Path(str(value)).is_file():
        raise PlanError(f"{where}: {value}: no such recipe; paths are those of the folder you are in")
    return str(value)


def check_name(name: str, where: str) -> None:
    """Raise a :class:`PlanError` unless ``name`` can be a folder and stand in ``{NAME}``."""
    if not _NAME.fullmatch(name) or name in (".", ".."):
        raise PlanError(f"{where} {name!r} needs a name of letters, digits, '_', '-' and '.'")


def references_in(texts: Iterable[str]) -> list[str]:
    """Every NAME that stands as ``{NAME}`` in one of the texts, once, in order."""
    return list(dict.fromkeys(name for text in texts for name in _REFERENCE.findall(text)))


def filled(text: str, folder_of: Callable[[str], Path]) -> str:
    """Put folders in place of ``{NAME}``."""
    return _REFERENCE.sub(lambda match: str(folder_of(match.group(1))), text)


def combinations(grid: Mapping[str, Any], where: str) -> list[dict[str, str]]:
    """``{key: [values]}`` -> every combination, the last key changing fastest; without keys one empty combination.

    Raises:
        PlanError: a key has no list of values; ``where`` opens the message.
    """
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise PlanError(f"{where}.{key} is {values!r}, it must be a list of values")
    return [
        dict(zip(grid, map(as_typed, values), strict=True))
        for values in itertools.product(*(grid[key] for key in grid))
    ]


def folder_name(values: Mapping[str, str]) -> str:
    """``{optimizer.base_lr: 1e-4}`` -> ``base_lr_1e-4``; whole keys where the last words are the same."""
    words = [key.rpartition(".")[2] for key in values]
    names = words if len(set(words)) == len(words) else [key.replace(".", "_") for key in values]
    text = "-".join(f"{name}_{value}" for name, value in zip(names, values.values(), strict=True))
    return re.sub(r"[^A-Za-z0-9_.+-]+", "_", text)


def in_order(dependencies: Mapping[str, list[str]], path: Path, what: str) -> list[str]:
    """Names after those they depend on, else as they stand.

    Args:
        dependencies: what each needs.
        path: of the file, for messages.
        what: one of them is called, e.g. ``stage``.

    Raises:
        PlanError: an unknown name, or a circle.
    """
    for name, needed in dependencies.items():
        for one in needed:
            refuse_unknown(one, list(dependencies), f"{path}: {what} {name} depends on the unknown {what}")
    order: list[str] = []
    while len(order) < len(dependencies):
        ready = [name for name, needed in dependencies.items() if name not in order and set(needed) <= set(order)]
        if not ready:
            circle = _circle({n: d for n, d in dependencies.items() if n not in order})
            raise PlanError(f"{path}: {what}s wait for each other in a circle: {' -> '.join(circle)}")
        order.append(ready[0])
    return order


def refuse_shared_folders(stages: Iterable[Stage], path: Path) -> None:
    """Raise a :class:`PlanError` if two runs would write the same folder."""
    owners: dict[Path, str] = {}
    for stage in stages:
        for point in stage.points:
            key = point.run.resolve()
            if key in owners:
                raise PlanError(f"{path}: {owners[key]} and {stage.name} would both write the run folder {point.run}")
            owners[key] = stage.name


def _circle(dependencies: Mapping[str, list[str]]) -> list[str]:
    way = [next(iter(dependencies))]
    while way[-1] not in way[:-1]:
        way.append(next(one for one in dependencies[way[-1]] if one in dependencies))
    return way[way.index(way[-1]) :]
