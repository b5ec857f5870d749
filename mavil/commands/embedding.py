"""Embeddings of a folder of shards by a pre-trained run: what retrieval and the cue probes compare."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from mavil.commands.inputs import loader_for, prepare_for
from mavil.config import Recipe
from mavil.data.loading.loader import Loader
from mavil.data.prepare import Prepare
from mavil.evaluation.predict import Collected, collect
from mavil.evaluation.probing import loudness
from mavil.models.masked import MaskedLearner
from mavil.recipe import change_recipe
from mavil.seeds import sample_seed
from mavil.structs import MODALITIES, Inputs, Modality, UserError
from mavil.tasks.pretrain import embed_batch


@dataclass(frozen=True)
class Embedded:
    """One row per clip, sorted by key: ``audio`` and ``video`` ``[n, Z]`` of the whole clip, the mean over its windows; or
    ``[n, W, Z]`` of every window, see :func:`embed_windows`.

    ``audio_present`` and ``video_present`` ``[n]`` bool say which clips have the modality; rows of the others mean nothing.
    Of a modality that the recipe lacks all are absent, and ``[n, 0]``. ``loudness`` ``[n]`` is measured from the waveform, see
    :func:`mavil.evaluation.probing.loudness`; NaN without sound.
    """

    keys: list[str]
    metadata: list[dict[str, str]]
    audio: Tensor
    video: Tensor
    audio_present: Tensor
    video_present: Tensor
    loudness: list[float]

    def complete(self, modalities: Sequence[Modality] = MODALITIES) -> Embedded:
        """The clips that have all of these modalities.

        Raises:
            UserError: there is none.
        """
        has = {"audio": self.audio_present, "video": self.video_present}
        rows = torch.stack([has[modality] for modality in modalities]).all(dim=0).nonzero().flatten()
        if not len(rows):
            raise UserError(f"none of {len(self.keys)} clips has {' and '.join(modalities)}: name other shards")
        return self.take(rows.tolist())

    def take(self, chosen: Sequence[int]) -> Embedded:
        """These rows, in this order."""
        rows = torch.tensor(list(chosen), dtype=torch.int64)
        return Embedded(
            [self.keys[row] for row in chosen],
            [self.metadata[row] for row in chosen],
            self.audio[rows],
            self.video[rows],
            self.audio_present[rows],
            self.video_present[rows],
            [self.loudness[row] for row in chosen],
        )


def embed_shards(
    model: MaskedLearner, recipe: Recipe, shards: Path | str, device: torch.device, projects: bool = True
) -> Embedded:
    """Embed every clip of ``shards`` once, over all ranks, without augmentation; each with the modalities that it has.

    Without ``projects`` rows are what stands before the model's projections, where it has any.
    """
    recipe = change_recipe(recipe, f"data.evaluation={shards}", "data.missing_modality=keep")
    return _embedded(_collected(model, recipe, device, projects, by_window=False))


def embed_windows(
    model: MaskedLearner, recipe: Recipe, shards: Path | str, device: torch.device
) -> tuple[Embedded, Tensor]:
    """Embed every window of every clip: ``audio`` and ``video`` ``[n, W, Z]`` in the order of time, and how many each has.

    W is ``data.evaluation_windows``. A clip that is too short for several has one, which then stands in all W places; the
    numbers are ``[n]`` int64. ``loudness`` is that of the first window.
    """
    recipe = change_recipe(recipe, f"data.evaluation={shards}", "data.missing_modality=keep")
    rows = _embedded(_collected(model, recipe, device, True, by_window=True))
    names = [name.rpartition(_WINDOW)[0] for name in rows.keys]
    first = [place for place, name in enumerate(names) if place == 0 or name != names[place - 1]]
    counts = torch.tensor([*first[1:], len(names)]) - torch.tensor(first)
    offsets = torch.arange(recipe.data.evaluation_windows)
    places = torch.tensor(first)[:, None] + torch.minimum(offsets, counts[:, None] - 1)
    clips = rows.take(first)
    named = [names[place] for place in first]
    return replace(clips, keys=named, audio=rows.audio[places], video=rows.video[places]), counts


_WINDOW = "\n"
"""Between the key of a clip and the number of a window while windows are collected; no key holds it."""


def _collected(
    model: MaskedLearner, recipe: Recipe, device: torch.device, projects: bool, by_window: bool
) -> Collected:
    """A row per clip, or per window: its key is then followed by the window's number."""
    loader = loader_for(recipe, "evaluation", None, training=False)
    measured: dict[tuple[str, int], float] = {}
    batches = _prepared_and_measured(loader, prepare_for(recipe, device, training=False), measured)
    model = model.to(device).eval()
    grids = {m: model.grid(m) for m in recipe.modalities}

    def compute(inputs: Inputs) -> dict[str, Tensor]:
        keys = [name.partition(_WINDOW)[0] for name in inputs.keys]
        rows = zip(keys, inputs.seeds.tolist(), strict=True)
        flags = {f"{m}_present": _flags(inputs.present(m), len(inputs)) for m in grids}
        return {
            **embed_batch(model, grids, inputs, projects),
            **flags,
            "loudness": torch.tensor([measured.get(row, torch.nan) for row in rows], dtype=torch.float64),
        }

    if by_window:
        batches = (_with_window_keys(inputs, recipe) for inputs in batches)
    return collect(batches, compute)


def _with_window_keys(inputs: Inputs, recipe: Recipe) -> Inputs:
    """A row of its own for each window, which is known by its seed, see ``ClipDecoder.decode``."""

    def named(key: str, seed: int) -> str:
        first = sample_seed(recipe.seed, 0, key)
        numbers = range(1, recipe.data.evaluation_windows)
        number = next((n for n in numbers if sample_seed(first, "window", n) == seed), 0)
        return f"{key}{_WINDOW}{number:06d}"

    return replace(inputs, keys=[named(*row) for row in zip(inputs.keys, inputs.seeds.tolist(), strict=True)])


def _embedded(collected: Collected) -> Embedded:
    values = collected.values
    nothing, nobody = torch.zeros(len(collected), 0), torch.zeros(len(collected), dtype=torch.bool)
    return Embedded(
        collected.keys,
        collected.metadata,
        values.get("audio", nothing),
        values.get("video", nothing),
        values.get("audio_present", nobody),
        values.get("video_present", nobody),
        values["loudness"].tolist(),
    )


def _flags(present: Tensor | None, num_clips: int) -> Tensor:
    return torch.ones(num_clips, dtype=torch.bool) if present is None else present


def _prepared_and_measured(
    loader: Loader, prepare: Prepare, measured: dict[tuple[str, int], float]
) -> Iterator[Inputs]:
    """Inputs; ``measured`` has the loudness of all until then by key and seed."""
    for batch in loader:
        if batch.waveforms is not None and batch.waveform_lengths is not None:
            levels = torch.tensor(loudness(batch.waveforms, batch.waveform_lengths), dtype=torch.float64)
            levels[~_flags(batch.audio_present, len(batch))] = torch.nan
            rows = zip(batch.keys, batch.seeds.tolist(), strict=True)
            measured.update(zip(rows, levels.tolist(), strict=True))
        yield prepare(batch)
