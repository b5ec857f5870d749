"""Exports that nobody trained, whose every tensor matters, and clips of one window."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mavil.config import ClassifyTask, Recipe
from mavil.export.folder import write_export
from mavil.export.parts import Exported, encoders_of
from mavil.models.build import build_classifier, build_masked
from mavil.recipe import change_recipe
from tests.support.recipes import tiny_recipe

STATISTICS = ("audio.mean=-4.0", "audio.std=4.5")


def random_export(*changes: str, **parts: Any) -> Exported:
    """Of a tiny recipe with some changes: norms, biases and tables are noise too, so that leaving one out shows."""
    return export_of(change_recipe(tiny_recipe(**parts), *STATISTICS, *changes))


def export_of(recipe: Recipe) -> Exported:
    """Of a complete recipe, likewise."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_classifier(recipe, 3) if isinstance(recipe.task, ClassifyTask) else build_masked(recipe)
        weights: dict[str, dict[str, Tensor]] = {}
        for name, part in model.parts().items():
            weights[name] = {key: tensor + 0.1 * torch.randn(tensor.shape) for key, tensor in part.state_dict().items()}
    return Exported(recipe, encoders_of(recipe, weights, "it"), {"run": "tiny"})


def written_export(folder: Path, exported: Exported) -> Path:
    """The folder of an export."""
    return write_export(folder, exported, "a card\n")


def waveforms(num_clips: int, recipe: Recipe) -> Tensor:
    """``[B, L]``, each of one window: noise, louder from clip to clip."""
    assert recipe.audio is not None
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(num_clips, round(recipe.audio.seconds * 16_000), generator=generator)
    return noise * torch.logspace(-2, -0.7, num_clips)[:, None]


def films(num_clips: int, recipe: Recipe) -> Tensor:
    """``[B, T, 3, H, H]`` uint8, each of one window: noise."""
    video = recipe.video
    assert video is not None
    shape = (num_clips, video.num_frames, 3, video.size, video.size)
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
