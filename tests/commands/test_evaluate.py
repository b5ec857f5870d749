"""``mavil evaluate``: a part of what the model knows, clips that lack something, several windows of a clip."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mavil.commands.assemble import load_masked
from mavil.commands.embedding import embed_shards
from mavil.commands.words import split_words
from mavil.engine.metrics.tracker import read_metrics
from mavil.evaluation.predictions import read_predictions
from tests.commands.conftest import Outcome
from tests.data.shard_files import media_clip, write_folder

Mavil = Callable[..., Outcome]
Recipe = Callable[..., Path]
CLASSES = ("high", "low")
WHOLE, DEAF, BLIND = 8, 3, 2


def clips(suffix: str = "") -> dict[str, Any]:
    """A second each; eight whole ones, three without sound, two without picture, of two classes."""

    def made(name: str, count: int, **lacks: bool) -> dict[str, Any]:
        return {
            f"{name}{i}{suffix}": media_clip(f"{name}{i}{suffix}", 1.5, labels=[CLASSES[i % 2]], **lacks)
            for i in range(count)
        }

    return made("whole", WHOLE) | made("deaf", DEAF, sound=False) | made("blind", BLIND, picture=False)


@pytest.fixture(scope="module")
def gaps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("gaps"), [clips()])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    chosen = {key: members for key, members in clips().items() if key.startswith("whole")}
    return write_folder(tmp_path_factory.mktemp("whole"), [chosen])


def data(train: Path, evaluation: Path | None = None, **more: object) -> dict[str, object]:
    return {"train": str(train), "evaluation": str(evaluation or train), "num_workers": 0, **more}


def stored(run: Path, name: str = "evaluation/metrics.json") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / name).read_text())
    return found


def test_a_classifier_is_evaluated_on_a_part_of_what_it_knows(
    mavil: Mavil, recipe: Recipe, tmp_path: Path, gaps: Path
) -> None:
    settings = {"task": {"kind": "classify"}, "data": data(gaps, missing_modality="keep")}
    assert mavil("train", recipe("both", **settings)).code == 0
    run = tmp_path / "runs/both"
    assert mavil("evaluate", run).code == 0
    everything = stored(run)
    assert everything["num_clips"] == everything["num_windows"] == WHOLE + DEAF + BLIND
    assert everything["modalities"] == ["audio", "video"]
    # The same clips, of which only the sound or only the picture can be seen.
    for modality, others in (("audio", DEAF), ("video", BLIND)):
        refused = mavil("evaluate", run, "--modalities", modality)
        assert f"(no_{modality} {others}; data.max_skip_ratio is 0.05)" in refused.err
        found = mavil("evaluate", run, "data.max_skip_ratio=0.5", "--modalities", modality)
        assert found.code == 0, found.err
        assert f"the model was shown {modality} only" in found.out
        assert stored(run)["num_clips"] == WHOLE + DEAF + BLIND - others
        assert stored(run)["modalities"] == [modality]
    assert mavil("evaluate", run, "--modalities", "video,audio").code == 0
    assert stored(run) == everything
    refused = mavil("evaluate", run, "--modalities", "smell")
    assert refused.code == 2
    assert "knows no 'smell'; choose from audio, video" in " ".join(refused.err.split())


def test_windows_are_averaged_and_told(mavil: Mavil, recipe: Recipe, tmp_path: Path, gaps: Path) -> None:
    settings = {"task": {"kind": "classify"}, "data": data(gaps, missing_modality="keep")}
    assert mavil("train", recipe("both", **settings)).code == 0
    found = mavil("evaluate", "runs/both", "data.evaluation_windows=3", "trainer.device_batch=4")
    assert found.code == 0, found.err
    # A window of video is 1 s, of sound 0.66 s: every clip of 1.5 s is longer.
    assert f"{3 * 13} windows used, at most 3 of a clip; each clip's predictions are averaged" in found.out
    assert "3 clips without audio" in found.out
    result = stored(tmp_path / "runs/both")
    assert (result["num_clips"], result["num_windows"], result["evaluation_windows"]) == (13, 39, 3)
    assert set(result["shown"]) == {f"{m}{w}" for m in ("audio", "video", "audio+video") for w in ("", ", one window")}
    assert mavil("evaluate", "runs/both", "trainer.device_batch=4").code == 0
    once = stored(tmp_path / "runs/both")
    assert once["num_windows"] == 13
    # The middle window beside the average is what one window gives.
    assert {f"{name}, one window": found for name, found in once["shown"].items()} == {
        name: found for name, found in result["shown"].items() if name.endswith("one window")
    }
    assert once["shown"]["audio+video"]["calibration"] != result["shown"]["audio+video"]["calibration"]


@pytest.fixture(scope="module")
def other_labels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Shards that the run cannot be judged on: without labels, with unknown ones, with a key twice; and with one class."""
    made: dict[str, Path] = {}
    cases = {"without": [[], []], "unknown": [["high"], ["shrill"]], "one class": [["high"], ["high"]]}
    for name, labels in cases.items():
        members = {f"c{i}": media_clip(f"c{i}", 1.5, labels=own) for i, own in enumerate(labels)}
        made[name] = write_folder(tmp_path_factory.mktemp(name), [members])
    same = [{"c": media_clip(name, 1.5, labels=["high"])} for name in ("one", "other")]
    made["twice"] = write_folder(tmp_path_factory.mktemp("twice"), same)
    return made


