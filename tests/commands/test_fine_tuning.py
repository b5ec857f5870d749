"""One fine-tuning with all of its options at once, through the command line: it runs, and each leaves its trace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from mavil.engine.checkpoints.reading import load_checkpoint, load_weights
from mavil.engine.metrics.tracker import read_metrics
from tests.commands.conftest import Outcome

Mavil = Callable[..., Outcome]
Recipe = Callable[..., Path]

OPTIONS = [
    "fusion.depth=3",
    "optimizer.layer_decay=0.75",
    "optimizer.lr_factors={audio_encoder: 0.1, video_encoder: 0.1}",
    "optimizer.fusion_rank=first_blocks",
    "audio.augment.masked_steps=10",
    "audio.augment.masked_mel_bins=8",
    "audio.augment.noise=true",
    "data.missing_modality=keep",
    "data.sampling={draws: 24}",
    "trainer.checkpoint_every=1 steps",
    "trainer.keep_checkpoints=9",
    "trainer.mean_of_last=2 steps",
    "trainer.mean_every=1 steps",
]


def test_all_options_in_one_run(mavil: Mavil, recipe: Recipe, tmp_path: Path) -> None:
    assert mavil("train", recipe("stage1", steps=1)).code == 0
    task = {
        "kind": "classify",
        "weights": "runs/stage1",
        "modality_dropout": 0.3,
        "drop_path": 0.2,
        "label_smoothing": 0.1,
        "masking": {"time_ratio": 0.25, "mel_ratio": 0.5, "video_ratio": 0.5},
        "mixup": {"probability": 0.4},
        "cutmix": {"probability": 0.4},
    }
    path = recipe("tuned", task=task)
    told = mavil("train", path, *OPTIONS)
    assert told.code == 0, told.err
    run = tmp_path / "runs/tuned"
    assert "fusion: block 2 begins as a copy of block 1" in (run / "log.rank0.txt").read_text()
    last, before = (load_checkpoint(run / f"checkpoints/step_{step:08d}") for step in (4, 3))
    exported = load_weights(run)
    for part, prefix in (("fusion", "fusion."), ("head", "head.")):
        for name, value in exported[part].items():
            mean = (last.model[prefix + name] + before.model[prefix + name]) / 2
            torch.testing.assert_close(value, mean, atol=1e-6, rtol=0)
    assert not torch.equal(exported["head"]["weight"], last.model["head.weight"])
    assert "evaluation/accuracy" in read_metrics(run)[-1]["metrics"]
    # A mean that cannot be is told before the folder is taken.
    refused = mavil("train", path, *OPTIONS, "trainer.mean_of_last=9 steps", "--out", "runs/other")
    assert refused.code == 2
    assert "mean_of_last=9 steps is 9 steps, but the training has 4" in refused.err
    assert not (tmp_path / "runs/other").exists()
