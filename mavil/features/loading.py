"""The audio encoder of a run, or of a public checkpoint, made ready for sound of any length."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from mavil.commands.inputs import prepare_for
from mavil.commands.normalisation import audio_statistics
from mavil.config import ClassifyTask, Recipe
from mavil.data.spectrogram import AudioFrontEnd
from mavil.embedder.sources import open_model
from mavil.features.options import FeatureOptions, split_source
from mavil.features.sound import Normalisation, SoundFeatures
from mavil.features.timing import Timing
from mavil.models.build import build_encoder
from mavil.models.weights import load_parts
from mavil.recipe import change_recipe, recipe_from_tree
from mavil.structs import TokenGrid, UserError

PART = "audio_encoder"
TINY = {
    "name": "tiny_random",
    "audio": {
        "num_steps": 64,
        "num_mel_bins": 32,
        "spectrogram": "slaney",
        "mean": -7.1,
        "std": 4.2,
        "patch": [2, 32],
        "encoder": {"width": 32, "depth": 2, "num_heads": 2},
        "decoder": {"width": 16, "depth": 1, "num_heads": 2},
    },
    "video": None,
    "fusion": None,
    "task": {"kind": "pretrain", "contrast": None},
}
"""What stands for a checkpoint where none is named: random weights, one feature per 20 ms."""


def load_features(source: str | Path = "") -> SoundFeatures:
    """Features from ``PATH?NAME=VALUE&...``, in evaluation mode on the CPU; see :func:`mavil.features.options.split_source`.

    ``PATH`` is whatever :func:`mavil.embedder.sources.open_model` takes; nothing: a tiny model with random weights, always the
    same.

    Raises:
        UserError: no such model, one without an audio branch, or an option that does not fit it.
    """
    path, options, changes = split_source(str(source))
    if not path:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return features_of(_tiny(changes), None, "the tiny random model", options)
    opened = open_model(path, options.checkpoint, changes)
    return features_of(opened.recipe, opened.parts, path, options, opened.grids.get("audio"))


def features_of(
    recipe: Recipe,
    weights: Mapping[str, Mapping[str, Tensor]] | None,
    source: str,
    options: FeatureOptions,
    grids: tuple[TokenGrid, TokenGrid] | None = None,
) -> SoundFeatures:
    """Features of a recipe's audio encoder.

    Args:
        recipe: with log-mel statistics.
        weights: tensors by part; ``None`` leaves the random ones.
        source: what to call them in messages.
        options: choices about features.
        grids: how the weights' input is cut and how the recipe's, where they may differ.

    Raises:
        UserError: no audio branch, or weights and options that do not fit it.
    """
    audio = recipe.audio
    if audio is None or "audio" not in recipe.modalities:
        raise UserError(f"{source} has no audio branch, and features of sound need one: name another checkpoint")
    # Every layer is asked for by its number: none may be left out.
    audio = audio.model_copy(update={"encoder": audio.encoder.model_copy(update={"layer_drop": 0.0})})
    encoder = build_encoder(audio)
    if weights is not None:
        load_parts({PART: encoder}, weights, source, {"audio": grids} if grids else None)
    mean, std = audio_statistics(recipe)
    # A classifier pools what leaves its last block as it is; the norm behind it belongs to pre-training.
    norm = nn.Identity() if isinstance(recipe.task, ClassifyTask) else encoder.norm
    of_batch = audio.batch_statistics == "evaluation"
    return SoundFeatures(
        encoder,
        _raw_front_end(recipe),
        Timing(audio.grid(), audio.spectrogram),
        Normalisation(mean, std, audio.std_factor, of_batch),
        norm,
        options,
    ).eval()


def _raw_front_end(recipe: Recipe) -> AudioFrontEnd:
    """That of the recipe, without its normalisation."""
    plain = ("mean=0.0", "std=1.0", "std_factor=1.0", "batch_statistics=never")
    raw = change_recipe(recipe, *(f"audio.{setting}" for setting in plain))
    front_end = prepare_for(raw, torch.device("cpu"), training=False).audio
    assert front_end is not None
    return front_end


def _tiny(changes: list[str]) -> Recipe:
    return change_recipe(recipe_from_tree(TINY, "the tiny random model"), *changes)
