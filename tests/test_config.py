"""Recipes: what may be written, how errors read, and that what is dumped reads back the same."""

from __future__ import annotations

import contextlib
import functools
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from mavil.config import AudioBranch, BottleneckFusion, ClassifyTask, Duration, PretrainTask, Recipe, VideoBranch
from mavil.models.build import build_masked
from mavil.pipelines.ablation import load_ablation
from mavil.recipe import change_recipe, dump_recipe, load_recipe, setting_paths
from mavil.structs import UserError

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
CONFIGS = [path for path in CONFIGS if path.parent.name != "ablations"]  # of recipes, not recipes
SOUND = [path for path in CONFIGS if re.match("audio_mae|mae_ast|msm_mae", path.stem)]
"""Recipes of the audio family."""


def write(folder: Path, text: str, name: str = "small.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


@pytest.fixture
def recipe_path(tmp_path: Path) -> Path:
    return write(tmp_path, "optimizer: {base_lr: 1e-4}\nschedule: {length: 300 steps}\ntask: {kind: pretrain}\n")


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.0e-4", "1.e-4", ".0001", "0.0001", "+1e-4"])
def test_every_way_to_write_a_small_number_is_a_number(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, f"optimizer: {{base_lr: {text}}}\n")
    assert load_recipe(path).optimizer.base_lr == 1e-4
    assert load_recipe(path, [f"optimizer.base_lr={text}"]).optimizer.base_lr == 1e-4


def test_a_recipe_is_named_after_its_file_unless_it_says_otherwise(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path, "seed: 3\n")).name == "small"
    assert load_recipe(write(tmp_path, "name: other\n")).name == "other"


def test_defaults_are_the_paper_scale_tokens() -> None:
    recipe = Recipe(name="defaults")
    assert isinstance(recipe.audio, AudioBranch)
    assert isinstance(recipe.video, VideoBranch)
    assert recipe.audio.grid().cells == (64, 8)
    assert recipe.video.grid().cells == (4, 14, 14)
    assert recipe.video.seconds == 4.0


def test_changes_on_the_command_line_win_in_order(recipe_path: Path) -> None:
    changes = ["seed=1", "seed=2", "data.train=shards/a", "fusion=null", "task.contrast.inter_weight=0", "video=null"]
    recipe = load_recipe(recipe_path, changes)
    assert (recipe.seed, recipe.data.train, recipe.fusion) == (2, "shards/a", None)
    assert recipe.optimizer.base_lr == 1e-4
    assert recipe.modalities == ("audio",)


def test_unions_are_told_apart_by_kind(recipe_path: Path) -> None:
    assert isinstance(load_recipe(recipe_path, ["fusion.kind=bottleneck"]).fusion, BottleneckFusion)
    recipe = load_recipe(recipe_path, ["task.kind=classify", "task.modalities=[audio]"])
    assert isinstance(recipe.task, ClassifyTask)
    assert recipe.modalities == ("audio",)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("optimizer.base_lrr=1", "optimizer.base_lrr is not a setting; did you mean optimizer.base_lr?"),
        ("optimiser.base_lr=1", "optimiser is not a setting; did you mean optimizer?"),
        ("base_lr=1", "base_lr is not a setting; did you mean optimizer.base_lr?"),
        ("trainer.batch=1", "trainer.batch is not a setting; did you mean trainer."),
        ("task.contrast.inter_wait=1", "task.contrast.inter_wait is not a setting; did you mean task.contrast.inter_w"),
        ("zzzzz=1", "zzzzz is not a setting; mavil inspect RECIPE prints every setting"),
        ("trainer.device_batch=many", "trainer.device_batch = 'many': input should be a valid integer"),
        ("trainer.device_batch=0", "trainer.device_batch = 0: input should be greater than 0"),
        ("trainer.device_batch=2.5", "trainer.device_batch = 2.5: input should be a valid integer"),
        ("data.backend=ffmpeg", "data.backend = 'ffmpeg': input should be 'pyav', 'torchcodec' or 'decord'"),
        ("data=5", "data = 5: input should be a valid dictionary"),
        ("schedule.length=20", "schedule.length: 20 needs a unit: write '20 steps' or '20 epochs'"),
        ("schedule.length=long", "schedule.length: 'long' is not a length of training: write e.g. '20 epochs'"),
        ("audio.encoder.width=50", "audio.encoder: width 50 must be a multiple of num_heads 12"),
        ("audio.patch=[15,16]", "cannot be cut into patches of (15, 16)"),
        ("audio=null", "task.contrast.inter_weight compares audio with video"),
        ("trainer.accumulation=2", "trainer.accumulation_negatives=cached"),
        ("video.encoder.width=384", "audio has 768 and video 384"),
        ("no equals sign", "'no equals sign' is not a change of a setting: write key.path=value"),
    ],
)
def test_a_wrong_setting_is_one_line_with_place_value_and_remedy(recipe_path: Path, change: str, expected: str) -> None:
    changes = [change] if change != "audio=null" else [change, "fusion=null"]
    with pytest.raises(UserError) as caught:
        load_recipe(recipe_path, changes)
    message = str(caught.value)
    assert expected in message
    assert "\n" not in message
    assert message.startswith((str(recipe_path), "'no equals"))