def test_everything_is_written_at_once_and_what_is_wrong_is_told_in_one_line(
    mavil: Mavil, recipe: Recipe, tmp_path: Path, gaps: Path, whole: Path, other_labels: dict[str, Path]
) -> None:
    settings = {"task": {"kind": "classify"}, "data": data(gaps, missing_modality="keep")}
    assert mavil("train", recipe("both", **settings)).code == 0
    found = mavil("evaluate", "runs/both", whole, "--bootstrap", 20)
    assert found.code == 0, found.err
    folder = tmp_path / "runs/both/evaluation"
    assert {file.name for file in folder.iterdir()} == {
        *("metrics.json", "metrics.csv", "classes.csv", "predictions.npz", "report.html")
    }
    result, predictions = stored(tmp_path / "runs/both"), read_predictions(folder / "predictions.npz")
    assert (result["data"], result["step"], result["clips_in_data"], result["left_out"]) == (str(whole), 4, WHOLE, {})
    assert predictions.keys == [f"whole{i}" for i in range(WHOLE)]
    assert list(predictions.scores) == ["audio", "video", "audio+video"]
    accuracy = result["shown"]["video"]["metrics"]["accuracy"]
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    (row,) = [row for row in rows if (row["shown"], row["metric"]) == ("video", "accuracy")]
    assert [float(row[name]) for name in ("value", "low", "high")] == [accuracy[n] for n in ("value", "low", "high")]
    classes = list(csv.DictReader((folder / "classes.csv").open()))
    assert [(row["shown"], row["class"]) for row in classes[:2]] == [("audio", "high"), ("audio", "low")]
    assert "Reliability" in (folder / "report.html").read_text()

    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    Path("list.csv").write_text("video_id,label\nwhole0,loud\n")
    Path("other.csv").write_text("a,b\n1,2\n")
    refused = {
        (other_labels["without"],): "evaluation clips have no label, so nothing can be scored on them",
        (other_labels["unknown"],): "1 of its 2 classes are unknown to the 2 of training (shrill",
        (other_labels["twice"],): "1 clips came more than once, first 'c'",
        (whole, whole): "name one place with data",
        (
            whole,
            "--labels",
            "list.csv",
        ): "list.csv: 1 of its 1 classes are none of the 2 classes of the run (first: 'loud')",
        (whole, "--labels", "other.csv"): "other.csv: its first line is 'a,b'; --labels takes VGGSounder's table",
        (whole, "--out", "runs/both/checkpoints"): "holds something that is no evaluation",
    }
    for arguments, message in refused.items():
        outcome = mavil("evaluate", "runs/both", *arguments)
        assert outcome.code == 2, outcome
        assert message in " ".join(outcome.err.split())
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    found = mavil("evaluate", "runs/both", other_labels["one class"], "--bootstrap", 5, "--out", "one")
    assert "audio / video / audio+video: 2 of 2 classes have no positive or no negative clip" in " ".join(
        found.out.split()
    )
    assert stored(tmp_path, "one/metrics.json")["shown"]["audio"]["metrics"]["map"]["value"] is None
    # The scores of each modality alone are those of a run that decodes nothing else.
    assert mavil("evaluate", "runs/both", whole, "--modalities", "audio", "--bootstrap", 0, "--out", "alone").code == 0
    alone = read_predictions(tmp_path / "alone/predictions.npz")
    assert list(alone.scores) == ["audio"]
    torch.testing.assert_close(alone.scores["audio"], predictions.scores["audio"])


