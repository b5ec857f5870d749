"""The page of ``mavil pictures``, and every figure on it as a file."""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import mavil
from mavil.config import PretrainTask, Recipe
from mavil.recipe import dump_recipe
from mavil.report import page
from mavil.report.attention import AttentionMap
from mavil.report.examples import Media, Picture
from mavil.report.figures import (
    Limits,
    attention_figure,
    error_of,
    heads_figure,
    limits_of,
    reconstruction_figure,
)
from mavil.report.mel_scale import centre_frequencies
from mavil.report.reconstruct import Reconstruction
from mavil.structs import TokenGrid

PAGE = "pictures.html"
_OTHER_CHARACTERS = re.compile(r"[^\w.-]+")


@dataclass(frozen=True)
class Shown:
    """One clip: its spectrogram ``[S, M]`` in log-mel power up to its end, what was filled in, and the attention.

    ``filled`` is ``None`` where a model predicts no spectrogram.
    """

    key: str
    log_mel: Tensor
    filled: Reconstruction | None
    maps: list[AttentionMap]


def write_pictures(out: Path, shown: Sequence[Shown], run: Path, recipe: Recipe, grid: TokenGrid) -> Path:
    """Write every figure as a PNG and all of them as one page below ``out``; return the page's path."""
    assert recipe.audio is not None
    out.mkdir(parents=True, exist_ok=True)
    centres = centre_frequencies(recipe.audio.num_mel_bins, recipe.audio.spectrogram)
    everything = [clip.filled or _unfilled(clip.log_mel) for clip in shown]
    limits = limits_of(everything)
    filled: list[Picture] = []
    looked: list[Picture] = []
    for number, clip in enumerate(shown, start=1):
        stem = f"{number:02d}_{_OTHER_CHARACTERS.sub('_', clip.key)[:80]}"
        if clip.filled is not None:
            png = reconstruction_figure(clip.key, clip.filled, centres, limits)
            filled.append(_picture(out / f"{stem}_reconstruction.png", png, clip.key, "reconstruction", _note(clip)))
        looked += _attention_pictures(out / stem, clip, grid, centres, limits)
    sections = [
        page.Section("What the model fills in", _filled_words(recipe), filled),
        page.Section("Where the last block looks", _attention_words(), looked),
    ]
    report = page.Report(
        title=f"{recipe.name}: reconstructions and attention",
        intro=[f"The first {len(shown)} clips with sound of {recipe.data.evaluation}, by the run {run}."],
        checks=[],
        sections=sections,
        environment=f"mavil {mavil.__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        listings=[page.Listing("settings", dump_recipe(recipe))],
    )
    page.write_page(out / PAGE, report)
    return out / PAGE


def _unfilled(log_mel: Tensor) -> Reconstruction:
    return Reconstruction(log_mel, log_mel, torch.zeros_like(log_mel, dtype=torch.bool))


def _attention_pictures(stem: Path, clip: Shown, grid: TokenGrid, centres: Tensor, limits: Limits) -> list[Picture]:
    png = attention_figure(clip.key, clip.log_mel, clip.maps, grid, centres, limits)
    pictures = [_picture(stem.with_name(f"{stem.name}_attention.png"), png, clip.key, "attention, mean over heads")]
    for number, one in enumerate(clip.maps):
        png = heads_figure(clip.key, one, grid, len(clip.log_mel), centres)
        path = stem.with_name(f"{stem.name}_heads_{number}.png")
        pictures.append(_picture(path, png, clip.key, f"attention of {one.query}, every head"))
    return pictures


def _picture(path: Path, png: bytes, key: str, what: str, note: str = "") -> Picture:
    path.write_bytes(png)
    return Picture(f"{key}: {what}", Media(png, f"{what} of {key}"), note)


def _note(clip: Shown) -> str:
    assert clip.filled is not None
    is_masked = clip.filled.is_masked
    if not is_masked.any():
        return "Nothing was hidden before the clip's end."
    error, share = error_of(clip.filled)[is_masked].mean(), is_masked.float().mean()
    return f"{100 * share:.0f} % hidden; where hidden the mean absolute difference is {error:.1f} dB."


def _filled_words(recipe: Recipe) -> str:
    assert isinstance(recipe.task, PretrainTask)
    if recipe.task.teacher is not None:
        return "This run predicts a teacher's tokens, not spectrograms: there is nothing to show. Name a stage-1 run."
    if recipe.task.reconstruction is None:
        return "This run compares clips and predicts nothing: there is nothing to show. Name a stage-1 run."
    words = "The model saw only what is not grey and predicted the rest. Colours have one scale over all clips."
    if recipe.task.reconstruction.normalise_patches:
        words += (
            " It predicts each patch relative to its own mean and contrast, which are taken from the original here: what is "
            "shown is the predicted structure at the original's level."
        )
    return words


def _attention_words() -> str:
    return (
        "Attention of the encoder's last block over the whole clip, nothing hidden: how much of its attention the framed patch, "
        "or CLS, gives to each patch. 1 is an even spread over all patches."
    )