def test_fusion_needs_two_modalities(recipe_path: Path) -> None:
    with pytest.raises(UserError, match="only audio is set: write 'fusion: null'"):
        load_recipe(recipe_path, ["video=null", "task.contrast.inter_weight=0"])


def test_several_mistakes_are_told_at_once(recipe_path: Path) -> None:
    with pytest.raises(UserError, match=r"trainer\.device_batch.*; .*seeed"):
        load_recipe(recipe_path, ["seeed=1", "trainer.device_batch=0"])


def test_a_recipe_may_change_another_one(tmp_path: Path) -> None:
    write(tmp_path, "seed: 5\noptimizer: {base_lr: 1e-3, weight_decay: 0.1}\ntask: {kind: pretrain}\n", "base.yaml")
    recipe = load_recipe(write(tmp_path, "base: base.yaml\noptimizer: {base_lr: 2e-3}\n"))
    assert (recipe.name, recipe.seed) == ("small", 5)
    assert (recipe.optimizer.base_lr, recipe.optimizer.weight_decay) == (2e-3, 0.1)


def test_a_base_of_another_kind_is_replaced_not_mixed(tmp_path: Path) -> None:
    write(tmp_path, "task: {kind: pretrain, contrast: {inter_weight: 0.5}}\n", "base.yaml")
    same = load_recipe(write(tmp_path, "base: base.yaml\ntask: {weights: runs/x}\n"))
    assert isinstance(same.task, PretrainTask)
    assert same.task.contrast is not None
    assert (same.task.contrast.inter_weight, same.task.weights) == (0.5, "runs/x")
    other = load_recipe(write(tmp_path, "base: base.yaml\ntask: {kind: classify}\n"))
    assert isinstance(other.task, ClassifyTask)


