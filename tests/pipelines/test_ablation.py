"""Ablations: runs by variant, grid and seed, references to the run with the same seed, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from mavil.pipelines.ablation import Ablation, Measure, is_ablation, load_ablation
from mavil.pipelines.jobs import jobs_of
from mavil.pipelines.reading import PlanError
from mavil.recipe import load_recipe

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text("name: a\n")
    Path("b.yaml").write_text("name: b\n")


def load(text: str, **options: object) -> Ablation:
    Path("chain.yaml").write_text(text)
    return load_ablation(Path("chain.yaml"), **options)  # type: ignore[arg-type]


CHAIN = """
recipe: a.yaml
out: there
seeds: [0, 1]
changes: {data.train: shards, seconds: 1}
variants:
  stage2: {recipe: b.yaml, changes: {task.teacher.run: "{intra}", task.weights: "{intra}", seconds: 2}}
  none: {changes: {task.contrast: null}}
  intra: {}
baseline: intra
"""


def test_every_run_has_its_settings_its_seed_and_a_folder_of_its_own() -> None:
    ablation = load(CHAIN)
    assert [row.name for row in ablation.rows] == ["stage2", "none", "intra"]
    none = ablation.rows[1].runs[1]
    assert none.run == Path("there/none/seed_1")
    wanted = ["a.yaml", "data.train=shards", "seconds=1", "task.contrast=null", "name=chain-none-seed_1", "seed=1"]
    assert none.arguments == wanted


def test_a_reference_is_the_run_of_that_variant_with_the_same_seed_and_comes_first() -> None:
    ablation = load(CHAIN)
    stage2 = ablation.rows[0].runs
    assert stage2[1].arguments[:4] == [
        "b.yaml",
        "data.train=shards",
        "seconds=2",
        "task.teacher.run=there/intra/seed_1",
    ]
    assert "task.weights=there/intra/seed_0" in stage2[0].arguments
    assert [stage.name for stage in ablation.stages] == ["none", "intra", "stage2"]
    jobs = {job.name: job for job in jobs_of(ablation.stages)}
    assert jobs["stage2 seed=1"].after == ("intra seed=1",)
    assert jobs["intra seed=1"].after == ()


def test_null_takes_a_part_out_of_the_recipe() -> None:
    Path("a.yaml").write_text((ROOT / "configs" / "tiny" / "stage1.yaml").read_text())
    (with_none,) = load("{recipe: a.yaml, variants: {none: {changes: {task.contrast: null}}}}").rows
    arguments = with_none.runs[0].arguments
    assert "task.contrast=null" in arguments
    assert load_recipe("a.yaml").task.contrast is not None  # type: ignore[union-attr]
    assert load_recipe(arguments[0], arguments[1:]).task.contrast is None  # type: ignore[union-attr]


def test_a_grid_alone_and_a_grid_of_every_variant() -> None:
    alone = load("{recipe: a.yaml, grid: {optimizer.base_lr: [1e-4, 2e-4], x.y: [1]}, baseline: base_lr_1e-4-y_1}")
    assert [(row.name, row.baseline) for row in alone.rows] == [
        ("base_lr_1e-4-y_1", None),
        ("base_lr_2e-4-y_1", "base_lr_1e-4-y_1"),
    ]
    assert alone.rows[1].runs[0].arguments[1:3] == ["optimizer.base_lr=2e-4", "x.y=1"]
    assert alone.rows[1].runs[0].run == Path("runs/ablations/chain/base_lr_2e-4-y_1/seed_0")
    both = load(CHAIN.replace("baseline", "grid: {optimizer.base_lr: [1e-4, 2e-4]}\nbaseline"))
    assert [row.name for row in both.rows][:3] == ["stage2/base_lr_1e-4", "stage2/base_lr_2e-4", "none/base_lr_1e-4"]
    # Compared with, and begun from, what lies at the same point of the grid.
    assert both.rows[1].baseline == "intra/base_lr_2e-4"
    assert both.rows[-1].baseline is None
    assert "task.weights=there/intra/base_lr_2e-4/seed_0" in both.rows[1].runs[0].arguments
    jobs = {job.name: job for job in jobs_of(both.stages)}
    name = "optimizer.base_lr=2e-4 seed=1"
    assert jobs[f"stage2 {name}"].after == (f"intra {name}",)


def test_seeds_and_the_folder_can_be_chosen_and_reach_the_table() -> None:
    ablation = load(CHAIN, out=Path("else where"), seeds=[5])
    assert ablation.rows[2].runs == {5: ablation.stages[1].points[0]}
    table = ablation.with_table()[-1]
    assert table.points[0].arguments == ["ablate", "chain.yaml", "--table", "--out", "else where", "--seeds", "5"]
    assert (table.waits, table.depends_on) == ("for any end", ["none", "intra", "stage2"])


def test_the_seed_can_choose_the_shards_for_folds() -> None:
    changes = '{data.train: "shards/without_fold{seed}", data.evaluation: "shards/fold{seed}"}'
    folds = load(f"{{recipe: a.yaml, seeds: [1, 5], changes: {changes}, variants: {{x: {{}}, y: {{}}}}, baseline: x}}")
    assert folds.rows[0].runs[5].arguments[1:3] == ["data.train=shards/without_fold5", "data.evaluation=shards/fold5"]
    assert folds.rows[1].runs[1].arguments[1:3] == ["data.train=shards/without_fold1", "data.evaluation=shards/fold1"]
    # No run is waited for: the word is no variant, and may stand where there are none.
    assert all(job.after == () for job in jobs_of(folds.stages))
    grid = load(f"{{recipe: a.yaml, seeds: [2], changes: {changes}, grid: {{x.y: [1]}}}}")
    assert grid.rows[0].runs[2].arguments[1] == "data.train=shards/without_fold2"
    assert grid.rows[0].runs[2].run == Path("runs/ablations/chain/y_1/seed_2")


def test_what_is_measured_becomes_options() -> None:
    measure = "{probes: [label, speaker], retrieval: false, within: speaker, train: t, evaluation: e}"
    options = load(f"{{recipe: a.yaml, variants: {{x: {{}}}}, measure: {measure}}}").measure.options()
    assert options == [
        *("--no-retrieval", "--probes", "label,speaker", "--within", "speaker"),
        *("--train-shards", "t", "--shards", "e"),
    ]
    assert Measure().options() == ["--retrieval"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "variants: {x: {changes: {k: '{y}'}}, y: {changes: {k: '{x}'}}}",
            "variants wait for each other in a circle: x -> y",
        ),
        ("variants: {x: {changes: {k: '{x}'}}}", "in a circle: x -> x"),
        (
            "variants: {intra: {}, x: {changes: {k: '{intro}'}}}",
            "variant x depends on the unknown variant 'intro': did you",
        ),
        ("grid: {k: ['{x}']}", "grid refers to {x}"),
        ("changes: {k: '{x}'}, grid: {k: [1]}", "changes refer to {x}, but there are no variants"),
        ("variants: {x: {}}, baseline: y", "no baseline 'y'"),
        ("variants: {x: {}}, seeds: [0, zero]", "seeds is [0, 'zero'], it must be a list of whole numbers"),
        ("variants: {x: {}}, seeds: [1, 1]", "one of them is there twice"),
        ("variants: {x: {changes: {seed: 1}}}", "changes.seed is 1: the seeds of the runs stand in seeds"),
        ("variants: {x: {change: {}}}", "variant x has no 'change': did you mean changes?"),
        ("variants: {x: {recipe: c.yaml}}", "variant x: c.yaml: no such recipe"),
        ("variants: {table: {}}", "variant 'table' needs another name"),
        ("variants: {seed: {}}", "variant 'seed' needs another name: {seed} is the seed of a run"),
        ("variants: {a b: {}}", "variant 'a b' needs a name of letters"),
        ("variants: {x: {}}, measures: {}", "an ablation has no 'measures': did you mean measure?"),
        ("variants: {x: {}}, measure: {probe: [label]}", "measure has no 'probe': did you mean probes?"),
        ("variants: {x: {}}, measure: {retrieval: 3}", "measure.retrieval is 3, it must be true or false"),
        ("grid: {k: 1}", "grid.k is 1, it must be a list of values"),
        ("seeds: [0]", "has neither variants nor a grid"),
        ("variants: {x: {}}, grid: {k: [a/b, a:b]}", "would both write the run folder"),
    ],
)
def test_mistakes_are_told_in_one_line(text: str, message: str) -> None:
    with pytest.raises(PlanError) as caught:
        load(f"{{recipe: a.yaml, {text}}}")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_variant_needs_a_recipe_from_somewhere() -> None:
    with pytest.raises(PlanError, match="variant y has no recipe: name one there or for all variants"):
        load("variants: {x: {recipe: a.yaml}, y: {}}")


def test_an_ablation_is_told_from_a_recipe() -> None:
    assert not is_ablation(Path("a.yaml"))
    load(CHAIN)
    assert is_ablation(Path("chain.yaml"))


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "ablations").glob("*.yaml")), ids=lambda path: path.stem)
def test_ablations_that_ship_hold_recipes_that_can_be_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for row in load_ablation(path).rows:
        for seed, point in row.runs.items():
            assert load_recipe(point.arguments[0], point.arguments[1:]).seed == seed
