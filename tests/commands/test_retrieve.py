"""``mavil retrieve``: which clips are searched, windows, instances, and what is written."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from mavil.commands.assemble import load_masked
from mavil.commands.embedding import embed_shards, embed_windows
from mavil.config import Recipe
from mavil.recipe import change_recipe
from tests.commands.conftest import Outcome
from tests.data.shard_files import media_clip, write_folder
from tests.support.random_runs import write_run
from tests.support.recipes import tiny_recipe

Mavil = Callable[..., Outcome]
CPU = torch.device("cpu")
SECONDS = {"long": 2.5, "short": 0.9}
SILENT = ("long3", "short1")
KEYS = [f"long{i}" for i in range(5)] + [f"short{i}" for i in range(3)]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five clips that are long enough for two windows, three that are not; one of each kind is silent; two classes."""
    made = {
        key: media_clip(
            key, SECONDS[key[:-1]], sound=key not in SILENT, labels=["even" if int(key[-1]) % 2 == 0 else "odd"]
        )
        for key in KEYS
    }
    return write_folder(tmp_path_factory.mktemp("clips"), [made])


def run_with(tmp_path: Path, clips: Path, **parts: Any) -> Path:
    recipe = tiny_recipe(
        data={"evaluation": str(clips), "num_workers": 0, "max_skip_ratio": 0.5},
        trainer={"device": "cpu", "num_threads": 1, "device_batch": 4},
        **parts,
    )
    audio = recipe.audio and ["audio.mean=-5", "audio.std=4"]
    return write_run(tmp_path / "run", change_recipe(recipe, *(audio or [])))


@pytest.fixture
def run(tmp_path: Path, clips: Path) -> Path:
    return run_with(tmp_path, clips)


def stored(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "retrieval/retrieval.json").read_text())
    return found


def settings_of(run: Path, *changes: str) -> tuple[Any, Recipe]:
    model, recipe = load_masked(run)
    return model, change_recipe(recipe, *changes)


