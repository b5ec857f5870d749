"""The frozen model of the previous stage; a collaborator of the task, never a part of the trained model."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mavil.models.layers import Presence
from mavil.models.masked import MaskedLearner
from mavil.structs import Modality


class Teacher:
    """Contextualised tokens of the unmasked pair, without gradient [paper: stage 2; layer and normalisation unknown].

    The arguments beside the model are those of :meth:`MaskedLearner.contextualise`.
    """

    def __init__(
        self,
        model: MaskedLearner,
        last_layers: int,
        normalise: bool,
        context: Literal["joint", "separate"] = "joint",
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.last_layers = last_layers
        self.normalise = normalise
        self.context = context

    @torch.no_grad()
    def targets(self, patches: dict[Modality, Tensor], present: Presence | None = None) -> dict[Modality, Tensor]:
        """``[B, N, P]`` patches of each modality to ``[B, N, D]`` targets."""
        return self.model.contextualise(patches, self.last_layers, self.normalise, self.context, present)
