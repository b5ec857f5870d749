"""Embeddings of a folder of shards by a pre-trained run: what retrieval and the cue probes compare."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mavil.commands.assemble import loader_for, prepare_for
from mavil.config import Recipe
from mavil.data.loading.loader import Loader
from mavil.data.prepare import Prepare
from mavil.evaluation.predict import collect
from mavil.evaluation.probing import loudness
from mavil.models.masked import MaskedLearner
from mavil.recipe import change_recipe
from mavil.structs import Inputs
from mavil.tasks.pretrain import embed_batch


@dataclass(frozen=True)
class Embedded:
    """One row per clip, sorted by key: ``audio`` and ``video`` ``[n, D]`` pooled encoder outputs of the complete clip.

    ``loudness`` ``[n]`` is measured from the waveform, see :func:`mavil.evaluation.probing.loudness`.
    """

    keys: list[str]
    metadata: list[dict[str, str]]
    audio: Tensor
    video: Tensor
    loudness: list[float]


def embed_shards(model: MaskedLearner, recipe: Recipe, shards: Path | str, device: torch.device) -> Embedded:
    """Embed every clip of ``shards`` once, over all ranks, without augmentation."""
    recipe = change_recipe(recipe, f"data.evaluation={shards}")
    loader = loader_for(recipe, "evaluation", None, training=False)
    measured: dict[str, float] = {}
    batches = _prepared_and_measured(loader, prepare_for(recipe, device, training=False), measured)
    model = model.to(device).eval()
    grids = {m: model.grid(m) for m in recipe.modalities}

    def compute(inputs: Inputs) -> dict[str, Tensor]:
        values = torch.tensor([measured[key] for key in inputs.keys], dtype=torch.float64)
        return {**embed_batch(model, grids, inputs), "loudness": values}

    collected = collect(batches, compute)
    values = collected.values
    return Embedded(collected.keys, collected.metadata, values["audio"], values["video"], values["loudness"].tolist())


def _prepared_and_measured(loader: Loader, prepare: Prepare, measured: dict[str, float]) -> Iterator[Inputs]:
    for batch in loader:
        if batch.waveforms is not None and batch.waveform_lengths is not None:
            measured.update(zip(batch.keys, loudness(batch.waveforms, batch.waveform_lengths), strict=True))
        yield prepare(batch)
