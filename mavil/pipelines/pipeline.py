"""Pipelines: several stages from one file, later ones started when earlier ones have succeeded, sweeps of settings.

::

    name: mavil                    # for people
    out: runs                      # run folders lie here, under the name of the stage
    resources: {nodes: 8}          # over the profile of the cluster, for every stage; a run on one machine leaves it out
    changes: {data.train: shards}  # settings of the recipe, for every stage that has one
    stages:
      stage1:
        recipe: configs/pretrain/mavil_stage1.yaml
        run: runs/elsewhere        # instead of out/stage1
      finetune:
        recipe: configs/tiny/finetune_audio.yaml
        depends_on: [stage1]       # starts when all of them have ended well
        changes: {task.weights: "{stage1}"}            # {NAME} is the run folder of that stage
        resources: {nodes: 1, time: "04:00:00"}        # over everything but the command line
        sweep: {optimizer.base_lr: [1e-4, 2e-4]}       # a run and a job of an array for each combination
      retrieve:
        command: retrieve {stage1} shards/test  # or any other command of mavil instead of a recipe
        depends_on: [stage1]
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mavil.pipelines.reading import PlanError, as_typed, mapping_in, read_mapping, refuse_unknown, texts_in
from mavil.pipelines.stages import (
    Point,
    Stage,
    check_name,
    combinations,
    existing_recipe,
    filled,
    folder_name,
    in_order,
    refuse_shared_folders,
)

_PIPELINE_KEYS = ("name", "out", "resources", "changes", "stages")
_STAGE_KEYS = ("recipe", "command", "run", "depends_on", "changes", "resources", "sweep")


def is_pipeline(path: Path) -> bool:
    """Whether a YAML file has stages; a recipe has none."""
    return "stages" in read_mapping(path)


def load_pipeline(path: Path, out: Path | None = None) -> list[Stage]:
    """The stages of a pipeline, each after those it depends on.

    Args:
        path: the YAML file.
        out: where the run folders lie instead of where the file says.

    Raises:
        PlanError: an unknown key, an unknown or circular dependency, a reference to a stage that is not waited for, two
            stages that write the same run folder, a sweep without values.
    """
    tree = read_mapping(path)
    for key in tree:
        refuse_unknown(key, _PIPELINE_KEYS, f"{path}: a pipeline has no")
    stages = mapping_in(tree, "stages", str(path))
    if not stages:
        raise PlanError(f"{path}: the pipeline has no stages")
    out = out or Path(str(tree.get("out", "runs")))
    trees: dict[str, dict[str, Any]] = {}
    for name in stages:
        check_name(name, f"{path}: the stage")
        trees[name] = _stage_tree(stages, name, f"{path}: stage {name}")
    dependencies = {name: texts_in(one, "depends_on") for name, one in trees.items()}
    common = {key: mapping_in(tree, key, str(path)) for key in ("changes", "resources")}
    loaded: dict[str, Stage] = {}
    for name in in_order(dependencies, path, "stage"):
        awaited = {one: loaded[one] for one in _all_before(name, dependencies)}
        loaded[name] = _stage(name, trees[name], common, out / name, awaited, path)
        loaded[name].depends_on.extend(dependencies[name])
    refuse_shared_folders(loaded.values(), path)
    return list(loaded.values())


def _stage_tree(stages: dict[str, Any], name: str, where: str) -> dict[str, Any]:
    tree = mapping_in(stages, name, where)
    for key in tree:
        refuse_unknown(key, _STAGE_KEYS, f"{where} has no")
    if ("recipe" in tree) == ("command" in tree):
        raise PlanError(f"{where} needs either a recipe or a command")
    if "command" in tree and ("sweep" in tree or "changes" in tree):
        raise PlanError(
            f"{where} is a command: changes and sweeps belong to recipes; write what it needs into the command"
        )
    return tree


def _stage(
    name: str,
    tree: dict[str, Any],
    common: Mapping[str, dict[str, Any]],
    default_run: Path,
    before: dict[str, Stage],
    path: Path,
) -> Stage:
    where = f"{path}: stage {name}"
    folder_of = _folders_of(before, where)
    resources = common["resources"] | mapping_in(tree, "resources", where)
    run = Path(filled(str(tree.get("run", default_run)), folder_of))
    if "command" in tree:
        arguments = shlex.split(filled(str(tree["command"]), folder_of))
        return Stage(name, [Point(run, arguments)], is_training=False, folder=run, resources=resources)
    changes = {key: as_typed(value) for key, value in (common["changes"] | mapping_in(tree, "changes", where)).items()}
    recipe = existing_recipe(tree["recipe"], where)
    grid = mapping_in(tree, "sweep", where)
    points = []
    for values in combinations(grid, f"{where}: sweep"):
        settings = {key: filled(value, folder_of) for key, value in (changes | values).items()}
        # Every run says its own name: in lists of runs "stage1" a hundred times over helps nobody.
        settings.setdefault("name", "-".join([name, *([folder_name(values)] if values else [])]))
        label = " ".join(f"{key}={value}" for key, value in values.items())
        arguments = [recipe, *(f"{key}={value}" for key, value in settings.items())]
        points.append(Point(run / folder_name(values) if values else run, arguments, label))
    return Stage(name, points, is_training=True, folder=run, resources=resources, is_sweep=bool(grid))


def _folders_of(before: Mapping[str, Stage], where: str) -> Callable[[str], Path]:
    """From the name of a stage that is waited for to its run folder; :class:`PlanError` where there is not one."""

    def folder_of(name: str) -> Path:
        if name not in before:
            raise PlanError(f"{where} refers to {{{name}}} but does not wait for it: add {name} to its depends_on")
        if before[name].is_sweep:
            raise PlanError(
                f"{where} refers to {{{name}}}, which is a sweep with {len(before[name].points)} run folders below "
                f"{before[name].folder}: write the one you mean"
            )
        return before[name].points[0].run

    return folder_of


def _all_before(name: str, dependencies: Mapping[str, list[str]]) -> list[str]:
    found: list[str] = []
    for one in dependencies[name]:
        found += [*_all_before(one, dependencies), one]
    return list(dict.fromkeys(found))
