"""Shards, both stages, fine-tuning, probe, evaluation, retrieval: through the real command line on real mp4 files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch

from mavil.engine.checkpoints.reading import load_checkpoint, load_weights
from mavil.engine.metrics.tracker import read_metrics
from tests.commands.conftest import NUM_GALLERY, Outcome

Mavil = Callable[..., Outcome]
Recipe = Callable[..., Path]


def test_from_stage_one_to_retrieval(mavil: Mavil, recipe: Recipe, tmp_path: Path) -> None:
    assert mavil("train", recipe("stage1")).code == 0
    first = {name for name in read_metrics(tmp_path / "runs/stage1")[0]["metrics"] if name.startswith("loss/")}
    assert first == {
        f"loss/{term}"
        for term in (
            "total",
            "audio_reconstruction",
            "video_reconstruction",
            "inter_contrast",
            "audio_intra_contrast",
            "video_intra_contrast",
        )
    }
    teacher = {"kind": "pretrain", "teacher": {"run": "runs/stage1"}}
    assert mavil("train", recipe("stage2", task=teacher)).code == 0
    assert "loss/audio_teacher" in read_metrics(tmp_path / "runs/stage2")[0]["metrics"]
    found = mavil("retrieve", "runs/stage2", "--within", "onset_seconds", "--cues", "pitch_hz,loudness")
    assert found.code == 0, found.err
    stored = json.loads((tmp_path / "runs/stage2/retrieval/retrieval.json").read_text())
    assert stored["retrieval"]["whole gallery"]["audio_to_video"]["gallery_size"] == NUM_GALLERY
    assert stored["retrieval"]["within one onset_seconds"]["video_to_audio"]["gallery_size"] < NUM_GALLERY
    assert [cue["cue"] for cue in stored["cues"]] == ["pitch_hz", "loudness"]
    assert mavil("evaluate", "runs/stage2").code == 0


def test_fine_tuning_starts_from_the_pretrained_encoders(mavil: Mavil, recipe: Recipe, tmp_path: Path) -> None:
    mavil("train", recipe("stage1"))
    pretrained = load_weights(tmp_path / "runs/stage1")
    for modalities in (["audio"], ["video"], ["audio", "video"]):
        task = {"kind": "classify", "modalities": modalities, "weights": "runs/stage1"}
        name = "probe_" + "_".join(modalities)
        assert mavil("train", recipe(name, task={**task, "frozen": True})).code == 0
        probe = load_weights(tmp_path / "runs" / name)
        for modality in modalities:
            part = f"{modality}_encoder"
            assert all(torch.equal(value, probe[part][key]) for key, value in pretrained[part].items())
        name = "finetune_" + "_".join(modalities)
        assert mavil("train", recipe(name, task=task)).code == 0
        tuned = load_weights(tmp_path / "runs" / name)[f"{modalities[0]}_encoder"]
        assert not torch.equal(tuned["cls_token"], pretrained[f"{modalities[0]}_encoder"]["cls_token"])
    assert (tmp_path / "runs/finetune_audio/classes.txt").read_text().split()[0] == "bursts"
    assert mavil("evaluate", "runs/finetune_audio").code == 0
    result = json.loads((tmp_path / "runs/finetune_audio/evaluation/metrics.json").read_text())
    last = [line["metrics"] for line in read_metrics(tmp_path / "runs/finetune_audio")][-1]
    accuracy = result["shown"]["audio"]["metrics"]["accuracy"]
    assert accuracy["value"] == last["evaluation/accuracy"]
    assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]
    assert result["num_clips"] == NUM_GALLERY


def test_six_steps_are_three_and_three_more_bit_for_bit(mavil: Mavil, recipe: Recipe, tmp_path: Path) -> None:
    path = recipe("stage1", steps=6)
    assert mavil("train", path, "--out", "whole").code == 0
    assert mavil("train", path, "--out", "halves").code == 0
    # As if the run had died between the third and the last step: only its first checkpoint is left.
    newest = tmp_path / "halves/checkpoints/step_00000006"
    newest.rename(tmp_path / "lost")
    assert mavil("train", path, "--out", "halves", "--resume").code == 0
    one, other = (load_checkpoint(tmp_path / run / "checkpoints/step_00000006") for run in ("whole", "halves"))
    assert all(torch.equal(value, other.model[name]) for name, value in one.model.items())
    assert one.state == other.state
    moments = [checkpoint.optimizer for checkpoint in (one, other)]
    assert moments[0].keys() == moments[1].keys()
    assert all(torch.equal(values["exp_avg_sq"], moments[1][n]["exp_avg_sq"]) for n, values in moments[0].items())
    lines = [[(line["step"], line["metrics"]) for line in read_metrics(tmp_path / run)] for run in ("whole", "halves")]
    assert lines[0] == lines[1]


def test_two_runs_with_one_seed_are_the_same_and_another_seed_is_not(
    mavil: Mavil, recipe: Recipe, tmp_path: Path
) -> None:
    path = recipe("stage1")
    for run, change in (("a", "seed=1"), ("b", "seed=1"), ("c", "seed=2")):
        assert mavil("train", path, change, "--out", run).code == 0
    metrics = {run: [line["metrics"] for line in read_metrics(tmp_path / run)] for run in "abc"}
    assert metrics["a"] == metrics["b"]
    assert metrics["a"] != metrics["c"]
