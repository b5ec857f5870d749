"""Pre-training: masked reconstruction or a teacher's tokens, and masked contrast between and within modalities."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from mavil.config import Contrast, Reconstruction
from mavil.config.task import PatchDiscrimination
from mavil.evaluation.collapse import agreement, collapse_limits, target_statistics
from mavil.evaluation.predict import collect
from mavil.evaluation.retrieval import both_directions
from mavil.losses.patch_discrimination import clip_discrimination, patch_discrimination
from mavil.losses.reconstruction import masked_mse, normalise_patches
from mavil.models.layers import Presence
from mavil.models.masked import MaskedLearner, MaskedOutput
from mavil.models.tokens import patchify
from mavil.structs import Inputs, LossReport, MaskedViews, Modality, TokenGrid
from mavil.tasks.base import Limit, ParameterGroup, group_parameters, unwrapped
from mavil.tasks.contrast import contrast_terms
from mavil.tasks.presence import dropped_presence
from mavil.tasks.teacher import Teacher
from mavil.tasks.views import ViewPlan, compared_only, noise_of


class Pretraining:
    """Stage 1 without a teacher, stage 2 and later with one [paper, section 3; equations in docs/model.md].

    ``stage 1 = reconstruction + alpha inter(a', v') + beta (intra(a', a'') + intra(v', v''))``; with a teacher the decoders
    predict its tokens instead of raw patches; without prediction clips are only compared, as in fine-tuning for retrieval. With
    ``discrimination`` a second head also tells which raw patch is whose [source SSAST, MAE-AST]. View 1 is predicted and
    compared across modalities; view 2, a second mask of the same crop, exists only where the intra-modal term has weight or
    several views are predicted. Masks are drawn per clip from its seed. A clip without one modality takes part in the terms of
    the other.

    Args:
        model: the network.
        plan: which views of a clip are drawn.
        reconstruction: what is predicted, and its weights; ``None`` compares clips and predicts nothing.
        contrast: ``None`` compares nothing.
        teacher: ``None`` predicts raw patches. It sees a clip once, however many views are predicted.
        modality_dropout: probability that a clip with both modalities is treated as having one.
        has_gaps: whether batches may hold clips without a modality. Known beforehand, because ranks exchange counts then.
        discrimination: ``None`` leaves the second head's term out; it has none of a teacher's tokens.
    """

    def __init__(
        self,
        model: MaskedLearner,
        plan: ViewPlan,
        reconstruction: Reconstruction | None,
        contrast: Contrast | None,
        teacher: Teacher | None = None,
        modality_dropout: float = 0.0,
        has_gaps: bool = False,
        discrimination: PatchDiscrimination | None = None,
    ) -> None:
        self.model: nn.Module = model
        self.reconstruction = reconstruction
        self.contrast = contrast
        self.discrimination = discrimination
        self.teacher = teacher
        self.modality_dropout = modality_dropout
        self.has_gaps = has_gaps or modality_dropout > 0
        self.plan = plan
        self.grids: dict[Modality, TokenGrid] = dict(plan.grids)
        for part in model.unused_in_training(self.couples_clips):
            # Several ranks would wait for a gradient that never comes.
            part.requires_grad_(False)

    def loss(self, inputs: Inputs, step: int) -> LossReport:
        """Every term of the stage; ``step`` is not used, masks depend on the clips' seeds alone."""
        own, representations = self.own_loss(inputs, step)
        coupled = self.coupled_loss(representations)
        return LossReport(own.terms | coupled.terms, own.weights | coupled.weights, own.scalars | coupled.scalars)

    @property
    def couples_clips(self) -> bool:
        """Contrast compares clips, prediction does not."""
        return self.plan.num_compared > 0

    def representations(self, inputs: Inputs, step: int) -> dict[str, Tensor]:
        """Pooled tokens ``[B, V, Z]`` by modality, and which clips have both, ``[B]``, where some do not."""
        present = self._present(inputs)
        views = compared_only(self.views(inputs, self.plan))
        return _by_clip(self.model(self.patches(inputs), views, present), present)

    def own_loss(self, inputs: Inputs, step: int) -> tuple[LossReport, dict[str, Tensor]]:
        """The prediction terms, and what :meth:`representations` gives."""
        patches, views, present = self.patches(inputs), self.views(inputs, self.plan), self._present(inputs)
        output: MaskedOutput = self.model(patches, views, present)
        report = LossReport({}, {})
        if self.reconstruction is not None:
            self._add_predictions(report, self.reconstruction, output, patches, views, present)
        return report, _by_clip(output, present)

    def coupled_loss(self, representations: dict[str, Tensor]) -> LossReport:
        """The contrastive terms over all given clips, from :meth:`representations`."""
        if self.contrast is None or not self.couples_clips:
            return LossReport({}, {})
        return contrast_terms(self.contrast, representations, list(self.grids))

    def patches(self, inputs: Inputs) -> dict[Modality, Tensor]:
        """All raw patches ``[B, N, P]`` of each modality."""
        return {m: patchify(inputs.of(m), grid) for m, grid in self.grids.items()}

    def views(self, inputs: Inputs, plan: ViewPlan) -> dict[Modality, MaskedViews]:
        """The views of ``plan``, a function of each clip's seed only."""
        return plan.draw(noise_of(inputs))

    def targets(self, patches: dict[Modality, Tensor], present: Presence | None = None) -> dict[Modality, Tensor]:
        """What predictions are compared with, ``[B, N, values]``."""
        if self.teacher is not None:
            return self.teacher.targets(patches, present)
        if self.reconstruction is not None and self.reconstruction.normalise_patches:
            return {m: normalise_patches(values) for m, values in patches.items()}
        return patches

    def _present(self, inputs: Inputs) -> Presence | None:
        """Which clips have which modality in this step; ``None`` where gaps are not expected."""
        if not self.has_gaps:
            return None
        present = dropped_presence(inputs, list(self.grids), self.modality_dropout)
        everywhere = torch.ones(len(inputs), dtype=torch.bool, device=inputs.of(next(iter(self.grids))).device)
        return {m: everywhere if flags is None else flags for m, flags in present.items()}

    def _add_predictions(
        self,
        report: LossReport,
        settings: Reconstruction,
        output: MaskedOutput,
        patches: dict[Modality, Tensor],
        views: dict[Modality, MaskedViews],
        present: Presence | None,
    ) -> None:
        weights = {"audio": settings.audio_weight, "video": settings.video_weight}
        targets = self.targets(patches, present)
        for modality, target in targets.items():
            name, predictions = f"{modality}_{self._kind}", output.predictions[modality]
            flags = present.get(modality) if present else None
            counted = self._counted(views[modality], flags)
            report.terms[name] = masked_mse(predictions, target, counted, across_ranks=flags is not None)
            report.weights[name] = weights[modality]
            mean, deviation = target_statistics(target)
            report.scalars |= {f"{modality}_target_mean": mean, f"{modality}_target_std": deviation}
            if self.teacher is not None:
                report.scalars[f"{modality}_agreement"] = agreement(predictions, target, counted)
        if self.discrimination is not None:
            self._add_discrimination(report, self.discrimination, output, targets, views, present)

    def _add_discrimination(
        self,
        report: LossReport,
        settings: PatchDiscrimination,
        output: MaskedOutput,
        targets: dict[Modality, Tensor],
        views: dict[Modality, MaskedViews],
        present: Presence | None,
    ) -> None:
        for modality, predictions in output.discriminations.items():
            flags = present.get(modality) if present else None
            ids = _masked_ids(views[modality])
            result = patch_discrimination(
                predictions, targets[modality], ids, settings.softmax_over, flags, across_ranks=flags is not None
            )
            report.terms[f"{modality}_discrimination"] = result.loss
            report.weights[f"{modality}_discrimination"] = settings.weight
            report.scalars[f"{modality}_discrimination_accuracy"] = result.accuracy

    @property
    def _kind(self) -> str:
        return "teacher" if self.teacher is not None else "reconstruction"

    def _counted(self, views: MaskedViews, present: Tensor | None) -> Tensor:
        """``[V, B, N]`` bool: the tokens whose prediction counts."""
        counted = torch.stack([view.is_masked for view in views.predicted])
        if self.reconstruction is not None and self.reconstruction.tokens == "all":
            counted = torch.ones_like(counted)
        return counted if present is None else counted & present[:, None]

    def parameter_groups(self, weight_decay: float, layer_decay: float) -> list[ParameterGroup]:
        """One learning rate for all; ``layer_decay`` belongs to fine-tuning and must be 1 here.

        Raises:
            ValueError: ``layer_decay`` is not 1.
        """
        if layer_decay != 1.0:
            raise ValueError(
                f"optimizer.layer_decay is {layer_decay}, but pre-training trains all layers alike: set it to 1"
            )
        return group_parameters(self.model, weight_decay)

    def evaluate(self, batches: Iterable[Inputs]) -> dict[str, float]:
        """Prediction terms under fixed masks and, with both modalities, retrieval from unmasked embeddings (percent).

        A clip that lacks a modality counts in the terms of the other one. Masks that are drawn per batch follow its first clip.
        """
        model = cast(MaskedLearner, unwrapped(self.model))
        values = collect(batches, lambda inputs: self._evaluate_batch(model, inputs)).values
        has = {m: values[f"{m}_present"].bool() for m in self.grids}
        metrics = {
            f"{m}_{name}": float(values[f"{m}_{name}"][has[m]].mean())
            for m in self.grids
            for name in (self._kind, "discrimination", "discrimination_accuracy")
            if has[m].any() and f"{m}_{name}" in values
        }
        if len(self.grids) == 2:
            both = has["audio"] & has["video"]
            if both.any():
                metrics.update(flat_retrieval(values["audio"][both], values["video"][both]))
        return metrics

    def _evaluate_batch(self, model: MaskedLearner, inputs: Inputs) -> dict[str, Tensor]:
        patches = self.patches(inputs)
        results = {str(m): model.embed(m, values) for m, values in patches.items()}
        for modality in self.grids:
            flags = inputs.present(modality)
            results[f"{modality}_present"] = torch.ones(len(inputs)) if flags is None else flags.float()
        if self.reconstruction is not None:
            results |= self._evaluate_predictions(model, inputs, patches)
        return results

    def _evaluate_predictions(
        self, model: MaskedLearner, inputs: Inputs, patches: dict[Modality, Tensor]
    ) -> dict[str, Tensor]:
        views = self.views(inputs, self.plan.predicting_only())
        # Without dropout; where nothing is absent the fast paths are taken.
        found = {m: inputs.present(m) for m in self.grids}
        present = None if all(flags is None for flags in found.values()) else found
        output: MaskedOutput = model(patches, views, present)
        results: dict[str, Tensor] = {}
        for modality, target in self.targets(patches, present).items():
            errors = (output.predictions[modality][0].float() - target.float()).square().mean(dim=-1)
            counted = self._counted(views[modality], None)[0]
            results[f"{modality}_{self._kind}"] = (errors * counted).sum(dim=1) / counted.sum(dim=1)
            if self.discrimination is not None:
                ids, predictions = _masked_ids(views[modality]), output.discriminations[modality]
                losses, hits = clip_discrimination(predictions, target, ids, self.discrimination.softmax_over)
                results |= {f"{modality}_discrimination": losses[0], f"{modality}_discrimination_accuracy": hits[0]}
        return results

    def collapse_limits(self) -> dict[str, Limit]:
        """Below which logged values this run has collapsed."""
        has_normalised_targets = self.teacher is not None and self.teacher.normalise
        return collapse_limits(list(self.grids), self.couples_clips, has_normalised_targets)

    def export_modules(self) -> dict[str, nn.Module]:
        """Encoders, decoders and fusion, each by name."""
        model = cast(MaskedLearner, unwrapped(self.model))
        return model.parts()


