"""Classification: fine-tuning, or a linear probe when the classifier's encoders are frozen."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from mavil.evaluation.metrics import classification_metrics
from mavil.evaluation.predict import collect
from mavil.models.classifier import Classifier
from mavil.models.tokens import patchify
from mavil.structs import Inputs, LossReport, Modality, TokenGrid
from mavil.tasks.base import ParameterGroup, group_parameters, unwrapped


class Classification:
    """Labels from one modality or both.

    ``multi_label`` chooses sigmoid cross-entropy over all classes (AudioSet) [source Audio-MAE]; otherwise targets are
    one label per clip and the loss is cross-entropy with optional ``label_smoothing``.
    """

    def __init__(self, model: Classifier, multi_label: bool, label_smoothing: float = 0.0) -> None:
        self.model: nn.Module = model
        self.multi_label = multi_label
        self.label_smoothing = label_smoothing
        self.grids: dict[Modality, TokenGrid] = model.grids()

    def loss(self, inputs: Inputs, step: int) -> LossReport:
        """Cross-entropy of this batch; ``step`` is not used."""
        logits, targets = self.model(self._patches(inputs)), self._targets(inputs)
        if self.multi_label:
            value = F.binary_cross_entropy_with_logits(logits.float(), targets)
            return LossReport({"binary_cross_entropy": value}, {"binary_cross_entropy": 1.0})
        classes = targets.argmax(dim=1)
        value = F.cross_entropy(logits.float(), classes, label_smoothing=self.label_smoothing)
        accuracy = (logits.detach().argmax(dim=1) == classes).float().mean()
        return LossReport({"cross_entropy": value}, {"cross_entropy": 1.0}, {"accuracy": accuracy})

    def _patches(self, inputs: Inputs) -> dict[Modality, Tensor]:
        return {m: patchify(inputs.of(m), grid) for m, grid in self.grids.items()}

    def _targets(self, inputs: Inputs) -> Tensor:
        if inputs.targets is None:
            raise ValueError("this batch holds no targets: build the loader with a vocabulary")
        return inputs.targets

    def parameter_groups(self, weight_decay: float, layer_decay: float) -> list[ParameterGroup]:
        """Learning rate times ``layer_decay`` per block below the head [source Audio-MAE, BEiT]."""
        model = cast(Classifier, unwrapped(self.model))

        def scale_of(name: str) -> float:
            depth, top = model.layer_of(name)
            return float(layer_decay ** (top - depth))

        return group_parameters(model, weight_decay, scale_of)

    def evaluate(self, batches: Iterable[Inputs]) -> dict[str, float]:
        """Accuracy or mAP over the whole set; see :func:`mavil.evaluation.metrics.classification_metrics`."""
        collected = collect(batches, self._predict)
        scores, targets = collected.values["logits"], collected.values["targets"]
        return classification_metrics(scores, targets, self.multi_label)

    def _predict(self, inputs: Inputs) -> dict[str, Tensor]:
        return {"logits": unwrapped(self.model)(self._patches(inputs)), "targets": self._targets(inputs)}

    def export_modules(self) -> dict[str, nn.Module]:
        """Encoders, fusion, the norm before the head and the head, each by name."""
        return cast(Classifier, unwrapped(self.model)).parts()
