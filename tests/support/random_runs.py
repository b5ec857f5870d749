"""Run folders that nobody trained, made in no time, and shards whose classes can be heard."""

from __future__ import annotations

import io
import json
import wave
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mavil.config import ClassifyTask, Recipe
from mavil.engine.checkpoints.reading import Checkpoint
from mavil.engine.checkpoints.saving import Saver, prefixes_of
from mavil.models.build import build_classifier, build_masked
from mavil.recipe import dump_recipe
from mavil.seeds import sample_seed
from mavil.structs import SAMPLE_RATE, TrainState

HERTZ = {"low": 300.0, "middle": 1200.0, "high": 4000.0, "highest": 7000.0}
"""Classes that are told by one look at a spectrogram."""


def write_run(
    run: Path, recipe: Recipe, step: int = 0, seed: int = 4, change: Callable[[nn.Module], None] | None = None
) -> Path:
    """A run folder, or one more checkpoint in it, with random weights; ``change`` may give them other values."""
    torch.manual_seed(seed)
    model = build_classifier(recipe, 3) if isinstance(recipe.task, ClassifyTask) else build_masked(recipe)
    if change is not None:
        change(model)
    run.mkdir(exist_ok=True)
    (run / "config.yaml").write_text(dump_recipe(recipe))
    saver = Saver(run, prefixes_of(model, model.parts()), keep=1)
    try:
        saver.save(Checkpoint(dict(model.state_dict()), {}, TrainState(step=step), random=None, averages={}))
        assert saver.settle() is None
    finally:
        saver.close()
    return run


def tone_clip(key: str, labels: Sequence[str], seconds: float = 0.7, **metadata: str) -> Mapping[str, bytes]:
    """A usable clip without picture: a tone of every label under some noise, WAV."""
    generator = np.random.default_rng(sample_seed(key))
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    sound = 300.0 * generator.standard_normal(len(time))
    for label in labels:
        sound += 6000.0 * np.sin(2 * np.pi * HERTZ[label] * time + generator.uniform(0, 6))
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(SAMPLE_RATE)
        out.writeframes(sound.clip(-32768, 32767).astype("<i2").tobytes())
    record = {"key": key, "labels": list(labels), "metadata": metadata, "duration_seconds": seconds}
    return {"wav": file.getvalue(), "json": json.dumps({**record, "has_audio": True, "has_video": False}).encode()}
