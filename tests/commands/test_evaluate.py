"""``mavil evaluate``: a part of what the model knows, clips that lack something, several windows of a clip."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mavil.commands.assemble import load_masked
from mavil.commands.embedding import embed_shards
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


def stored(run: Path, name: str = "evaluation.json") -> dict[str, Any]:
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
    assert "9 windows without audio" in found.out
    result = stored(tmp_path / "runs/both")
    assert (result["num_clips"], result["num_windows"], result["evaluation_windows"]) == (13, 39, 3)
    assert mavil("evaluate", "runs/both").code == 0
    assert stored(tmp_path / "runs/both")["num_windows"] == 13


def test_retrieval_leaves_incomplete_clips_out_and_says_so(
    mavil: Mavil, recipe: Recipe, tmp_path: Path, gaps: Path, whole: Path
) -> None:
    assert mavil("train", recipe("stage1", data=data(whole))).code == 0
    run = tmp_path / "runs/stage1"
    assert mavil("retrieve", run).code == 0
    expected = stored(run, "retrieval.json")
    assert expected["left_out"] == {"without_audio": 0, "without_video": 0}
    found = mavil("retrieve", run, "--shards", gaps, "--cues", "loudness", "--train-shards", gaps)
    assert found.code == 0, found.err
    assert "5 of 13 clips left out of the gallery: 3 without sound, 2 without picture" in found.out
    result = stored(run, "retrieval.json")
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
    refused = mavil("retrieve", "runs/stage1", "--shards", nobody)
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
