"""Synthetic clips as media files and as shards, and tiny models whose inputs are as long as the clips."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import mavil
from mavil import Embedder
from mavil.config import Recipe
from mavil.data.media import encode_clip
from mavil.data.synthetic import FRAMES_PER_SECOND, make_synthetic_shards, synthetic_clip
from mavil.recipe import recipe_from_tree
from tests.support.random_runs import write_run
from tests.support.recipes import tiny_recipe

FPS = FRAMES_PER_SECOND
TOWER = {"width": 32, "depth": 2, "num_heads": 2}
DECODER = {"width": 16, "depth": 1, "num_heads": 2}
AUDIO = {"num_mel_bins": 32, "mean": -4.0, "std": 4.0, "encoder": TOWER, "decoder": DECODER}
VIDEO = {"num_frames": 4, "size": 32, "decode_short_side": 32, "encoder": TOWER, "decoder": DECODER}
LONG_AUDIO = {**AUDIO, "seconds": 4.0, "num_steps": 400}
LONG_VIDEO = {**VIDEO, "frames_per_second": 1.0}
SHORT_AUDIO = {**AUDIO, "seconds": 1.0, "num_steps": 96}
SHORT_VIDEO = {**VIDEO, "frames_per_second": 8.0}
"""One clip of four seconds is one input of the long ones, four of the short sound and eight of the short pictures."""

MakeModel = Callable[..., Embedder]


def long_recipe(**parts: Any) -> Recipe:
    """A tiny recipe whose inputs are as long as a synthetic clip."""
    return tiny_recipe(**{"audio": LONG_AUDIO, "video": LONG_VIDEO, "data": {"num_workers": 0}, **parts})


def short_recipe(**parts: Any) -> Recipe:
    """A tiny recipe of 1 s of sound and half a second of pictures."""
    return tiny_recipe(**{"audio": SHORT_AUDIO, "video": SHORT_VIDEO, **parts})


def recipe_of_sound(**audio: Any) -> Recipe:
    """The short sound alone."""
    task = {"kind": "pretrain", "contrast": None}
    tree: dict[str, Any] = {
        "name": "sound",
        "audio": {**SHORT_AUDIO, **audio},
        "video": None,
        "fusion": None,
        "task": task,
    }
    tree["data"] = {"num_workers": 0}
    return recipe_from_tree(tree, "recipe_of_sound")


def sound(number: int = 0, seconds: float = 4.0) -> Tensor:
    """``[L]`` at 16 kHz of a synthetic clip."""
    return synthetic_clip(0, number).waveform[: round(seconds * 16_000)]


def film(number: int = 0, num_frames: int = 32) -> Tensor:
    """``[T, H, Wd, 3]`` uint8 at 8 Hz of a synthetic clip."""
    return synthetic_clip(0, number).frames.permute(0, 2, 3, 1)[:num_frames]


def media(number: int = 0, has_sound: bool = True, has_picture: bool = True) -> bytes:
    """An MP4 of a synthetic clip."""
    clip = synthetic_clip(0, number)
    return encode_clip(clip.frames if has_picture else None, FPS, clip.waveform if has_sound else None)


def distance(left: Any, right: Any) -> float:
    """The largest difference."""
    return float(np.abs(np.asarray(left) - np.asarray(right)).max())


@pytest.fixture
def make_model(tmp_path: Path) -> MakeModel:
    """A run with random weights, loaded; norms are moved off their first values, or a forgotten one would not show."""

    def make(recipe: Recipe, **options: Any) -> Embedder:
        run = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        return mavil.load(write_run(run, recipe, change=move_norms), **options)

    return make


def move_norms(model: torch.nn.Module) -> None:
    """Give every norm other values than 1 and 0."""
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter, mean=float(name.endswith("weight")), std=0.3)


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of three synthetic clips."""
    folder = tmp_path_factory.mktemp("clips") / "shards"
    make_synthetic_shards(3, folder, clips_per_shard=2, show_progress=False)
    return folder


def media_in(shards: Path) -> dict[str, bytes]:
    """The media file of each clip of a folder of shards, by key, in order."""
    found = {}
    for path in sorted(shards.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".mp4"):
                    file = tar.extractfile(member)
                    assert file is not None
                    found[member.name.removesuffix(".mp4")] = file.read()
    return dict(sorted(found.items()))