def test_a_base_is_one_level_deep(tmp_path: Path) -> None:
    write(tmp_path, "seed: 1\n", "lowest.yaml")
    write(tmp_path, "base: lowest.yaml\n", "base.yaml")
    with pytest.raises(UserError, match=r"base\.yaml has a base itself; one level is the limit, so name lowest\.yaml"):
        load_recipe(write(tmp_path, "base: base.yaml\n"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1\n", "cannot be read as YAML"),
        ("", "a recipe is a mapping of settings, not NoneType"),
        ("- 1\n", "a recipe is a mapping of settings, not list"),
        ("base: nowhere.yaml\n", "nowhere.yaml: no such recipe"),
        ("when: !!python/object/apply:os.getcwd []\n", "cannot be read as YAML"),
    ],
)
def test_a_file_that_is_no_recipe_is_named(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        load_recipe(write(tmp_path, text))


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml: no such recipe"):
        load_recipe(tmp_path / "nowhere.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        load_recipe(tmp_path)


@pytest.mark.parametrize(
    ("length", "expected"),
    [("300 steps", 300), ("1 step", 1), ("2 epochs", 250), ("0.5 epochs", 62), ("1e3 steps", 1000)],
)
def test_a_length_is_turned_into_steps_in_one_place(recipe_path: Path, length: str, expected: int) -> None:
    recipe = load_recipe(recipe_path, [f"schedule.length={length}"])
    assert recipe.schedule.length.steps(samples_per_epoch=1000, global_batch=8) == expected


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Recipe(name="x").seed = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    "changes",
    [
        [],
        ["schedule.length=12.5 epochs", "trainer.evaluate_every=7 steps", "optimizer.base_lr=1.5e-5"],
        ["task.kind=classify", "task.weights=runs/x", "fusion.kind=bottleneck"],
        ["task.teacher.run=runs/stage1", "optimizer.clip_norm=1"],
    ],
)
def test_what_is_dumped_reads_back_the_same(recipe_path: Path, tmp_path: Path, changes: list[str]) -> None:
    recipe = load_recipe(recipe_path, changes)
    assert load_recipe(write(tmp_path, dump_recipe(recipe), "config.yaml")) == recipe
    assert change_recipe(recipe) == recipe


def test_a_changed_recipe_is_a_copy(recipe_path: Path) -> None:
    recipe = load_recipe(recipe_path)
    assert change_recipe(recipe, "seed=4", "trainer.log_every=1").seed == 4
    assert recipe.seed == 0


def test_every_setting_has_a_path() -> None:
    paths = set(setting_paths())
    assert {"name", "audio.encoder.width", "task.contrast.inter_weight", "task.frozen", "trainer.device_batch"} <= paths
    assert "schedule.length.count" not in paths


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(path.parents[1])))
def test_every_recipe_that_ships_loads_and_reads_back(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    assert load_recipe(write(tmp_path, dump_recipe(recipe), "config.yaml")) == recipe


@pytest.mark.parametrize("count", [1_000_000, 1_234_567])
def test_long_lengths_read_back(recipe_path: Path, count: int) -> None:
    assert change_recipe(load_recipe(recipe_path, [f"schedule.length={count} steps"])).schedule.length.count == count


@pytest.mark.parametrize("change", ["task.contrast=null", "fusion.depth=3"])
def test_the_default_kind_need_not_be_written(tmp_path: Path, change: str) -> None:
    load_recipe(write(tmp_path, "seed: 1\n"), [change])


def test_a_setting_of_another_kind_is_not_recommended(recipe_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(recipe_path, ["task.kind=classify", "task.contrast.inter_weight=0"])
    assert "did you mean task.contrast?" not in str(caught.value)


def test_a_share_of_an_epoch_is_not_rounded_twice() -> None:
    assert Duration(count=0.29, unit="epochs").steps(samples_per_epoch=100, global_batch=1) == 29


@pytest.mark.parametrize(
    "change",
    ["optimizer.betas=[0.9,2]", "video.augment.crop_scale=[2,1]", "optimizer.base_lr=.inf", "video.std=[0,1,1]"],
)
def test_values_out_of_range_are_refused(recipe_path: Path, change: str) -> None:
    with pytest.raises(UserError):
        load_recipe(recipe_path, [change])


def test_a_key_written_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'seed' is written twice"):
        load_recipe(write(tmp_path, "seed: 1\nseed: 2\n"))


@pytest.mark.parametrize("change", ["seed=on", "trainer.device_batch=true", "optimizer.base_lr=yes"])
def test_a_truth_value_is_no_number(recipe_path: Path, change: str) -> None:
    with pytest.raises(UserError, match="must be a number"):
        load_recipe(recipe_path, [change])


def test_a_modality_twice_is_refused(recipe_path: Path) -> None:
    with pytest.raises(UserError, match="twice"):
        load_recipe(recipe_path, ["task.kind=classify", "task.modalities=[audio,audio]"])


def changes_in(path: Path) -> list[list[str]]:
    """What the comments of a recipe offer as ``key=value``: groups, two spaces or more around them."""
    lines = [line.lstrip("# ") for line in path.read_text().splitlines() if line.startswith("#")]
    parts = [part for line in lines for part in re.split(r"\s{2,}", line)]
    return [shlex.split(part) for part in parts if re.match(r"'?[a-z]+(\.[a-z_]+)+=", part)]


@functools.cache
def pretraining() -> dict[str, Recipe]:
    """Those of the audio family by name."""
    return {recipe.name: recipe for recipe in map(load_recipe, SOUND) if isinstance(recipe.task, PretrainTask)}


OFFERED = [(path, group) for path in SOUND for group in changes_in(path)]


@pytest.mark.parametrize(
    ("path", "changes"), OFFERED, ids=lambda value: value.stem if isinstance(value, Path) else " ".join(value)
)
def test_what_the_comments_of_a_recipe_offer_changes_it(path: Path, changes: list[str]) -> None:
    changed = load_recipe(path, changes)
    for change in changes:
        with contextlib.suppress(UserError):  # what needs the others
            without = load_recipe(path, [one for one in changes if one != change])
            assert without != changed, f"{change} is so anyway"


def test_comments_of_recipes_offer_something() -> None:
    assert len(OFFERED) > 20


@pytest.mark.parametrize("path", SOUND, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_recipes_of_the_audio_family_are_sound_alone_and_begin_where_another_ends(path: Path) -> None:
    recipe = load_recipe(path)
    assert (recipe.modalities, recipe.video, recipe.fusion) == (("audio",), None, None)
    if isinstance(recipe.task, ClassifyTask):
        start = pretraining()[Path(str(recipe.task.weights)).name].audio
        assert recipe.audio is not None
        assert start is not None
        for setting in ("spectrogram", "num_mel_bins", "patch", "stride", "positions", "token_order", "cls_token"):
            assert getattr(recipe.audio, setting) == getattr(start, setting), setting


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("pretrain/audio_mae", 4e-4),
        ("pretrain/mae_ast_patch", 1e-4),
        ("pretrain/msm_mae", 1.5e-4 * 512 / 128),
        ("finetune/audio_mae_as2m", 2e-4),
        ("finetune/audio_mae_as20k", 1.25e-4),
        ("finetune/mae_ast_esc50", 1e-4),
        ("finetune/mae_ast_commands1", 1e-5),
        ("finetune/mae_ast_speaker", 1e-4),
        ("finetune/msm_mae_probe_esc50", 3e-4),
        ("finetune/msm_mae_speaker", 5e-4),
    ],
)
def test_applied_learning_rates_are_the_published_ones(name: str, rate: float) -> None:
    """Some projects give a rate per 256 clips, some per 128, some the applied one."""
    recipe = load_recipe(ROOT / "configs" / f"{name}.yaml")
    assert recipe.trainer.global_batch is not None
    assert recipe.optimizer.base_lr * recipe.trainer.global_batch / 256 == pytest.approx(rate, rel=1e-3)
    assert name.endswith(("commands1", "mae_ast_speaker")) == (recipe.schedule.min_lr == rate)  # constant in s3prl


@pytest.mark.parametrize(
    ("name", "changes", "millions"),
    [
        ("audio_mae", [], 136.34),
        ("audio_mae_global", [], 111.00),
        ("audio_mae", ["audio.encoder.width=384", "audio.encoder.num_heads=6"], 72.28),
        ("mae_ast_frame", [], 99.83),
        ("msm_mae", [], 92.81 - (66 * 768 + 66 * 384) / 1e6),  # published with the tables, which nobody trains
    ],
)
def test_models_have_the_published_number_of_parameters(name: str, changes: list[str], millions: float) -> None:
    with torch.device("meta"):
        model = build_masked(load_recipe(ROOT / "configs" / "pretrain" / f"{name}.yaml", changes))
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.006)


