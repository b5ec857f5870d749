"""A model that was loaded to embed clips: what it is, what it takes and what it gives."""

from __future__ import annotations

from functools import cached_property

import torch

from mavil.config import Recipe
from mavil.embedder.encoding import WindowEncoder
from mavil.embedder.network import digest_of, widths_of
from mavil.embedder.reading import Reader
from mavil.models.masked import MaskedLearner
from mavil.structs import Modality, UserError


class LoadedModel:
    """A network that embeds windows, and what people ask of it.

    Args:
        encoder: embeds windows.

    Attributes:
        encoder: the network and its front ends; ``encoder.embed`` takes windows that somebody else decoded.
    """

    def __init__(self, encoder: WindowEncoder) -> None:
        self.encoder = encoder

    @property
    def model(self) -> MaskedLearner:
        """The network: encoders, fusion, projections."""
        return self.encoder.model

    @property
    def recipe(self) -> Recipe:
        """Of the model."""
        return self.encoder.recipe

    @property
    def source(self) -> str:
        """What it was loaded from."""
        return self.encoder.source

    @property
    def device(self) -> torch.device:
        """Where it computes; everything comes back on the CPU."""
        return self.encoder.device

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """What it takes: ``audio``, ``video`` or both."""
        return self.encoder.modalities

    @property
    def width(self) -> dict[Modality, int]:
        """Z of :meth:`embed_audio` and :meth:`embed_video`."""
        return widths_of(self.model)

    @property
    def fused_width(self) -> int:
        """Z of :meth:`embed`: the encoders' widths together."""
        return sum(self.model.encoder(m).width for m in self.modalities)

    @property
    def window_seconds(self) -> dict[Modality, float]:
        """How long one input of each modality is, s; windows of both together are as long as the longer one."""
        return dict(Reader.of(self.recipe).lengths)

    @cached_property
    def weights_digest(self) -> str:
        """SHA-256, 64 hexadecimal digits, of all weights by name and of the settings that an embedding depends on.

        Embeddings can be compared if they come from models that agree in it.
        """
        return digest_of(self.model, self.recipe)

    def reader(self, modality: Modality | None = None) -> Reader:
        """What cuts clips into windows for this model, of one modality or of all; it can be sent to another process.

        Raises:
            UserError: the model does not take that modality.
        """
        if modality is None:
            return Reader.of(self.recipe)
        self.check_takes(modality)
        return Reader.of(self.recipe, (modality,))

    def check_takes(self, modality: Modality) -> None:
        """Refuse a modality that the model does not take.

        Raises:
            UserError: that.
        """
        if modality not in self.modalities:
            thing = {"audio": "sound", "video": "pictures"}.get(modality, modality)
            raise UserError(f"{self.source} takes {' and '.join(self.modalities)} only, no {thing}: load another model")