def _masked_ids(views: MaskedViews) -> Tensor:
    """``[V, B, N-K]`` of the predicted views."""
    return torch.stack([view.masked_ids for view in views.predicted])


def _by_clip(output: MaskedOutput, present: Presence | None) -> dict[str, Tensor]:
    """Pooled tokens with the clips first, ``[B, V, Z]``, and presence as numbers, because all of it may be differentiated."""
    rows = {str(modality): pooled.transpose(0, 1) for modality, pooled in output.pooled.items()}
    if not rows or present is None:
        return rows
    flags = {f"{m}_present": flag for m, flag in present.items() if flag is not None}
    return rows | {name: flag.to(next(iter(rows.values())).dtype) for name, flag in flags.items()}


def flat_retrieval(audio: Tensor, video: Tensor) -> dict[str, float]:
    """Retrieval both ways as ``audio_to_video/recall_at_1_percent`` and so on, with the gallery size once."""
    flat: dict[str, float] = {}
    for way, result in both_directions(audio, video).items():
        flat |= {f"{way}/{name}": float(v) for name, v in result.items() if name.startswith(("recall", "median"))}
    return flat | {"gallery_size": float(len(audio))}


@torch.inference_mode()
def embed_batch(
    model: MaskedLearner, grids: dict[Modality, TokenGrid], inputs: Inputs, projects: bool = True
) -> dict[str, Tensor]:
    """:meth:`MaskedLearner.embed` of each complete modality."""
    return {m: model.embed(m, patchify(inputs.of(m), grid), projects) for m, grid in grids.items()}
