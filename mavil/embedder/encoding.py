"""Windows of clips to embeddings, some at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from mavil.commands.inputs import prepare_for
from mavil.config import Recipe
from mavil.data.loading.batches import stack_samples
from mavil.data.prepare import Prepare
from mavil.embedder.network import pooled_jointly
from mavil.engine.precision import Precision, autocast
from mavil.models.masked import MaskedLearner
from mavil.models.tokens import patchify
from mavil.structs import MODALITIES, Inputs, Modality, Sample, UserError

Halves = dict[Modality, Tensor]
"""Of one window: ``[Z]`` float32 of each modality that it has."""


class WindowEncoder:
    """A network with the front ends of its recipe.

    Attributes:
        model: from :func:`mavil.embedder.network.build_network`.
        recipe: of the model.
        source: what to call it in messages.
        device: where it computes.
        precision: of matrix products.
    """

    def __init__(
        self, model: MaskedLearner, recipe: Recipe, source: str, device: torch.device, precision: Precision
    ) -> None:
        self.model = model.to(device)
        self.recipe = recipe
        self.source = source
        self.device = device
        self.precision: Precision = precision
        self.modalities: tuple[Modality, ...] = tuple(m for m in MODALITIES if m in model.encoders)
        self._prepare = prepare_for(recipe, device, training=False)

    @torch.no_grad()
    def embed(self, samples: Sequence[Sample], joint: bool = False) -> list[Halves]:
        """Embeddings before normalising; windows that have the same modalities go through the model together.

        Args:
            samples: with ``waveform``, ``frames`` or both; nothing else of them is looked at.
            joint: what both modalities give together instead of each by itself, see
                :func:`mavil.embedder.network.pooled_jointly`.

        Returns:
            Per sample ``[Z]`` float32 by modality, on the CPU, of those that it has.

        Raises:
            UserError: a value is not finite.
        """
        groups: dict[tuple[Modality, ...], list[int]] = defaultdict(list)
        for place, sample in enumerate(samples):
            groups[tuple(m for m in self.modalities if has(sample, m))].append(place)
        found: list[Halves] = [{} for _ in samples]
        for modalities, places in groups.items():
            if not modalities:
                continue
            inputs = self.inputs([samples[place] for place in places], modalities)
            with autocast(self.device, self.precision):
                tokens = {m: self.model.encoder(m)(patchify(inputs.of(m), self.model.grid(m))) for m in modalities}
                if joint:
                    pooled = pooled_jointly(self.model, tokens)
                else:
                    pooled = {m: self.model.pool(m, values) for m, values in tokens.items()}
            for modality, values in pooled.items():
                for place, row in zip(places, values.float().cpu(), strict=True):
                    found[place][modality] = row
        if not all(bool(row.isfinite().all()) for halves in found for row in halves.values()):
            raise UserError(
                f"{self.source}: embeddings are not finite: the model has diverged, or take precision=float32"
            )
        return found

    def inputs(self, samples: Sequence[Sample], modalities: Sequence[Modality]) -> Inputs:
        """What the model is given of windows that have these modalities, on its device.

        A front end that takes the statistics of its batch (``audio.batch_statistics: evaluation``) gets one window at a time.
        """
        audio = self._prepare.audio if "audio" in modalities else None
        prepare = Prepare(audio, self._prepare.video if "video" in modalities else None, training=False)
        if audio is None or audio.batch_statistics != "evaluation":
            return prepare(stack_samples(samples, None))
        each = [prepare(stack_samples([sample], None)) for sample in samples]
        inputs = Inputs([sample.key for sample in samples], torch.cat([one.seeds for one in each]))
        inputs.audio = torch.cat([one.of("audio") for one in each])
        inputs.video = torch.cat([one.of("video") for one in each]) if "video" in modalities else None
        return inputs


def has(sample: Sample, modality: Modality) -> bool:
    """Whether a window has a modality."""
    return (sample.waveform if modality == "audio" else sample.frames) is not None