@pytest.mark.parametrize(
    ("words", "data", "changes"),
    [
        ([], None, []),
        (["shards/a", "seed=1"], "shards/a", ["seed=1"]),
        (["data.max_skip_ratio=0.5", "https://host/a?sign=b"], "https://host/a?sign=b", ["data.max_skip_ratio=0.5"]),
        (["./a=b"], "./a=b", []),
    ],
)
def test_data_is_what_is_no_setting(words: list[str], data: str | None, changes: list[str]) -> None:
    assert split_words(words) == (data, changes)


def test_vggsounder_is_reported_beside_the_single_label(
    mavil: Mavil, recipe: Recipe, tmp_path: Path, whole: Path
) -> None:
    settings = {"task": {"kind": "classify", "modalities": ["audio"]}, "data": data(whole)}
    assert mavil("train", recipe("sound", **settings)).code == 0
    lines = [f"whole{i},{CLASSES[i % 2]},AV,False,False,True" for i in range(6)]
    header = "video_id,label,modality,background_music,static_image,voice_over"
    Path("list.csv").write_text("\n".join([header, *lines, "whole0,low,A,,,", "gone,low,V,,,"]) + "\n")
    found = mavil("evaluate", "runs/sound", "--labels", "list.csv", "--bootstrap", 20)
    assert found.code == 0, found.err
    assert "6 clips with both predictions and these labels; 1 of the list have no prediction, 2 evaluated" in found.out
    result = stored(tmp_path / "runs/sound")
    assert result["shown"]["audio"]["num_clips"] == WHOLE
    subsets = result["labels"]["metrics"]["audio"]
    assert {name: subset["num_clips"] for name, subset in subsets.items()} == {
        **dict.fromkeys(("all", "audible", "visible", "audible and visible"), 6),
        "audible only": 1,
    }
    assert "modality_gap" in result
    assert "Labels of a list" in (tmp_path / "runs/sound/evaluation/report.html").read_text()


def test_separate_heads_keep_their_outputs(mavil: Mavil, recipe: Recipe, tmp_path: Path, gaps: Path) -> None:
    settings = {"fusion": None, "task": {"kind": "classify", "heads": "separate"}}
    assert mavil("train", recipe("heads", **settings, data=data(gaps, missing_modality="keep"))).code == 0
    assert mavil("evaluate", "runs/heads", "--bootstrap", 0).code == 0
    shown = stored(tmp_path / "runs/heads")["shown"]
    assert {name: one["num_clips"] for name, one in shown.items()} == {"audio": WHOLE + BLIND, "video": WHOLE + DEAF}
    last = [line["metrics"] for line in read_metrics(tmp_path / "runs/heads")][-1]
    assert {name: one["metrics"]["accuracy"]["value"] for name, one in shown.items()} == {
        name: last[f"evaluation/{name}/accuracy"] for name in ("audio", "video")
    }
    alone = ("data.max_skip_ratio=0.5", "--modalities", "audio", "--bootstrap", 0)
    assert mavil("evaluate", "runs/heads", *alone).code == 0
    assert list(read_predictions(tmp_path / "runs/heads/evaluation/predictions.npz").scores) == ["audio"]


