"""Pipelines: order, references, sweeps, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from mavil.pipelines.pipeline import load_pipeline
from mavil.pipelines.reading import PlanError
from mavil.pipelines.stages import Stage, recipe_name, recipe_setting, single_stage
from mavil.recipe import load_recipe

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text("name: a\n")


def load(text: str, **options: Path) -> dict[str, Stage]:
    Path("p.yaml").write_text(text)
    return {stage.name: stage for stage in load_pipeline(Path("p.yaml"), **options)}


def test_stages_come_after_what_they_wait_for_and_know_its_run_folder() -> None:
    stages = load(
        """
        changes: {data.train: shards}
        resources: {nodes: 4, time: 04:00:00}
        stages:
          last: {command: "retrieve {one} --shards 'my shards'", depends_on: [two]}
          two: {recipe: a.yaml, depends_on: one, changes: {task.weights: "{one}", trainer.device: cpu}, resources: {nodes: 1}}
          one: {recipe: a.yaml, run: elsewhere/one}
        """
    )
    assert list(stages) == ["one", "two", "last"]
    assert stages["one"].points[0].arguments == ["a.yaml", "data.train=shards", "name=one"]
    two = ["a.yaml", "data.train=shards", "task.weights=elsewhere/one", "trainer.device=cpu", "name=two"]
    assert stages["two"].points[0].arguments == two
    assert stages["two"].points[0].run == Path("runs/two")
    assert stages["two"].resources == {"nodes": 1, "time": "04:00:00"}
    assert stages["last"].points[0].arguments == ["retrieve", "elsewhere/one", "--shards", "my shards"]
    assert (stages["last"].depends_on, stages["last"].is_training) == (["two"], False)


def test_a_sweep_is_a_run_for_each_combination() -> None:
    text = "stages: {s: {recipe: a.yaml, sweep: {optimizer.base_lr: [1e-4, 2e-4], seed: [0, 1]}}}"
    stage = load(text, out=Path("there"))["s"]
    assert [point.run.name for point in stage.points] == [
        "base_lr_1e-4-seed_0",
        "base_lr_1e-4-seed_1",
        "base_lr_2e-4-seed_0",
        "base_lr_2e-4-seed_1",
    ]
    assert {point.run.parent for point in stage.points} == {stage.folder} == {Path("there/s")}
    wanted = ["a.yaml", "optimizer.base_lr=2e-4", "seed=0", "name=s-base_lr_2e-4-seed_0"]
    assert stage.points[2].arguments == wanted
    assert stage.points[2].label == "optimizer.base_lr=2e-4 seed=0"


def test_values_are_written_as_one_would_type_them() -> None:
    values = "{a: true, b: null, c: [1, 2], d: 0.5, e: {kind: x, run: '{one}'}}"
    stage = load(f"stages: {{one: {{recipe: a.yaml}}, s: {{recipe: a.yaml, depends_on: one, changes: {values}}}}}")["s"]
    assert stage.points[0].arguments[1:-1] == ["a=true", "b=null", "c=[1, 2]", "d=0.5", "e={kind: x, run: 'runs/one'}"]


def test_keys_with_the_same_last_word_give_different_folders() -> None:
    stage = load("stages: {s: {recipe: a.yaml, sweep: {audio.mask_ratio: [0.8], video.mask_ratio: [a/b]}}}")["s"]
    assert stage.points[0].run.name == "audio_mask_ratio_0.8-video_mask_ratio_a_b"
    assert stage.is_sweep


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ("{x: {recipe: a.yaml, depends_on: y}, y: {recipe: a.yaml, depends_on: x}}", "in a circle: x -> y -> x"),
        ("{x: {recipe: a.yaml, depends_on: x}}", "in a circle: x -> x"),
        ("{one: {recipe: a.yaml}, x: {recipe: a.yaml, depends_on: oen}}", "unknown stage 'oen': did you mean one?"),
        ("{x: {recipe: a.yaml, run: r}, y: {recipe: a.yaml, run: ./r}}", "x and y would both write the run folder r"),
        ("{x: {recipe: a.yaml, sweep: {k: [a/b, a:b]}}}", "x and x would both write the run folder runs/x/k_a_b"),
        ("{x: {recipe: a.yaml}, y: {recipe: a.yaml, changes: {k: '{x}'}}}", "refers to {x} but does not wait for it"),
        (
            "{x: {recipe: a.yaml, sweep: {k: [1, 2]}}, y: {command: 'evaluate {x}', depends_on: x}}",
            "refers to {x}, which is a sweep with 2 run folders below runs/x",
        ),
        ("{x: {recipe: b.yaml}}", "b.yaml: no such recipe"),
        ("{x: {}}", "needs either a recipe or a command"),
        ("{x: {command: evaluate r, sweep: {k: [1]}}}", "changes and sweeps belong to recipes"),
        ("{x: {recipe: a.yaml, depend_on: y}}", "has no 'depend_on': did you mean depends_on?"),
        ("{x: {recipe: a.yaml, sweep: {k: 1}}}", "sweep.k is 1, it must be a list of values"),
        ("{x y: {recipe: a.yaml}}", "needs a name of letters"),
        ("{}", "has no stages"),
        ("[x]", "it must be a mapping"),
    ],
)
def test_mistakes_are_told_in_one_line(stages: str, message: str) -> None:
    with pytest.raises(PlanError) as caught:
        load(f"stages: {stages}")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["mavil", "tiny"])
def test_pipelines_that_ship_hold_recipes_that_can_be_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    stages = load_pipeline(ROOT / "slurm" / "pipelines" / f"{name}.yaml")
    assert len(stages) > 7
    for stage in stages:
        for point in stage.points if stage.is_training else []:
            recipe = load_recipe(point.arguments[0], point.arguments[1:])
            if "finetune" in stage.name:
                assert str(getattr(recipe.task, "weights", None)) == f"runs/{name}/stage3"
            if stage.name in ("stage2", "stage3"):
                teacher = getattr(recipe.task, "teacher", None)
                assert str(teacher and teacher.run) == f"runs/{name}/stage{int(stage.name[-1]) - 1}"


@pytest.mark.parametrize(("name", "num_starts"), [("mae_ast_study", 12), ("mae_ast_tiny", 2)])
def test_in_the_study_each_run_begins_from_tokens_of_its_own_kind(
    name: str, num_starts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one it follows began everything from patches, which frames could not load."""
    monkeypatch.chdir(ROOT)
    recipes = {
        point.run: load_recipe(point.arguments[0], point.arguments[1:])
        for stage in load_pipeline(ROOT / "slurm" / "pipelines" / f"{name}.yaml")
        for point in (stage.points if stage.is_training else [])
    }
    starts = {run: Path(recipe.task.weights) for run, recipe in recipes.items() if recipe.task.weights}
    assert len(starts) == num_starts
    for run, start in starts.items():
        own, before = recipes[run], recipes[start]
        assert own.audio is not None
        assert before.audio is not None
        assert start.name in str(run)
        for setting in ("patch", "encoder", "spectrogram", "positions"):
            known = getattr(before.audio, setting)
            expected = (
                known.model_copy(update={"layer_drop": own.audio.encoder.layer_drop}) if setting == "encoder" else known
            )
            assert getattr(own.audio, setting) == expected, (run, setting)
        assert own.data.train != own.data.evaluation


def test_a_recipe_is_called_as_mavil_calls_it(tmp_path: Path) -> None:
    Path("base.yaml").write_text("{name: below, trainer: {device: cpu}}")
    Path("b.yaml").write_text("base: base.yaml")
    Path("c.yaml").write_text("seed: 1")
    assert recipe_name(Path("b.yaml")) == "below"
    assert recipe_name(Path("c.yaml")) == "c"
    assert recipe_name(Path("c.yaml"), ["name=d"]) == "d"
    assert single_stage(Path("c.yaml"), ["seed=2"], None).points[0].run == Path("runs/c")
    assert recipe_setting(Path("b.yaml"), [], "trainer.device") == "cpu"
    assert recipe_setting(Path("b.yaml"), ["trainer.device=cuda"], "trainer.device") == "cuda"
    assert recipe_setting(Path("c.yaml"), [], "trainer.device") is None
