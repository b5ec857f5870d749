"""``mavil shards stats``, and that every run trains with numbers that its ``config.yaml`` has, wherever they come from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mavil.commands.demo_clips import measure_sound
from mavil.commands.inputs import prepare_for
from mavil.commands.normalisation import AUDIOSET_MEAN, AUDIOSET_STD, audio_statistics, complete_recipe
from mavil.config import Recipe
from mavil.data.shards.index import read_index, write_index
from mavil.data.shards.measure import measure_statistics
from mavil.data.shards.statistics import STATISTICS, LogMel, read_statistics, write_measurement
from mavil.recipe import change_recipe, load_recipe
from mavil.structs import UserError
from tests.commands.conftest import NUM_TRAIN, Outcome
from tests.support.recipes import tiny_recipe

Mavil = Callable[..., Outcome]
Write = Callable[..., Path]
BINS = 32
"""Of the tests' recipes."""

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def train(shards: Path, tmp_path: Path) -> Path:
    """Training shards of this test alone, not measured yet."""
    return Path(shutil.copytree(shards / "train", tmp_path / "train"))


def over(train: Path, **data: object) -> dict[str, Any]:
    return {"train": str(train), "num_workers": 0, **data}


def numbers_of(run: Path) -> tuple[float, float]:
    audio = yaml.safe_load((run / "config.yaml").read_text())["audio"]
    return audio["mean"], audio["std"]


def pretend(train: Path, mean: float, std: float, bins: int = BINS, kind: str = "kaldi_hann") -> None:
    """Statistics nobody measured."""
    numbers = (bins, mean, std, NUM_TRAIN, 96.0, 0, 4.0, 4.0, {"16000": 24}, {})
    write_measurement(read_index(train), LogMel(*numbers, spectrogram=kind))


def test_the_verb_prints_what_it_writes(mavil: Mavil, train: Path) -> None:
    shown = mavil("shards", "stats", train, "--mel-bins", BINS, "--workers", 0)
    assert shown.code == 0, shown.err
    found = read_statistics(train, read_index(train))
    assert found is not None
    measured = found.log_mel["kaldi_hann", BINS]
    assert measured.num_clips == NUM_TRAIN
    for text in (
        f"{measured.mean:.7f}",
        f"{measured.std:.7f}",
        "training finds this by itself",
        "bursts",
        "16000 Hz 24",
    ):
        assert text in shown.out


def test_the_verb_measures_a_draw(mavil: Mavil, train: Path) -> None:
    shown = mavil("shards", "stats", train, "--clips", 5, "--seed", 3, "--workers", 0)
    assert "5 clips, seed 3" in shown.out
    assert json.loads((train / STATISTICS).read_text())["log_mel"][0]["num_mel_bins"] == 128
    again = mavil("shards", "stats", train, "--clips", 5, "--spectrogram", "slaney", "--mel-bins", 80, "--workers", 0)
    assert "slaney, 80 mel bins" in again.out
    kinds = [entry["spectrogram"] for entry in json.loads((train / STATISTICS).read_text())["log_mel"]]
    assert kinds == ["kaldi_hann", "slaney"]
    missing = mavil("shards", "stats", "nowhere")
    assert (missing.code, missing.err.count("\n")) == (2, 1)


def test_the_verb_names_commonest_rarest_and_missing_classes(mavil: Mavil, train: Path) -> None:
    index = read_index(train)
    counts = {f"class{n:02d}": 100 - n for n in range(30)}
    classes = (*sorted(counts), "never", "[odd]")
    write_index(type(index)(**{**vars(index), "classes": classes, "label_counts": counts}))
    out = mavil("shards", "stats", train, "--clips", 1, "--workers", 0).out
    assert [f"class{n:02d}" in out for n in range(30)] == [n < 10 or n >= 20 for n in range(30)]
    assert "2 classes without a clip: never; [odd]" in out


def test_training_finds_measured_numbers_and_keeps_them(
    mavil: Mavil, recipe: Write, train: Path, tmp_path: Path
) -> None:
    measure_statistics(train, num_mel_bins=BINS, show_progress=False)
    found = read_statistics(train, read_index(train))
    assert found is not None
    path = recipe("stage1", steps=6, data=over(train))
    started = mavil("train", path, "--out", "run", "trainer.keep_checkpoints=9")
    assert started.code == 0, started.err
    expected = found.log_mel["kaldi_hann", BINS].mean, found.log_mel["kaldi_hann", BINS].std
    assert numbers_of(tmp_path / "run") == expected
    assert f"measured on {NUM_TRAIN} clips" in (tmp_path / "run/log.rank0.txt").read_text()
    assert "AudioSet" not in started.out
    # The shards are measured anew with another result while the run has stopped half-way.
    (tmp_path / "run/checkpoints/step_00000006").rename(tmp_path / "lost")
    pretend(train, -1.0, 2.0)
    resumed = mavil("train", path, "--out", "run", "trainer.keep_checkpoints=9", "--resume")
    assert resumed.code == 0, resumed.err
    assert numbers_of(tmp_path / "run") == expected
    assert mavil("train", path, "--out", "new").code == 0
    assert numbers_of(tmp_path / "new") == (-1.0, 2.0)