def test_retrieval_leaves_incomplete_clips_out_and_says_so(
    mavil: Mavil, recipe: Recipe, tmp_path: Path, gaps: Path, whole: Path
) -> None:
    assert mavil("train", recipe("stage1", data=data(whole))).code == 0
    run = tmp_path / "runs/stage1"
    assert mavil("retrieve", run).code == 0
    expected = stored(run, "retrieval/retrieval.json")
    assert expected["left_out"] == {"without_audio": 0, "without_video": 0}
    found = mavil("retrieve", run, gaps, "--cues", "loudness", "--train-shards", gaps)
    assert found.code == 0, found.err
    assert "5 of 13 clips left out of the gallery: 3 without sound, 2 without picture" in found.out
    result = stored(run, "retrieval/retrieval.json")
    assert result["left_out"] == {"without_audio": 3, "without_video": 2}
    assert result["retrieval"] == expected["retrieval"]
    assert [cue["cue"] for cue in result["cues"]] == ["loudness"]


def test_embeddings_of_incomplete_clips_are_of_what_they_have(
    mavil: Mavil, recipe: Recipe, tmp_path: Path, gaps: Path, whole: Path
) -> None:
    assert mavil("train", recipe("stage1", data=data(whole))).code == 0
    model, settings = load_masked(tmp_path / "runs/stage1")
    found = embed_shards(model, settings, gaps, torch.device("cpu"))
    assert found.keys == sorted(clips())
    assert [key for key, flag in zip(found.keys, found.audio_present, strict=True) if not flag] == [
        f"deaf{i}" for i in range(DEAF)
    ]
    assert [key for key, flag in zip(found.keys, found.video_present, strict=True) if not flag] == [
        f"blind{i}" for i in range(BLIND)
    ]
    assert [level != level for level in found.loudness] == (~found.audio_present).tolist()  # NaN
    alone = embed_shards(model, settings, whole, torch.device("cpu"))
    complete = found.complete()
    assert complete.keys == alone.keys
    assert complete.loudness == alone.loudness
    torch.testing.assert_close(complete.audio, alone.audio)
    torch.testing.assert_close(complete.video, alone.video)
    (tmp_path / "deaf").mkdir()
    nobody = write_folder(tmp_path / "deaf", [{k: v for k, v in clips().items() if k.startswith("deaf")}])
    refused = mavil("retrieve", "runs/stage1", nobody)
    assert refused.code == 2
    assert "none of 3 clips has audio and video" in " ".join(refused.err.split())


def test_a_pretrained_run_is_evaluated_on_windows_of_clips_with_gaps(
    mavil: Mavil, recipe: Recipe, tmp_path: Path, gaps: Path
) -> None:
    assert mavil("train", recipe("stage1", data=data(gaps, missing_modality="keep"))).code == 0
    run = tmp_path / "runs/stage1"
    found = mavil("evaluate", run, "data.evaluation_windows=2")
    assert found.code == 0, found.err
    result = stored(run)
    assert (result["num_windows"], result["gallery_size"]) == (2 * 13, WHOLE)
    found = mavil("evaluate", run, "data.max_skip_ratio=0.5", "--modalities", "audio")
    assert found.code == 0, found.err
    assert "gallery_size" not in stored(run)
    assert "video_reconstruction" not in stored(run)


def test_a_run_with_one_modality_has_embeddings_too(
    mavil: Mavil, recipe: Recipe, tmp_path: Path, gaps: Path, whole: Path
) -> None:
    alone = {"fusion": None, "task": {"kind": "pretrain", "contrast": None}, "data": data(whole, max_skip_ratio=0.5)}
    assert mavil("train", recipe("pictures", audio=None, **alone)).code == 0
    model, settings = load_masked(tmp_path / "runs/pictures")
    found = embed_shards(model, settings, gaps, torch.device("cpu"))
    # Those without picture have nothing that the model knows.
    assert len(found.keys) == WHOLE + DEAF
    assert found.audio.shape == (WHOLE + DEAF, 0)
    assert not found.audio_present.any()
    assert len(found.complete(["video"]).keys) == WHOLE + DEAF
    assert all(level != level for level in found.loudness)
