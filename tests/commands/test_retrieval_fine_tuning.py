"""From a pre-training run to one that is fine-tuned for retrieval, and its retrieval, through the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mavil.engine.checkpoints.reading import load_weights
from mavil.engine.metrics.tracker import read_metrics
from tests.commands.conftest import NUM_GALLERY, Outcome
from tests.tasks.test_contrast_alone import TASK

Mavil = Callable[..., Outcome]
Recipe = Callable[..., Path]


def test_a_pretrained_run_is_fine_tuned_and_searched(
    mavil: Mavil, recipe: Recipe, shards: Path, tmp_path: Path
) -> None:
    assert mavil("train", recipe("stage1", steps=1)).code == 0
    task = {**TASK, "weights": "runs/stage1"}
    tuned = recipe("tuned", steps=3, task=task, fusion=None, optimizer={"base_lr": 0.01})
    # Half of a step at a time, with the candidates of the whole step.
    parts = ("trainer.device_batch=4", "trainer.accumulation=2", "trainer.accumulation_negatives=cached")
    found = mavil("train", tuned, *parts)
    assert found.code == 0, found.err
    assert "audio_encoder, video_encoder: from runs/stage1" in found.out
    metrics = [line["metrics"] for line in read_metrics(tmp_path / "runs/tuned")]
    assert {name for name in metrics[0] if name.startswith("loss/")} == {"loss/total", "loss/inter_contrast"}
    assert metrics[-1]["evaluation/gallery_size"] == NUM_GALLERY
    assert set(load_weights(tmp_path / "runs/tuned")) == {"audio_encoder", "video_encoder"}
    assert mavil("train", tuned, "--out", "whole", "trainer.device_batch=8").code == 0
    whole = [line["metrics"] for line in read_metrics(tmp_path / "whole")]
    losses = [[one["loss/total"] for one in lines if "loss/total" in one] for lines in (metrics, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert mavil("retrieve", "runs/tuned", "--bootstrap", 20).code == 0
    stored = json.loads((tmp_path / "runs/tuned/retrieval/retrieval.json").read_text())
    last = metrics[-1]["evaluation/audio_to_video/recall_at_1_percent"]
    assert stored["retrieval"]["whole gallery"]["audio_to_video"]["recall_at_1_percent"] == last
    pictures = mavil("pictures", "runs/tuned", shards / "gallery", "--clips", "1")
    assert pictures.code == 0, pictures.err
