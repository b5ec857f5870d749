"""Classification: fine-tuning, or a linear probe when the classifier's encoders are frozen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mavil import distributed
from mavil.config.task import TokenMasking
from mavil.config.training import LearningRateFactors
from mavil.evaluation.metrics import classification_metrics
from mavil.evaluation.predict import Collected, collect
from mavil.models.classifier import JOINT, AlonePooling, Classifier, FusionRank
from mavil.models.tokens import patchify
from mavil.structs import Inputs, LossReport, Modality, TokenGrid, UserError
from mavil.tasks.base import ParameterGroup, group_parameters, unwrapped
from mavil.tasks.masks import draw_visible_ids
from mavil.tasks.presence import dropped_presence
from mavil.tasks.views import noise_of

TARGETS, JUDGED = "targets", "_judged"
"""Names of rows of predictions: what clips are, and, after an output's name, which clips it judges."""


class Classification:
    """Labels from one modality, from both by one head, or from each by a head of its own.

    ``multi_label`` chooses sigmoid cross-entropy over all classes (AudioSet) [source Audio-MAE]; otherwise targets are
    one label per clip and the loss is cross-entropy with optional ``label_smoothing``. Where clips were mixed, targets are
    shares of labels, and both losses take them as they are [source AST, Audio-MAE]. Separate heads are trained by the sum of
    their losses [source AV-SUPERB copy].

    Args:
        model: what is trained; the engine may wrap it.
        multi_label, label_smoothing: see above.
        modality_dropout: share of the training clips that is treated as having one modality; evaluation takes nothing away.
        has_gaps: whether training batches may hold clips without a modality. Known beforehand, because ranks exchange counts
            then.
        alone: as in :meth:`Classifier.forward`.
        masking: tokens that training leaves out, drawn from the clips' seeds; evaluation sees all.
        lr_factors: of the learning rate of each part, beside layer decay.
        fusion_rank: as in :meth:`Classifier.layer_of`.
    """

    def __init__(
        self,
        model: Classifier,
        multi_label: bool,
        label_smoothing: float = 0.0,
        modality_dropout: float = 0.0,
        has_gaps: bool = False,
        alone: AlonePooling = "own",
        masking: TokenMasking | None = None,
        lr_factors: LearningRateFactors | None = None,
        fusion_rank: FusionRank = "top",
    ) -> None:
        self.model: nn.Module = model
        self.alone = alone
        self.masking = masking or TokenMasking()
        self.lr_factors = lr_factors or LearningRateFactors()
        self.fusion_rank: FusionRank = fusion_rank
        self.multi_label = multi_label
        self.label_smoothing = label_smoothing
        self.modality_dropout = modality_dropout
        self.has_gaps = has_gaps or modality_dropout > 0
        self.grids: dict[Modality, TokenGrid] = model.grids()
        self.outputs = model.outputs

    def loss(self, inputs: Inputs, step: int) -> LossReport:
        """Cross-entropy of this batch, one term per head; ``step`` is not used.

        A head of one modality learns from the clips that have it; a joint head from all clips, with what they have.
        """
        targets = self._targets(inputs)
        patches = {m: patchify(inputs.of(m), grid) for m, grid in self.grids.items()}
        present = dropped_presence(inputs, tuple(self.grids), self.modality_dropout)
        visible_ids = draw_visible_ids(self.masking, self.grids, noise_of(inputs))
        logits: dict[str, Tensor] = self.model(patches, present, visible_ids, alone=self.alone)
        report = LossReport({}, {})
        for output, scores in logits.items():
            if output == JOINT:
                self._add_term(report, "", scores.float(), targets, None)
            else:
                self._add_term(report, f"{output}_", scores.float(), targets, self._judged(output, present, inputs))
        return report

    def _judged(self, output: str, present: Mapping[Modality, Tensor | None], inputs: Inputs) -> Tensor | None:
        """As :func:`_judged`, but with gaps no rank may say ``None``: the others would wait for its count."""
        judged = _judged(output, present)
        if judged is None and self.has_gaps:
            return torch.ones(len(inputs), dtype=torch.bool, device=self._targets(inputs).device)
        return judged

    def _add_term(
        self, report: LossReport, prefix: str, logits: Tensor, targets: Tensor, judged: Tensor | None
    ) -> None:
        """Loss and accuracy of one head: means over the clips that are ``judged``, ``[B]`` bool; zero where none is."""
        kind = "binary_cross_entropy" if self.multi_label else "cross_entropy"
        is_right = (logits.detach().argmax(dim=1) == targets.argmax(dim=1)).float()
        if judged is None:
            loss, accuracy = self._cross_entropy(logits, targets, "mean"), is_right.mean()
        else:
            shares = _shares(judged, across_ranks=self.has_gaps)
            loss, accuracy = (self._cross_entropy(logits, targets, "none") * shares).sum(), (is_right * shares).sum()
        report.terms[f"{prefix}{kind}"] = loss
        report.weights[f"{prefix}{kind}"] = 1.0
        if not self.multi_label:
            report.scalars[f"{prefix}accuracy"] = accuracy

    def _cross_entropy(self, logits: Tensor, targets: Tensor, reduction: str) -> Tensor:
        if not self.multi_label:
            return F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing, reduction=reduction)
        losses = F.binary_cross_entropy_with_logits(logits, targets, reduction=reduction)
        return losses if reduction == "mean" else losses.mean(dim=1)

    def _targets(self, inputs: Inputs) -> Tensor:
        if inputs.targets is None:
            raise ValueError("this batch holds no targets: build the loader with a vocabulary")
        return inputs.targets

    def parameter_groups(self, weight_decay: float, layer_decay: float) -> list[ParameterGroup]:
        """Learning rate times ``layer_decay`` per block below the head, times the factor of its part [source AV-SUPERB copy].

        CLS and positions are not decayed [source Audio-MAE].
        """
        model = cast(Classifier, unwrapped(self.model))
        factors = {
            "audio_encoder": self.lr_factors.audio_encoder,
            "video_encoder": self.lr_factors.video_encoder,
            "fusion": self.lr_factors.fusion,
            "head": self.lr_factors.head,
        }

        def scale_of(name: str) -> float:
            depth, top = model.layer_of(name, self.fusion_rank)
            return float(layer_decay ** (top - depth)) * factors[model.part_of(name)]

        return group_parameters(model, weight_decay, scale_of, undecayed=("cls_token", "pos_embed"))

    def evaluate(self, batches: Iterable[Inputs]) -> dict[str, float]:
        """Accuracy or mAP over the whole set; see :func:`mavil.evaluation.metrics.classification_metrics`.

        Clips without anything a head looks at are left out. Separate heads have their metrics as ``audio/accuracy`` and so
        on; those of a modality that no clip has are left out.

        Raises:
            UserError: no clip has any modality that the classifier knows.
        """
        values = collect(batches, self._predict).values
        metrics: dict[str, float] = {}
        for output in self.outputs:
            is_judged = values[f"{output}{JUDGED}"].bool()
            if is_judged.any():
                scores, targets = values[output][is_judged], values[TARGETS][is_judged]
                prefix = "" if output == JOINT else f"{output}/"
                found = classification_metrics(scores, targets, self.multi_label)
                metrics |= {f"{prefix}{name}": value for name, value in found.items()}
        if not metrics:
            raise UserError(
                f"no clip of the evaluation set has {' or '.join(self.grids)}: check data.evaluation and the modalities"
            )
        return metrics

    def predict(self, batches: Iterable[Inputs], shown: Sequence[Sequence[Modality]]) -> Collected:
        """Logits ``[n, classes]`` of every clip by what the model is shown of it, ``audio+video`` for both; same on every rank.

        ``<name>_judged`` says which clips have any of it, ``targets`` what they are. Separate heads never see more than their own
        modality: their names are ``audio`` and ``video``, whatever is shown beside.
        """
        # One pass of everything has what each head says alone.
        sets = shown if JOINT in self.outputs else [max(shown, key=len)]

        def compute(inputs: Inputs) -> dict[str, Tensor]:
            rows: dict[str, Tensor] = {}
            for modalities in sets:
                for output, values in self._predict(inputs, modalities).items():
                    rows[output.replace(JOINT, "+".join(modalities), 1)] = values
            return rows

        return collect(batches, compute)

    def _predict(self, inputs: Inputs, shown: Sequence[Modality] | None = None) -> dict[str, Tensor]:
        """``[B, classes]`` logits by output, which clips they judge, and the targets; what is not ``shown`` is absent."""
        targets = self._targets(inputs)
        nobody = torch.zeros(len(inputs), dtype=torch.bool, device=targets.device)
        present = {m: inputs.present(m) if shown is None or m in shown else nobody for m in self.grids}
        # What nobody has is not computed.
        patches = {m: patchify(inputs.of(m), grid) for m, grid in self.grids.items() if _anybody(present[m])}
        logits: dict[str, Tensor] = {}
        if patches:
            logits = unwrapped(self.model)(patches, present, alone=self.alone)
        rows: dict[str, Tensor] = {TARGETS: targets}
        for output in self.outputs:
            if shown is None or output == JOINT or output in shown:
                judged = _judged(output, present)
                rows[output] = logits.get(output, torch.zeros_like(targets))
                rows[f"{output}{JUDGED}"] = torch.ones(len(inputs)) if judged is None else judged.float()
        return rows

    def export_modules(self) -> dict[str, nn.Module]:
        """Encoders, fusion, the norms before the heads and the heads, each by name."""
        return cast(Classifier, unwrapped(self.model)).parts()


def _anybody(present: Tensor | None) -> bool:
    return present is None or bool(present.any())


def _judged(output: str, present: Mapping[Modality, Tensor | None]) -> Tensor | None:
    """``[B]`` bool, which clips have something that a head looks at; ``None`` where all have."""
    flags = list(present.values()) if output == JOINT else [present[cast(Modality, output)]]
    known = [flag for flag in flags if flag is not None]
    return torch.stack(known).any(dim=0) if len(known) == len(flags) else None


def _shares(judged: Tensor, across_ranks: bool) -> Tensor:
    """``[B]``: what each clip counts in a mean over those that are judged.

    Across ranks, which may judge different numbers of clips, the mean number divides: DDP's mean is then that of one process.
    """
    number = judged.sum().float()
    if across_ranks:
        number = distributed.mean_over_ranks(number)
    return judged / number.clamp(min=1 / distributed.world_size())  # nobody judges any: 0, not 0 / 0