@pytest.mark.parametrize("name", ["audio_mae_compat", "mae_ast_compat"])
def test_every_compatible_choice_is_explained(name: str) -> None:
    path = ROOT / "configs" / "pretrain" / f"{name}.yaml"
    (base,) = re.findall("^base: (.*)$", path.read_text(), re.MULTILINE)
    compatible, right = (
        values_of(load_recipe(path).model_dump()),
        values_of(load_recipe(path.parent / base).model_dump()),
    )
    different = {key for key in compatible if compatible[key] != right.get(key)} - {"name"}
    assert len(different) > 2
    explained = (ROOT / "docs" / "audio_family.md").read_text().partition("## Known defects")[2]
    assert not {key for key in different if f"`{key}`" not in explained}


def values_of(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every value of a recipe by its path; lengths of training whole."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        is_group = isinstance(value, dict) and "unit" not in value
        found |= values_of(value, f"{prefix}{name}.") if is_group else {prefix + name: value}
    return found


def test_every_fold_of_esc50_is_evaluated_on_what_it_was_not_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    ablation = load_ablation(Path("slurm/pipelines/esc50_folds.yaml"))
    assert ablation.seeds == [1, 2, 3, 4, 5]
    assert len(ablation.rows) > 1
    for row in ablation.rows:
        for fold, point in row.runs.items():
            data = load_recipe(point.arguments[0], point.arguments[1:]).data
            assert (data.train, data.evaluation) == (f"shards/esc50_without_fold{fold}", f"shards/esc50_fold{fold}")