def test_training_without_statistics_takes_audiosets_and_says_so(
    mavil: Mavil, recipe: Write, train: Path, tmp_path: Path
) -> None:
    path = recipe("stage1", data=over(train))
    shown = mavil("train", path)
    assert numbers_of(tmp_path / "runs/stage1") == (AUDIOSET_MEAN, AUDIOSET_STD) == (-4.2677393, 4.5689974)
    line = f"no stats.json of the training shards; measure with: mavil shards stats {train} --mel-bins {BINS}"
    assert [line in text for text in shown.out.splitlines()].count(True) == 1
    pretend(train, -1.0, 2.0, bins=128)
    told = "has none for kaldi_hann with 32 mel bins, only for kaldi_hann with 128 mel bins"
    assert told in mavil("train", path, "--out", "other").out


@pytest.mark.parametrize(
    ("kind", "bins", "default", "told"),
    [
        ("kaldi_hann", 128, (AUDIOSET_MEAN, AUDIOSET_STD), "AudioSet's, for stats.json"),
        ("kaldi_povey", 128, (AUDIOSET_MEAN, AUDIOSET_STD), "AudioSet's of kaldi_hann with 128 mel bins instead of"),
        ("slaney", 80, (-7.1, 4.2), "AudioSet's, for stats.json"),
        ("slaney", 64, (-7.1, 4.2), "AudioSet's of slaney with 80 mel bins instead of slaney with 64 mel bins"),
    ],
)
def test_statistics_of_another_front_end_are_not_trained_with(
    train: Path, kind: str, bins: int, default: tuple[float, float], told: str
) -> None:
    """Not silently: the line says whose numbers are taken instead, what there is, and how to measure."""
    for other_kind in {"kaldi_hann", "kaldi_povey", "slaney"} - {kind}:
        pretend(train, -1.0, 2.0, bins, other_kind)
    pretend(train, -1.0, 2.0, 16, kind)
    recipe = change_recipe(tiny_recipe(data=over(train)), f"audio.spectrogram={kind}", f"audio.num_mel_bins={bins}")
    completed = complete_recipe(recipe, read_index(train))
    assert audio_statistics(completed.recipe) == default
    assert completed.origin is not None
    option = "" if kind == "kaldi_hann" else f"--spectrogram {kind} "
    for words in (
        told,
        f"has none for {kind} with {bins} mel bins, only for kaldi_",
        f"measure with: mavil shards stats {train} {option}--mel-bins {bins}",
    ):
        assert words in completed.origin
    pretend(train, -3.0, 1.0, bins, kind)
    completed = complete_recipe(recipe, read_index(train))
    assert audio_statistics(completed.recipe) == (-3.0, 1.0)
    assert completed.origin == f"measured on {NUM_TRAIN} clips of {train}"


def test_statistics_of_other_shards_are_not_trained_with(
    mavil: Mavil, recipe: Write, train: Path, shards: Path, tmp_path: Path
) -> None:
    pretend(train, -1.0, 2.0)
    (train / "index.json").unlink()
    for path in (shards / "gallery").iterdir():
        shutil.copy(path, train / path.name)
    assert mavil("train", recipe("stage1", data=over(train))).code == 0
    assert numbers_of(tmp_path / "runs/stage1") == (AUDIOSET_MEAN, AUDIOSET_STD)


def test_numbers_in_the_recipe_win(train: Path) -> None:
    pretend(train, -1.0, 2.0)
    recipe = tiny_recipe(data=over(train))
    chosen = change_recipe(recipe, "audio.mean=-7.5", "audio.std=3.5")
    assert complete_recipe(chosen, read_index(train)).recipe == chosen
    assert audio_statistics(complete_recipe(recipe, read_index(train)).recipe) == (-1.0, 2.0)


@pytest.mark.parametrize("change", ["audio.mean=-5", "audio.std=3"])
def test_half_of_the_statistics_is_refused(change: str) -> None:
    with pytest.raises(UserError, match="give both, or neither"):
        change_recipe(tiny_recipe(), change)


