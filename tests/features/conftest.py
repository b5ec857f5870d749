"""Small audio models whose grids differ, and run folders of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mavil.config import ClassifyTask, Recipe
from mavil.engine.checkpoints.reading import Checkpoint
from mavil.engine.checkpoints.saving import Saver, prefixes_of
from mavil.features.loading import features_of
from mavil.features.options import FeatureOptions
from mavil.features.sound import SoundFeatures
from mavil.models.build import build_classifier, build_masked
from mavil.recipe import dump_recipe, recipe_from_tree
from mavil.structs import TrainState

GRIDS: dict[str, dict[str, Any]] = {
    "patches": {"patch": [16, 16], "std_factor": 2.0},
    "mel_first": {"patch": [8, 16], "token_order": "mel_first", "spectrogram": "slaney", "std_factor": 1.0},
    "frames": {
        "patch": [2, 32],
        "spectrogram": "kaldi_povey",
        "positions": "sincos_1d",
        "cls_token": False,
        "encoder": {"width": 32, "depth": 2, "num_heads": 2, "norm": "post", "layer_drop": 0.5},
    },
    "overlapping": {"patch": [16, 16], "stride": [10, 10]},
}
"""What differs from :func:`audio_recipe`: an Audio-MAE, an MSM-MAE, a MAE-AST and one with overlapping patches, all tiny."""


def audio_recipe(grid: str = "patches", task: dict[str, Any] | None = None, **audio: Any) -> Recipe:
    """A recipe of sound alone, 64 steps of 32 mel bins; ``grid`` is one of :data:`GRIDS`."""
    settings = {
        "num_steps": 64,
        "num_mel_bins": 32,
        "mean": -4.0,
        "std": 4.0,
        "encoder": {"width": 32, "depth": 2, "num_heads": 2},
        "decoder": {"width": 16, "depth": 1, "num_heads": 2},
    }
    tree = {
        "name": grid,
        "audio": {**settings, **GRIDS[grid], **audio},
        "video": None,
        "fusion": None,
        "task": task or {"kind": "pretrain", "contrast": None},
    }
    return recipe_from_tree(tree, source="audio_recipe")


def make_features(grid: str = "patches", options: FeatureOptions | None = None, **audio: Any) -> SoundFeatures:
    """Features with random weights; norms are moved off their first values, or a forgotten one would not show."""
    torch.manual_seed(3)
    features = features_of(audio_recipe(grid, **audio), None, grid, options or FeatureOptions())
    for name, parameter in features.encoder.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter, mean=float(name.endswith("weight")), std=0.3)
    return features


def noise(clips: int, samples: int, seed: int = 0) -> torch.Tensor:
    """``[clips, samples]``, white, in [-1, 1]."""
    return torch.rand(clips, samples, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Write a run folder of a recipe with random weights."""

    def write(recipe: Recipe) -> Path:
        torch.manual_seed(4)
        model = build_classifier(recipe, 3) if isinstance(recipe.task, ClassifyTask) else build_masked(recipe)
        run = tmp_path / recipe.name
        run.mkdir()
        (run / "config.yaml").write_text(dump_recipe(recipe))
        saver = Saver(run, prefixes_of(model, model.parts()), keep=1)
        try:
            saver.save(Checkpoint(dict(model.state_dict()), {}, TrainState(), random=None, averages={}))
            assert saver.settle() is None
        finally:
            saver.close()
        return run

    return write
