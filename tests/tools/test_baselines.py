"""Baselines beside a recipe: lists without a leak, statistics without padding, and a CNN on the recipe's own clips."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import wavfile

from mavil.commands.assemble import read_recipe
from mavil.commands.inputs import loader_for, prepare_for
from mavil.config import Recipe
from mavil.data.shards.pack import make_shards
from mavil.data.sources.listing import SourceOptions
from mavil.data.sources.read import read_source
from mavil.data.spectrogram import log_mel, mel_filter_bank
from mavil.evaluation.predictions import read_predictions
from mavil.recipe import dump_recipe
from mavil.structs import SAMPLE_RATE, Batch, UserError
from tests.support.recipes import tiny_recipe
from tests.tools.conftest import Tool
from tools.baselines.cnn import SmallCNN, classes_of, train_cnn
from tools.baselines.log_mel_statistics import statistics_of
from tools.baselines.results import Counts, markdown, pooled
from tools.baselines.splits import pieces_of, write_splits

HERTZ = {"low": 300.0, "high": 5000.0}
FOUR = ("a", "b", "c", "d")


def write_folder(folder: Path, rows: list[dict[str, str]]) -> None:
    """Noisy tones, one per row, and the manifest that lists them."""
    folder.mkdir(parents=True)
    for number, row in enumerate(rows):
        time = np.arange(round(float(row["duration"]) * SAMPLE_RATE)) / SAMPLE_RATE
        noise = np.random.default_rng(number).standard_normal(len(time))
        sound = 300 * noise + 6000 * np.sin(2 * np.pi * HERTZ[row.get("label", "low")] * time + number)
        wavfile.write(folder / row["path"], SAMPLE_RATE, sound.astype(np.int16))
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Two clips per class in each fold, and one per class of each speaker."""
    folder = tmp_path / "clips"
    write_folder(folder / "berklee", [{"path": "piano.wav", "duration": "3.2"}, {"path": "pop.wav", "duration": "0.3"}])
    sounds = [
        {"path": f"{fold}-{label}-{take}.wav", "label": label, "fold": str(fold), "duration": "0.7"}
        for fold in (1, 2, 3, 4)
        for label in HERTZ
        for take in (0, 1)
    ]
    write_folder(folder / "esc10", sounds)
    digits = [
        {"path": f"{label}_{speaker}.wav", "label": label, "speaker": speaker, "duration": "0.4"}
        for speaker in FOUR
        for label in HERTZ
    ]
    write_folder(folder / "fsdd", digits)
    return folder


def paths_in(path: Path) -> list[str]:
    with path.open(newline="") as file:
        return [row["path"] for row in csv.DictReader(file)]


def test_no_test_clip_is_pre_trained_or_trained_on(clips: Path, tmp_path: Path) -> None:
    lists = tmp_path / "lists"
    assert len(write_splits(clips, lists)) == 25
    for name, folder in (("esc10", "esc10"), ("digits", "fsdd")):
        every = {f"../clips/{folder}/{path}" for path in paths_in(clips / folder / "manifest.csv")}
        tested: list[str] = []
        for split, speaker in zip((1, 2, 3, 4), FOUR, strict=True):
            train, test = (paths_in(lists / f"{name}_{part}_{split}.csv") for part in ("train", "test"))
            assert set(train) | set(test) == every
            assert not set(test) & ({*train} | {*paths_in(lists / f"pretrain_{split}.csv")})
            assert set(train) <= set(paths_in(lists / f"pretrain_{split}.csv"))
            assert all((f"/{split}-" in path) or (f"_{speaker}." in path) for path in test)
            tested += test
        assert len(tested) == len(every)
        # What learning rates are chosen on says nothing about the test clips of split 1.
        first = set(paths_in(lists / f"{name}_test_1.csv"))
        train, test = (set(paths_in(lists / f"{name}_{part}_choice.csv")) for part in ("train", "test"))
        assert not train & test
        assert not (train | test) & first
        assert train | test | first == every
    assert all(Path(lists, path).is_file() for path in paths_in(lists / "pretrain_1.csv"))