@pytest.mark.parametrize("changes", [("audio.mean=true", "audio.std=2"), ("audio.mean=-5", "audio.std=0")])
def test_statistics_are_numbers_and_the_deviation_is_positive(changes: tuple[str, str]) -> None:
    assert audio_statistics(change_recipe(tiny_recipe(), "audio.mean=-5", "audio.std=2")) == (-5.0, 2.0)
    with pytest.raises(UserError):
        change_recipe(tiny_recipe(), *changes)


def test_a_recipe_without_sound_needs_none() -> None:
    video = {"kind": "classify", "modalities": ["video"]}
    for recipe in (
        tiny_recipe(task=video),
        tiny_recipe(audio=None, fusion=None, task={"kind": "pretrain", "contrast": None}),
    ):
        completed = complete_recipe(recipe, None)
        assert completed.recipe == recipe
        assert completed.origin is None
        prepare_for(recipe, torch.device("cpu"), training=True)


def test_a_front_end_without_numbers_is_refused() -> None:
    with pytest.raises(UserError, match=r"audio\.mean and audio\.std are not known"):
        prepare_for(tiny_recipe(), torch.device("cpu"), training=False)
    front_end = prepare_for(
        change_recipe(tiny_recipe(), "audio.mean=-7", "audio.std=3"), torch.device("cpu"), training=True
    )
    assert front_end.audio is not None
    assert (front_end.audio.mean, front_end.audio.std) == (-7, 3)


def test_every_audio_setting_reaches_the_front_end() -> None:
    audio = {"spectrogram": "slaney", "std_factor": 1.0, "batch_statistics": "evaluation", "mean": -7.0, "std": 3.0}
    augment = {"roll": False, "gain": True, "noise": True, "masked_steps": 7, "masked_mel_bins": 5}
    changes = [f"audio.{key}={value}" for key, value in audio.items()]
    changes += [f"audio.augment.{key}={value}" for key, value in augment.items()]
    task = {"kind": "classify", "mixup": {"probability": 0.25, "beta": 3.0}}
    recipe = change_recipe(tiny_recipe(task=task), *changes)
    prepare = prepare_for(recipe, torch.device("cpu"), training=True)
    assert prepare.audio is not None
    assert {key: getattr(prepare.audio, key) for key in (*audio, *augment)} == {**audio, **augment}
    assert (prepare.mixup_probability, prepare.mixup_beta) == (0.25, 3.0)


def test_inspect_shows_the_numbers_and_where_they_come_from(mavil: Mavil, recipe: Write, train: Path) -> None:
    path = recipe("stage1", data=over(train))
    assert "AudioSet's of kaldi_hann with 128 mel bins instead of" in mavil("inspect", path).out
    pretend(train, -1.25, 2.0)
    shown = mavil("inspect", path)
    assert f"log-mel mean -1.25, deviation 2.0: measured on {NUM_TRAIN} clips of {train}" in shown.out
    assert "\n  mean: -1.25\n" in shown.out
    tree = json.loads(mavil("inspect", path, "--json").out)
    assert tree["audio_statistics"] == {
        "mean": -1.25,
        "std": 2.0,
        "origin": f"measured on {NUM_TRAIN} clips of {train}",
    }
    assert "are not there to look at" in mavil("inspect", path, "data.train=gone").out


def test_the_demo_measures_what_its_recipes_leave_open(train: Path) -> None:
    def front_ends() -> set[tuple[str, int]]:
        found = read_statistics(train, read_index(train))
        return set(found.log_mel) if found else set()

    recipe = tiny_recipe()
    without_sound = tiny_recipe(
        audio={"num_mel_bins": 64}, task={"kind": "classify", "modalities": ["video"]}, fusion=None
    )
    measure_sound(train, [change_recipe(recipe, "audio.mean=-1", "audio.std=2"), without_sound])
    assert front_ends() == set()
    fewer = change_recipe(recipe, "audio.num_mel_bins=16", "audio.mask_ratio=0.5")
    measure_sound(train, [recipe, recipe, fewer, change_recipe(recipe, "audio.spectrogram=slaney")])
    assert front_ends() == {("kaldi_hann", 16), ("kaldi_hann", BINS), ("slaney", BINS)}
    pretend(train, -1.0, 2.0)
    measure_sound(train, [recipe])
    assert audio_statistics(complete_recipe(recipe, read_index(train)).recipe) == (-1.0, 2.0)


def test_recipes_that_are_run_here_leave_the_numbers_to_the_shards() -> None:
    paths = [path for room in ("tiny", "av_digits", "pretrain") for path in (CONFIGS / room).glob("*.yaml")]
    for path in paths:
        if path.parent.name == "pretrain" and (path.stem == "cav_mae" or path.stem.endswith("_compat")):
            continue  # whose public weights were trained with these numbers
        recipe: Recipe = load_recipe(path)
        assert recipe.audio is not None
        assert recipe.audio.mean is None, path
