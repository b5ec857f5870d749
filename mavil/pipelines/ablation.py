"""Ablations: one recipe, some variants of it or a grid of settings, several seeds, and what to measure of every run.

::

    name: chain                    # the file's name unless set
    recipe: configs/tiny/stage1.yaml
    out: runs/ablations/chain      # runs lie in OUT/VARIANT/seed_S, those of a grid in OUT/VARIANT/VALUES/seed_S
    seeds: [0, 1, 2]
    changes: {data.train: shards/train, data.evaluation: shards/gallery}   # settings of every run; {seed} is the run's seed
    variants:
      reconstruction: {changes: {task.contrast: null}}
      intra: {}
      stage2:                      # with a recipe of its own, begun from the run of "intra" with the same seed
        recipe: configs/tiny/stage2.yaml
        changes: {task.teacher.run: "{intra}", task.weights: "{intra}"}
    grid: {optimizer.base_lr: [1e-4, 2e-4]}    # instead of variants, or every variant at every point of it
    baseline: intra                # the others are compared with it, seed by seed
    measure: {probes: [label, speaker], retrieval: true, within: [speaker]}
    resources: {nodes: 1}          # of every run on a cluster, over its profile
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
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
    references_in,
    refuse_shared_folders,
)

_KEYS = ("name", "recipe", "out", "seeds", "changes", "variants", "grid", "baseline", "measure", "resources")
_VARIANT_KEYS = ("recipe", "changes")
_MEASURE_KEYS = ("probes", "retrieval", "within", "train", "evaluation")
SEED = "seed"
"""As ``{seed}`` in changes: the number itself, so that runs of different seeds can be on different shards (cross-validation)."""
TABLE = "table"
"""The stage that measures what there is and writes the table."""


@dataclass(frozen=True)
class Measure:
    """What is measured of every run.

    Attributes:
        probes: what linear probes are fitted for: ``label`` or metadata fields.
        retrieval: whether sounds and videos search each other.
        within: metadata fields: retrieval also inside one of its groups only.
        train: shards the probes are fitted on; ``None``: those the run was trained on.
        evaluation: shards everything is scored on; ``None``: the run's.
    """

    probes: tuple[str, ...] = ()
    retrieval: bool = True
    within: tuple[str, ...] = ()
    train: str | None = None
    evaluation: str | None = None

    def options(self) -> list[str]:
        """As options of ``mavil measure``."""
        words = ["--retrieval" if self.retrieval else "--no-retrieval"]
        for name, value in (("probes", ",".join(self.probes)), ("within", ",".join(self.within))):
            words += [f"--{name}", value] if value else []
        words += ["--train-shards", self.train] if self.train else []
        return [*words, *(["--shards", self.evaluation] if self.evaluation else [])]


@dataclass(frozen=True)
class Row:
    """One row of the table: a variant at one point of the grid, with a run for each seed.

    Attributes:
        name: ``VARIANT``, ``VALUES`` or ``VARIANT/VALUES``: its folder below the ablation's.
        variant: of the file; empty where there is a grid only.
        runs: by seed.
        baseline: name of the row it is compared with; ``None``: none, or it is that row.
    """

    name: str
    variant: str
    runs: dict[int, Point]
    baseline: str | None = None


@dataclass(frozen=True)
class Ablation:
    """An ablation as it is carried out.

    Attributes:
        path: the file.
        name: for people.
        out: the folder of all runs and of the table.
        seeds: of the runs of every row.
        rows: in the order of the file.
        stages: the runs of each variant as one array of points; what a variant begins from comes before it.
        measure: what is measured of every run.
    """

    path: Path
    name: str
    out: Path
    seeds: list[int]
    rows: list[Row]
    stages: list[Stage]
    measure: Measure

    def with_table(self) -> list[Stage]:
        """The stages and the one that makes the table when all of them have ended, well or not: as one submits them."""
        arguments = ["ablate", str(self.path), "--table", "--out", str(self.out)]
        arguments += ["--seeds", ",".join(map(str, self.seeds))]
        resources = (self.stages[0].resources if self.stages else {}) | {"nodes": 1, "tasks_per_node": 1}
        point = Point(self.out, arguments)
        names = [stage.name for stage in self.stages]
        return [*self.stages, Stage(TABLE, [point], False, self.out, names, resources, waits="for any end")]


def is_ablation(path: Path) -> bool:
    """Whether a YAML file names a recipe and ways to change it; a recipe does not name one."""
    tree = read_mapping(path)
    return "recipe" in tree or "variants" in tree


def load_ablation(path: Path, out: Path | None = None, seeds: list[int] | None = None) -> Ablation:
    """Read an ablation.

    Args:
        path: the YAML file.
        out: the folder of all runs instead of the file's.
        seeds: instead of the file's.

    Raises:
        PlanError: an unknown key, a reference to a variant there is not, a circle of references, a setting without values, a
            seed that is no whole number.
    """
    tree = read_mapping(path)
    for key in tree:
        refuse_unknown(key, _KEYS, f"{path}: an ablation has no")
    name = str(tree.get("name", path.stem))
    check_name(name, f"{path}: the ablation")
    out = out or Path(str(tree.get("out", Path("runs/ablations") / name)))
    seeds = seeds or _seeds(tree.get("seeds", [0]), path)
    cells = combinations(mapping_in(tree, "grid", str(path)), f"{path}: grid")
    variants = _variants(tree, path)
    if variants == {"": {}} and cells == [{}]:
        raise PlanError(f"{path}: the ablation has neither variants nor a grid")
    texts = {one: _texts(tree, variant, path) for one, variant in variants.items()}
    dependencies = {
        one: [name for name in references_in(settings.values()) if name != SEED] for one, settings in texts.items()
    }
    if "" in variants and dependencies[""]:
        raise PlanError(f"{path}: changes refer to {{{dependencies[''][0]}}}, but there are no variants")
    if named := references_in(value for cell in cells for value in cell.values()):
        raise PlanError(f"{path}: grid refers to {{{named[0]}}}: only the changes of a variant may")
    resources = mapping_in(tree, "resources", str(path))
    rows: dict[str, Row] = {}
    stages = []
    for one in in_order(dependencies, path, "variant"):
        recipe = variants[one].get("recipe", tree.get("recipe"))
        where = f"{path}: variant {one}" if one else str(path)
        if recipe is None:
            raise PlanError(f"{where} has no recipe: name one there or for all variants")
        existing_recipe(recipe, where)
        own = [_row(one, cell, str(recipe), texts[one], (name, out, seeds)) for cell in cells]
        rows |= {row.name: row for row in own}
        points = [point for row in own for point in row.runs.values()]
        stage = Stage(one or name, points, True, out / one, dependencies[one], resources, True, "for the same point")
        stages.append(stage)
    refuse_shared_folders(stages, path)
    in_file = [rows["/".join(part for part in (one, folder_name(cell)) if part)] for one in variants for cell in cells]
    rows_compared = _compared(in_file, tree.get("baseline"), path)
    return Ablation(path, name, out, seeds, rows_compared, stages, _measure(tree, path))


def _variants(tree: dict[str, Any], path: Path) -> dict[str, dict[str, Any]]:
    variants = mapping_in(tree, "variants", str(path))
    for name in variants:
        check_name(name, f"{path}: the variant")
        if name in (TABLE, SEED):
            taken = "this one is that of the last job" if name == TABLE else f"{{{SEED}}} is the seed of a run"
            raise PlanError(f"{path}: the variant {name!r} needs another name: {taken}")
    found = {name: mapping_in(variants, name, f"{path}: variants") for name in variants}
    for name, variant in found.items():
        for key in variant:
            refuse_unknown(key, _VARIANT_KEYS, f"{path}: variant {name} has no")
    return found or {"": {}}


def _texts(tree: dict[str, Any], variant: dict[str, Any], path: Path) -> dict[str, str]:
    """The settings of a variant as one would type them, those of all variants included."""
    changes = mapping_in(tree, "changes", str(path)) | mapping_in(variant, "changes", str(path))
    if "seed" in changes:
        raise PlanError(f"{path}: changes.seed is {changes['seed']!r}: the seeds of the runs stand in seeds")
    return {key: as_typed(value) for key, value in changes.items()}


def _row(
    variant: str, cell: Mapping[str, str], recipe: str, texts: Mapping[str, str], common: tuple[str, Path, list[int]]
) -> Row:
    ablation, out, seeds = common
    values = folder_name(cell)
    name = "/".join(part for part in (variant, values) if part)
    runs = {}
    for seed in seeds:

        def folder_of(other: str, seed: int = seed) -> Path:
            return Path(str(seed)) if other == SEED else out / other / values / f"seed_{seed}"

        settings = {key: filled(text, folder_of) for key, text in (dict(texts) | dict(cell)).items()}
        settings.setdefault("name", "-".join([ablation, *name.split("/"), f"seed_{seed}"]))
        arguments = [recipe, *(f"{key}={text}" for key, text in settings.items()), f"seed={seed}"]
        label = " ".join([*(f"{key}={value}" for key, value in cell.items()), f"seed={seed}"])
        runs[seed] = Point(out / name / f"seed_{seed}", arguments, label)
    return Row(name, variant, runs)


def _compared(rows: list[Row], baseline: Any, path: Path) -> list[Row]:
    """The rows with the one each is compared with: the row of that name, or that variant at the same point of the grid."""
    if baseline is None:
        return rows
    names = [row.name for row in rows]
    wanted = str(baseline)
    if wanted not in names:
        refuse_unknown(wanted, [*{row.variant: None for row in rows if row.variant}, *names], f"{path}: no baseline")
    compared = []
    for row in rows:
        other = wanted if wanted in names else "/".join([wanted, row.name.removeprefix(f"{row.variant}/")])
        compared.append(replace(row, baseline=None if other == row.name else other))
    return compared


def _seeds(value: Any, path: Path) -> list[int]:
    seeds = value if isinstance(value, list) else [value]
    if not seeds or not all(isinstance(seed, int) and not isinstance(seed, bool) for seed in seeds):
        raise PlanError(f"{path}: seeds is {value!r}, it must be a list of whole numbers")
    if len(set(seeds)) < len(seeds):
        raise PlanError(f"{path}: seeds is {value!r}: one of them is there twice")
    return seeds


def _measure(tree: dict[str, Any], path: Path) -> Measure:
    given = mapping_in(tree, "measure", str(path))
    for key in given:
        refuse_unknown(key, _MEASURE_KEYS, f"{path}: measure has no")
    retrieval = given.get("retrieval", True)
    if not isinstance(retrieval, bool):
        raise PlanError(f"{path}: measure.retrieval is {retrieval!r}, it must be true or false")
    shards = {key: str(given[key]) if given.get(key) is not None else None for key in ("train", "evaluation")}
    return Measure(tuple(texts_in(given, "probes")), retrieval, tuple(texts_in(given, "within")), **shards)