def test_everything_is_written_with_intervals_and_chance(mavil: Mavil, run: Path) -> None:
    found = mavil("retrieve", run, "--bootstrap", 50)
    assert found.code == 0, found.err
    assert "2 of 8 clips left out of the gallery: 2 without sound, 0 without picture" in found.out
    result = stored(run)
    assert result["left_out"] == {"without_audio": 2, "without_video": 0}
    numbers = result["retrieval"]["whole gallery"]["audio_to_video"]
    assert (numbers["gallery_size"], numbers["chance_at_1_percent"]) == (6, pytest.approx(100 / 6))
    assert numbers["mean_rank_low"] <= numbers["mean_rank"] <= numbers["mean_rank_high"]
    assert 0 < numbers["class_map_percent"] <= 100
    back = result["retrieval"]["whole gallery"]["video_to_audio"]
    table = {
        cells[1].strip(): [one.strip() for one in cells[2:5]]
        for line in found.out.splitlines()
        if len(cells := line.split("│")) == 6
    }
    low, high = (numbers[f"recall_at_1_percent_{end}"] for end in ("low", "high"))
    assert table["R@1, %"][0] == f"{numbers['recall_at_1_percent']:.1f} ({low:.1f}–{high:.1f})"
    assert table["R@1, %"][1].startswith(f"{back['recall_at_1_percent']:.1f} (")
    assert [table[row][2] for row in ("R@1, %", "median rank", "mean rank")] == ["16.7", "", "3.5"]
    with (run / "retrieval/retrieval.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["direction"] for row in rows} == {"audio_to_video", "video_to_audio"}
    named = {(row["direction"], row["metric"]): row for row in rows}
    assert float(named["audio_to_video", "mean_rank"]["low"]) == numbers["mean_rank_low"]
    (run / "retrieval/mine.txt").write_text("kept")
    refused = mavil("retrieve", run)
    assert refused.code == 2
    assert "holds something that is no retrieval" in refused.err


def test_some_of_every_class_and_those_of_a_list(mavil: Mavil, run: Path, tmp_path: Path) -> None:
    found = mavil("retrieve", run, "--protocol", "per_class:3", "--bootstrap", 0)
    assert found.code == 0, found.err
    assert "4 clips of 2 classes, at most 3 each; 1 classes have fewer (odd)" in found.out
    assert stored(run)["retrieval"]["3 per class"]["video_to_audio"]["num_queries"] == 4
    listed = tmp_path / "list.csv"
    listed.write_text("video_id,label\nlong0.mp4,x\nclips/short2.mp4,y\nlong3,z\nlong1,x\ngone,y\n")
    found = mavil("retrieve", run, "--protocol", f"list:{listed}", "--bootstrap", 0)
    assert found.code == 0, found.err
    assert "4 of 5 clips of" in found.out
    assert "not there: 1 (gone)" in found.out
    result = stored(run)
    assert result["listed_without_a_modality"] == ["long3"]
    assert result["retrieval"]["list list.csv"]["audio_to_video"]["gallery_size"] == 3
    listed.write_text("long0\n")
    refused = mavil("retrieve", run, "--protocol", f"list:{listed}")
    assert "the gallery has 1 clip, long0" in " ".join(refused.err.split())
    assert stored(run) == result


def test_silent_clips_of_a_test_set_are_misses(mavil: Mavil, run: Path) -> None:
    found = mavil("retrieve", run, "--protocol", "msrvtt", "--bootstrap", 0)
    assert found.code == 0, found.err
    assert "6 of 8 clips have sound; the 2 silent ones count as not found" in found.out
    assert "MSR-VTT 1k test has 1000 clips, here are 8" in found.out
    ways = stored(run)["retrieval"]["MSR-VTT 1k test"]
    assert [ways[way]["gallery_size"] for way in ("audio_to_video", "video_to_audio")] == [8, 6]
    # Ten is more than there are clips: all but the silent ones are found.
    assert [ways[way]["recall_at_10_percent"] for way in ways] == [75, 75]


def test_two_windows_of_a_clip_search_each_other(mavil: Mavil, run: Path, clips: Path) -> None:
    found = mavil("retrieve", run, "--instances", "--bootstrap", 0)
    assert found.code == 0, found.err
    assert "audio to audio: 4 of 8 clips have two windows of 0.66 s that do not overlap" in found.out
    assert "video to video: 5 of 8 clips have two windows of 1 s that do not overlap" in found.out
    result = stored(run)["retrieval"]
    assert result["audio, two windows of a clip"]["first_to_last"]["gallery_size"] == 4
    model, recipe = settings_of(run, "data.evaluation_windows=2")
    windows, counts = embed_windows(model, recipe, clips, CPU)
    assert windows.keys == sorted(KEYS)
    # A silent clip of 0.9 s is no longer than its only window, the picture's; with sound it has two of 0.66 s.
    assert counts.tolist() == [2] * 5 + [2, 1, 2]
    whole = embed_shards(model, recipe, clips, CPU)
    torch.testing.assert_close(windows.video.mean(dim=1), whole.video)
    # The first is where the clip begins: as if it ended with its first window.
    assert not torch.allclose(windows.audio[0, 0], windows.audio[0, 1], atol=1e-3)
    torch.testing.assert_close(windows.video[6, 0], windows.video[6, 1])


def test_a_run_of_one_modality_searches_windows_only(mavil: Mavil, tmp_path: Path, clips: Path) -> None:
    run = run_with(tmp_path, clips, video=None, fusion=None, task={"kind": "pretrain", "contrast": None})
    refused = mavil("retrieve", run)
    assert "has audio only" in refused.err
    found = mavil("retrieve", run, "--instances", "--bootstrap", 0)
    assert found.code == 0, found.err
    assert list(stored(run)["retrieval"]) == ["audio, two windows of a clip"]


def test_the_best_pair_of_windows_counts(mavil: Mavil, run: Path, clips: Path) -> None:
    found = mavil("retrieve", run, "data.evaluation_windows=2", "--windows", "best", "--bootstrap", 0)
    assert found.code == 0, found.err
    model, recipe = settings_of(run, "data.evaluation_windows=2")
    windows, _ = embed_windows(model, recipe, clips, CPU)
    windows = windows.complete()
    audio, video = (F.normalize(side.double(), dim=-1) for side in (windows.audio, windows.video))
    similarity = torch.einsum("iaz,jvz->ijav", audio, video).amax(dim=(2, 3))
    ranks = (similarity > similarity.diagonal()[:, None]).sum(1) + 1
    numbers = stored(run)["retrieval"]["whole gallery"]["audio_to_video"]
    assert numbers["mean_rank"] == pytest.approx(ranks.double().mean().item())
    refused = mavil("retrieve", run, "--windows", "best")
    assert "data.evaluation_windows=4" in refused.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--protocol", "five"], "--protocol five: choose whole, per_class:N"),
        (["--protocol", "per_class:0"], "--protocol per_class:0: choose"),
        (["--protocol", "list:no.csv"], "no.csv: cannot be read"),
        (["one", "two"], "name one place with data"),
    ],
)
def test_mistakes_are_told(mavil: Mavil, run: Path, words: Sequence[str], message: str) -> None:
    refused = mavil("retrieve", run, *words)
    assert refused.code == 2
    assert message in " ".join(refused.err.split())
    assert not (run / "retrieval").exists()
