"""Pipelines: several stages from one file, later ones started when earlier ones have succeeded, sweeps as job arrays.

::

    name: mavil                    # stages are called mavil/stage1 in lists
    out: runs                      # run folders lie here, under the name of the stage
    resources: {nodes: 8}          # over the profile, for every stage
    changes: {data.train: shards}  # settings of the recipe, for every stage that has one
    stages:
      stage1:
        recipe: configs/pretrain/mavil_stage1.yaml
        run: runs/elsewhere        # instead of out/stage1
      finetune:
        recipe: configs/finetune/audio.yaml
        depends_on: [stage1]       # starts when all of them have ended well
        changes: {task.weights: "{stage1}"}            # {NAME} is the run folder of that stage
        resources: {nodes: 1, time: "04:00:00"}        # over everything but the command line
        sweep: {optimizer.base_lr: [1e-4, 2e-4]}       # a run and a job of an array for each combination
      retrieve:
        command: retrieve {stage1} --shards shards/test  # or any other command of mavil instead of a recipe
        depends_on: [stage1]
"""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from slurm.profiles import SubmitError, checked, read_mapping, refuse_unknown

_PIPELINE_KEYS = ("name", "out", "resources", "changes", "stages")
_STAGE_KEYS = ("recipe", "command", "run", "depends_on", "changes", "resources", "sweep")
_REFERENCE = re.compile(r"\{([A-Za-z0-9_.-]+)\}")


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
    """What is submitted together: one job, or an array of jobs.

    Attributes:
        name: of the stage in its pipeline, or of the recipe.
        points: the runs; more than one is a sweep.
        is_training: whether the arguments are a recipe's (``mavil train``) and the job goes on with ``--resume``.
        depends_on: names of stages.
        resources: settings over the profile.
        folder: of the job's files: the run folder of a stage with one run, the folder above the runs of a sweep.
        is_sweep: also with one combination.
    """

    name: str
    points: list[Point]
    is_training: bool
    folder: Path
    depends_on: list[str] = field(default_factory=list)
    resources: dict[str, Any] = field(default_factory=dict)
    is_sweep: bool = False


def is_pipeline(path: Path) -> bool:
    """Whether a YAML file has stages; a recipe has none."""
    return "stages" in read_mapping(path)


def load_pipeline(path: Path, out: Path | None = None) -> list[Stage]:
    """The stages of a pipeline, each after those it depends on.

    Args:
        path: the YAML file.
        out: where the run folders lie instead of where the file says.

    Raises:
        SubmitError: an unknown key, an unknown or circular dependency, a reference to a stage that is not waited for, two
            stages that write the same run folder, a sweep without values.
    """
    tree = read_mapping(path)
    for key in tree:
        refuse_unknown(key, _PIPELINE_KEYS, f"{path}: a pipeline has no")
    stages = _mapping(tree, "stages", str(path))
    if not stages:
        raise SubmitError(f"{path}: the pipeline has no stages")
    out = out or Path(str(tree.get("out", "runs")))
    trees: dict[str, dict[str, Any]] = {}
    for name in stages:
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", str(name)):
            raise SubmitError(f"{path}: the stage {name!r} needs a name of letters, digits, '_', '-' and '.'")
        trees[str(name)] = _stage_tree(stages, name, f"{path}: stage {name}")
    dependencies = {name: _names(one.get("depends_on")) for name, one in trees.items()}
    order = _in_order(dependencies, path)
    common = _mapping(tree, "changes", str(path)), checked(_mapping(tree, "resources", str(path)), f"{path}: resources")
    loaded: dict[str, Stage] = {}
    for name in order:
        awaited = _all_before(name, dependencies)
        loaded[name] = _stage(name, trees[name], common, out, {one: loaded[one] for one in awaited}, path)
        loaded[name].depends_on.extend(dependencies[name])
    _refuse_shared_folders(loaded.values(), path)
    return list(loaded.values())


