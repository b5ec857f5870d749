"""Recipes small enough for a test: width 32, two blocks, 4 frames of 32 x 32, a 64 x 32 spectrogram."""

from __future__ import annotations

from typing import Any

import torch

from mavil.config import Recipe
from mavil.recipe import recipe_from_tree
from mavil.structs import Inputs


def tiny_recipe(**parts: Any) -> Recipe:
    """A complete recipe; keyword arguments replace whole top-level settings."""
    tower = {"width": 32, "depth": 2, "num_heads": 2}
    tree: dict[str, Any] = {
        "name": "tiny",
        "audio": {
            "seconds": 0.66,
            "num_steps": 64,
            "num_mel_bins": 32,
            "encoder": tower,
            "decoder": {"width": 16, "depth": 1, "num_heads": 2},
        },
        "video": {
            "num_frames": 4,
            "frames_per_second": 4,
            "size": 32,
            "decode_short_side": 32,
            "encoder": tower,
            "decoder": {"width": 16, "depth": 1, "num_heads": 2},
        },
    }
    return recipe_from_tree({**tree, **parts}, source="tiny_recipe")


def random_inputs(num_clips: int, seed: int = 0, num_classes: int | None = None) -> Inputs:
    """Noise in the shape of :func:`tiny_recipe`'s inputs; clip i is the same whatever ``num_clips``."""
    audio, video = [], []
    for clip in range(num_clips):
        generator = torch.Generator().manual_seed(1000 * seed + clip)
        audio.append(torch.randn(1, 64, 32, generator=generator))
        video.append(torch.randn(3, 4, 32, 32, generator=generator))
    targets = None
    if num_classes is not None:
        targets = torch.eye(num_classes)[torch.arange(num_clips) % num_classes]
    return Inputs(
        keys=[f"clip{i}" for i in range(num_clips)],
        seeds=torch.arange(num_clips) + 100 * seed,
        audio=torch.stack(audio),
        video=torch.stack(video),
        targets=targets,
        metadata=[{} for _ in range(num_clips)],
    )


def slice_inputs(inputs: Inputs, start: int, stop: int) -> Inputs:
    """Clips ``start`` to ``stop`` of a batch, as another rank would hold them."""
    assert inputs.audio is not None
    assert inputs.video is not None
    return Inputs(
        keys=inputs.keys[start:stop],
        seeds=inputs.seeds[start:stop],
        audio=inputs.audio[start:stop],
        video=inputs.video[start:stop],
        targets=None if inputs.targets is None else inputs.targets[start:stop],
        metadata=inputs.metadata[start:stop],
    )