def test_pieces_cover_a_clip_but_for_a_short_rest() -> None:
    whole, *pieces = pieces_of([{"path": "a", "duration": "2.5"}, {"path": "b", "duration": "5.4"}])
    assert whole == {"path": "a", "start": "", "end": ""}
    assert [(piece["start"], piece["end"]) for piece in pieces] == [("0", "2.5"), ("2.5", "5")]
    assert len(pieces_of([{"path": "b", "duration": "5.5"}])) == 3


def test_manifests_that_do_not_fit_are_refused_in_a_line(clips: Path, tmp_path: Path) -> None:
    path = clips / "fsdd" / "manifest.csv"
    path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if "_d." not in line))
    with pytest.raises(UserError, match=r"'speaker' has 3 values \(a, b, c\), there must be 4"):
        write_splits(clips, tmp_path / "lists")
    path.write_text("path,label,duration\nx,low,1\n")
    with pytest.raises(UserError, match="no column 'speaker'"):
        write_splits(clips, tmp_path / "lists")
    path.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        write_splits(clips, tmp_path / "lists")
    assert not (tmp_path / "lists").exists()


def sound_recipe(**parts: Any) -> Recipe:
    audio = {**tiny_recipe().model_dump()["audio"], "mean": -4.0, "std": 4.0}
    task = {"kind": "classify", "modalities": ["audio"]}
    return tiny_recipe(**{"audio": audio, "video": None, "fusion": None, "task": task, **parts})


def test_statistics_are_those_of_a_slow_loop_and_see_no_padding() -> None:
    recipe = sound_recipe()
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([16000, 4000, 300])  # longer than the 64 steps that are seen, padded, shorter than one step
    waveforms = torch.randn(3, 16000, generator=generator)
    for row, length in enumerate(lengths):
        waveforms[row, length:] = 0
    found = statistics_of(Batch(["a", "b", "c"], torch.arange(3), waveforms, lengths), recipe)
    bank = mel_filter_bank(32)
    for row, steps in ((0, 64), (1, 23)):
        samples = (steps - 1) * 160 + 400
        alone = log_mel(waveforms[row : row + 1, :samples], torch.tensor([samples]), bank)[0].double()
        assert alone.shape == (steps, 32)
        for bin_ in range(32):
            values = [alone[step, bin_].item() for step in range(steps)]
            mean = sum(values) / steps
            deviation = (sum((value - mean) ** 2 for value in values) / steps) ** 0.5
            assert found[row, bin_].item() == pytest.approx(mean, abs=1e-5)
            assert found[row, 32 + bin_].item() == pytest.approx(deviation, abs=1e-5)
    assert not found[2].any()


def test_the_cnn_looks_at_every_clip_by_itself_and_at_all_of_it() -> None:
    torch.manual_seed(0)
    model = SmallCNN(3).eval()
    spectrograms = torch.randn(4, 1, 64, 32, requires_grad=True)
    logits = model(spectrograms)
    assert logits.shape == (4, 3)
    assert torch.allclose(logits[1:2], model(spectrograms[1:2]), atol=1e-5)
    logits.sum().backward()
    assert (spectrograms.grad.abs().sum(dim=(1, 3)) > 0).all()


def test_other_kinds_of_recipes_are_refused() -> None:
    several = {"kind": "classify", "modalities": ["audio"], "loss": "binary_cross_entropy"}
    for task in ({"kind": "pretrain", "contrast": None}, several):
        with pytest.raises(UserError, match="the baselines take recipes with"):
            classes_of(sound_recipe(task=task))


COUNTS: Counts = {
    "pretrained": {0: {1: (3, 4), 2: (1, 4)}, 1: {1: (4, 4), 2: (2, 4)}},
    "random": {0: {1: (2, 4), 2: (1, 4)}, 1: {1: (1, 4), 2: (1, 4)}},
}


def test_clips_of_all_splits_count_alike_and_seeds_are_paired() -> None:
    uneven: Counts = {"one": {0: {1: (1, 1), 2: (0, 3)}}}
    assert pooled(uneven) == {"one": {0: 25.0}}
    lines = markdown("esc10", COUNTS, "pretrained").splitlines()
    assert lines[0].startswith("| esc10, 8 clips |")
    # 50 and 75 % against 37.5 and 25 %: differences of -12.5 and -50.
    assert lines[2] == "| pretrained | 62.5 ± 17.7 |  | 50.0, 75.0 | 87.5 | 37.5 |"
    assert lines[3] == "| random | 31.2 ± 8.8 | -31.2 ± 18.8 | 37.5, 25.0 | 37.5 | 25.0 |"