def single_stage(recipe: Path, changes: list[str], out: Path | None) -> Stage:
    """A recipe as a pipeline of one stage.

    Raises:
        SubmitError: the recipe cannot be read.
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


def _stage_tree(stages: dict[str, Any], name: str, where: str) -> dict[str, Any]:
    tree = _mapping(stages, name, where)
    for key in tree:
        refuse_unknown(key, _STAGE_KEYS, f"{where} has no")
    if ("recipe" in tree) == ("command" in tree):
        raise SubmitError(f"{where} needs either a recipe or a command")
    if "command" in tree and ("sweep" in tree or "changes" in tree):
        raise SubmitError(
            f"{where} is a command: changes and sweeps belong to recipes; write what it needs into the command"
        )
    return tree


def _stage(
    name: str,
    tree: dict[str, Any],
    common: tuple[dict[str, Any], dict[str, Any]],
    out: Path,
    before: dict[str, Stage],
    path: Path,
) -> Stage:
    where = f"{path}: stage {name}"
    resources = common[1] | checked(_mapping(tree, "resources", where), f"{where}: resources")
    run = Path(_filled(str(tree.get("run", out / name)), before, where))
    if "command" in tree:
        arguments = shlex.split(_filled(str(tree["command"]), before, where))
        return Stage(name, [Point(run, arguments)], is_training=False, folder=run, resources=resources)
    changes = {key: _text(value) for key, value in (common[0] | _mapping(tree, "changes", where)).items()}
    recipe = str(tree["recipe"])
    if not Path(recipe).is_file():
        raise SubmitError(f"{where}: {recipe}: no such recipe; paths are those of the folder you submit from")
    grid = _mapping(tree, "sweep", where)
    points = []
    for values in _product(grid, where):
        settings = {key: _filled(value, before, where) for key, value in (changes | values).items()}
        # Every run says its own name: in lists of runs "stage1" a hundred times over helps nobody.
        settings.setdefault("name", "-".join([name, *([_folder_name(values)] if values else [])]))
        label = " ".join(f"{key}={value}" for key, value in values.items())
        arguments = [recipe, *(f"{key}={value}" for key, value in settings.items())]
        points.append(Point(run / _folder_name(values) if values else run, arguments, label))
    return Stage(name, points, is_training=True, folder=run, resources=resources, is_sweep=bool(grid))


def _product(grid: dict[str, Any], where: str) -> list[dict[str, str]]:
    """``{key: [values]}`` -> every combination, the last key changing fastest; without keys one empty combination."""
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise SubmitError(f"{where}: sweep.{key} is {values!r}, it must be a list of values")
    return [
        dict(zip(grid, map(_text, values), strict=True)) for values in itertools.product(*(grid[key] for key in grid))
    ]


def _folder_name(values: dict[str, str]) -> str:
    """``{optimizer.base_lr: 1e-4}`` -> ``base_lr_1e-4``; whole keys where the last words are the same."""
    words = [key.rpartition(".")[2] for key in values]
    names = words if len(set(words)) == len(words) else [key.replace(".", "_") for key in values]
    text = "-".join(f"{name}_{value}" for name, value in zip(names, values.values(), strict=True))
    return re.sub(r"[^A-Za-z0-9_.+-]+", "_", text)


def _filled(text: str, before: dict[str, Stage], where: str) -> str:
    """Put run folders in place of ``{stage}``."""

    def folder(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in before:
            raise SubmitError(f"{where} refers to {{{name}}} but does not wait for it: add {name} to its depends_on")
        if before[name].is_sweep:
            raise SubmitError(
                f"{where} refers to {{{name}}}, which is a sweep with {len(before[name].points)} run folders below "
                f"{before[name].folder}: write the one you mean"
            )
        return str(before[name].points[0].run)

    return _REFERENCE.sub(folder, text)


def _in_order(dependencies: dict[str, list[str]], path: Path) -> list[str]:
    """Stages after those they depend on, else as in the file."""
    for name, needed in dependencies.items():
        for one in needed:
            refuse_unknown(one, list(dependencies), f"{path}: stage {name} depends on the unknown stage")
    order: list[str] = []
    while len(order) < len(dependencies):
        ready = [name for name, needed in dependencies.items() if name not in order and set(needed) <= set(order)]
        if not ready:
            circle = _circle({n: d for n, d in dependencies.items() if n not in order})
            raise SubmitError(f"{path}: stages wait for each other in a circle: {' -> '.join(circle)}")
        order.append(ready[0])
    return order


def _circle(dependencies: dict[str, list[str]]) -> list[str]:
    way = [next(iter(dependencies))]
    while way[-1] not in way[:-1]:
        way.append(next(one for one in dependencies[way[-1]] if one in dependencies))
    return way[way.index(way[-1]) :]


def _all_before(name: str, dependencies: dict[str, list[str]]) -> list[str]:
    found: list[str] = []
    for one in dependencies[name]:
        found += [*_all_before(one, dependencies), one]
    return list(dict.fromkeys(found))


def _refuse_shared_folders(stages: Iterable[Stage], path: Path) -> None:
    owners: dict[Path, str] = {}
    for stage in stages:
        for point in stage.points:
            key = point.run.resolve()
            if key in owners:
                raise SubmitError(f"{path}: {owners[key]} and {stage.name} would both write the run folder {point.run}")
            owners[key] = stage.name


def _mapping(tree: dict[str, Any], key: str, where: str) -> dict[str, Any]:
    value = tree.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise SubmitError(f"{where}: {key} is {value!r}, it must be a mapping")
    return {str(name): one for name, one in value.items()}


def _names(value: Any) -> list[str]:
    return [] if value is None else [str(one) for one in value] if isinstance(value, list) else [str(value)]


def _text(value: Any) -> str:
    """A YAML value as one would type it after ``key=``."""
    if isinstance(value, str):
        return value
    return str(yaml.safe_dump(value, default_flow_style=True, width=10**6)).strip().removesuffix("...").strip()