def test_a_missing_split_is_told_and_not_averaged_over() -> None:
    with pytest.raises(UserError, match="random, seed 1: split 2 is missing"):
        pooled({**COUNTS, "random": {0: COUNTS["random"][0], 1: {1: (1, 4)}}})
    with pytest.raises(UserError, match="random, seed 1: split 2 was scored on 3 clips, elsewhere on 4"):
        pooled({**COUNTS, "random": {0: COUNTS["random"][0], 1: {1: (1, 4), 2: (1, 3)}}})
    with pytest.raises(UserError, match="no method 'cnn'"):
        markdown("esc10", COUNTS, "cnn")


@pytest.fixture
def recipe_file(clips: Path, tmp_path: Path) -> Path:
    """A recipe of 40 steps, and the shards of two splits for it."""
    write_splits(clips, tmp_path / "lists")
    for split in (1, 2):
        for part in ("train", "test"):
            name = f"esc10_{part}_{split}"
            listing = read_source(tmp_path / "lists" / f"{name}.csv", SourceOptions(format="csv"))
            make_shards(listing, tmp_path / "shards" / name, require="audio", show_progress=False)
    recipe = sound_recipe(
        optimizer={"base_lr": 8e-2, "betas": (0.9, 0.999)},
        schedule={"length": "40 steps", "warmup": "2 steps"},
        trainer={"device_batch": 6, "device": "cpu", "num_threads": 1},
        data={"num_workers": 0, "cache_gib": 0.1},
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(recipe))
    return path


def test_the_whole_way_from_lists_to_the_table(
    recipe_file: Path, tmp_path: Path, tool: Callable[[str], Tool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = ["data.train=shards/esc10_train_{split}", "data.evaluation=shards/esc10_test_{split}"]
    which = ["--splits", "1,2", "--seeds", "0"]
    baseline = tool("baseline")
    for method in ("cnn", "statistics"):
        code, out, err = baseline(method, "recipe.yaml", *data, *which, "--out", f"runs/esc10_{method}")
        assert (code, err) == (0, "")
        assert "_2/seed_0: accuracy 100.0 % of 4 clips" in out
    kept = read_predictions(tmp_path / "runs/esc10_cnn_2/seed_0/evaluation/predictions.npz")
    assert kept.classes == ("high", "low")
    assert kept.facts["changes"] == ["data.train=shards/esc10_train_2", "data.evaluation=shards/esc10_test_2"]
    assert kept.facts["steps"] == 40
    _, out, _ = baseline("table", "runs", "--baseline", "statistics")
    assert "| esc10, 8 clips |" in out
    assert "| cnn | 100.0 | +0.0 | 100.0 | 100.0 | 100.0 |" in out
    code, _, err = baseline("table", "shards")
    assert (code, err.count("\n")) == (2, 1)


def test_the_cnn_is_trained_on_what_the_recipe_would_be(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = recipe_file.parent / "shards"
    data = [f"data.train={shards}/esc10_train_1", f"data.evaluation={shards}/esc10_test_1"]
    recipe = read_recipe(recipe_file, [*data, "schedule.length=12 steps"])
    seen: list[torch.Tensor] = []
    forward = SmallCNN.forward

    def watched(self: SmallCNN, spectrograms: torch.Tensor) -> torch.Tensor:
        if self.training:
            seen.append(spectrograms)
        return forward(self, spectrograms)

    monkeypatch.setattr(SmallCNN, "forward", watched)
    first, again = train_cnn(recipe), train_cnn(recipe)
    assert torch.equal(first.scores, again.scores)
    assert len(seen) == 2 * 12
    batches = iter(loader_for(recipe, "train", classes_of(recipe), training=True))
    prepare = prepare_for(recipe, torch.device("cpu"), training=True)
    for step in range(12):
        assert torch.equal(seen[step], prepare(next(batches)).audio)
