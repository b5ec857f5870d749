"""Pre-training: masked reconstruction or a teacher's tokens, and masked contrast between and within modalities."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from mavil.config import Contrast, Reconstruction
from mavil.evaluation.collapse import alignment, embedding_std, normalised, target_statistics, uniformity
from mavil.evaluation.predict import collect
from mavil.evaluation.retrieval import both_directions
from mavil.losses.contrastive import symmetric_info_nce
from mavil.losses.reconstruction import masked_mse, normalise_patches
from mavil.models.masked import MaskedLearner, MaskedOutput
from mavil.models.masking import random_masking
from mavil.models.tokens import patchify
from mavil.structs import Inputs, LossReport, MaskedView, Modality, TokenGrid, uniform_draws
from mavil.tasks.base import ParameterGroup, group_parameters, unwrapped
from mavil.tasks.teacher import Teacher


class Pretraining:
    """Stage 1 without a teacher, stage 2 and later with one [paper, section 3; equations in docs/training.md].

    ``stage 1 = reconstruction + alpha inter(a', v') + beta (intra(a', a'') + intra(v', v''))``; with a teacher the decoders
    predict its tokens instead of raw patches. View 1 is reconstructed and compared across modalities; view 2, a second mask
    of the same crop, exists only where the intra-modal term has weight. Masks are drawn per clip from its seed.
    """

    def __init__(
        self,
        model: MaskedLearner,
        mask_ratios: dict[Modality, float],
        reconstruction: Reconstruction,
        contrast: Contrast | None,
        teacher: Teacher | None = None,
    ) -> None:
        self.model: nn.Module = model
        self.mask_ratios = mask_ratios
        self.reconstruction = reconstruction
        self.contrast = contrast
        self.teacher = teacher
        self.grids: dict[Modality, TokenGrid] = {m: model.grid(m) for m in mask_ratios}
        if model.fusion is not None and not (contrast and contrast.inter_weight + contrast.intra_weight > 0):
            # Pooling alone uses these norms then, and nothing the pooling: several ranks wait for a gradient that never comes.
            for modality in mask_ratios:
                model.encoder(modality).norm.requires_grad_(False)

    def loss(self, inputs: Inputs, step: int) -> LossReport:
        """Every term of the stage; ``step`` is not used, masks depend on the clips' seeds alone."""
        own, representations = self.own_loss(inputs, step)
        coupled = self.coupled_loss(representations)
        return LossReport(own.terms | coupled.terms, own.weights | coupled.weights, own.scalars | coupled.scalars)

    @property
    def couples_clips(self) -> bool:
        """Contrast compares clips, prediction does not."""
        return self.contrast is not None and self.contrast.inter_weight + self.contrast.intra_weight > 0

    def representations(self, inputs: Inputs, step: int) -> dict[str, Tensor]:
        """Pooled encoder outputs ``[B, V, D]`` by modality."""
        return _by_clip(self.model(self.patches(inputs), self.views(inputs, self._num_views), decodes=False))

    def own_loss(self, inputs: Inputs, step: int) -> tuple[LossReport, dict[str, Tensor]]:
        """The prediction terms, and pooled encoder outputs ``[B, V, D]`` by modality."""
        patches, views = self.patches(inputs), self.views(inputs, self._num_views)
        output: MaskedOutput = self.model(patches, views)
        report = LossReport({}, {})
        self._add_predictions(report, output, patches, views)
        return report, _by_clip(output)

    def coupled_loss(self, representations: dict[str, Tensor]) -> LossReport:
        """The contrastive terms over all given clips, ``[B, V, D]`` by modality."""
        report = LossReport({}, {})
        self._add_contrast(report, representations)
        return report

    @property
    def _num_views(self) -> int:
        return 2 if self.contrast and self.contrast.intra_weight > 0 else 1

    def patches(self, inputs: Inputs) -> dict[Modality, Tensor]:
        """All raw patches ``[B, N, P]`` of each modality."""
        return {m: patchify(inputs.of(m), grid) for m, grid in self.grids.items()}

    def views(self, inputs: Inputs, num_views: int) -> dict[Modality, list[MaskedView]]:
        """Independent masks per modality and view, a function of each clip's seed only; drawn on the CPU, where seeds stay."""
        views: dict[Modality, list[MaskedView]] = {}
        for modality, grid in self.grids.items():
            num_visible = grid.num_visible(self.mask_ratios[modality])
            noises = [
                uniform_draws(inputs.seeds, f"{modality} mask {view}", grid.num_tokens) for view in range(num_views)
            ]
            views[modality] = [random_masking(noise.to(inputs.of(modality).device), num_visible) for noise in noises]
        return views

    def targets(self, patches: dict[Modality, Tensor]) -> dict[Modality, Tensor]:
        """What predictions are compared with, ``[B, N, values]``."""
        if self.teacher is not None:
            return self.teacher.targets(patches)
        if self.reconstruction.normalise_patches:
            return {m: normalise_patches(values) for m, values in patches.items()}
        return patches

    def _add_predictions(
        self,
        report: LossReport,
        output: MaskedOutput,
        patches: dict[Modality, Tensor],
        views: dict[Modality, list[MaskedView]],
    ) -> None:
        kind = "teacher" if self.teacher is not None else "reconstruction"
        weights = {"audio": self.reconstruction.audio_weight, "video": self.reconstruction.video_weight}
        for modality, target in self.targets(patches).items():
            name = f"{modality}_{kind}"
            report.terms[name] = masked_mse(output.predictions[modality], target, views[modality][0].is_masked)
            report.weights[name] = weights[modality]
            mean, deviation = target_statistics(target)
            report.scalars |= {f"{modality}_target_mean": mean, f"{modality}_target_std": deviation}

    def _add_contrast(self, report: LossReport, pooled: dict[str, Tensor]) -> None:
        contrast = self.contrast
        if contrast is None:
            return
        across_ranks = contrast.negatives == "global"
        pairs: dict[str, tuple[Tensor, Tensor, float, float]] = {}
        if contrast.inter_weight > 0:
            audio, video = pooled["audio"][:, 0], pooled["video"][:, 0]
            pairs["inter_contrast"] = (audio, video, contrast.inter_temperature, contrast.inter_weight)
        if contrast.intra_weight > 0:
            for modality, views in pooled.items():
                name = f"{modality}_intra_contrast"
                pairs[name] = (views[:, 0], views[:, 1], contrast.intra_temperature, contrast.intra_weight)
        for name, (first, second, temperature, weight) in pairs.items():
            result = symmetric_info_nce(first, second, temperature, across_ranks)
            report.terms[name] = result.loss
            report.weights[name] = weight
            report.scalars[f"{name}_accuracy"] = result.accuracy
            report.scalars["num_negatives"] = result.num_negatives
        report.scalars |= collapse_indicators({modality: views[:, 0] for modality, views in pooled.items()})

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
        """Prediction terms under fixed masks and, with both modalities, retrieval from unmasked embeddings (percent)."""
        model = cast(MaskedLearner, unwrapped(self.model))
        collected = collect(batches, lambda inputs: self._evaluate_batch(model, inputs))
        kind = "teacher" if self.teacher is not None else "reconstruction"
        metrics = {f"{m}_{kind}": float(collected.values[f"{m}_error"].mean()) for m in self.grids}
        if len(self.grids) == 2:
            metrics.update(flat_retrieval(collected.values["audio"], collected.values["video"]))
        return metrics

    def _evaluate_batch(self, model: MaskedLearner, inputs: Inputs) -> dict[str, Tensor]:
        patches, views = self.patches(inputs), self.views(inputs, 1)
        predictions = model(patches, views).predictions
        results: dict[str, Tensor] = {}
        for modality, target in self.targets(patches).items():
            errors = (predictions[modality].float() - target.float()).square().mean(dim=-1)
            is_masked = views[modality][0].is_masked
            results[f"{modality}_error"] = (errors * is_masked).sum(dim=1) / is_masked.sum(dim=1)
            results[modality] = model.embed(modality, patches[modality])
        return results

    def export_modules(self) -> dict[str, nn.Module]:
        """Encoders, decoders and fusion, each by name."""
        model = cast(MaskedLearner, unwrapped(self.model))
        return model.parts()


def _by_clip(output: MaskedOutput) -> dict[str, Tensor]:
    """Pooled encoder outputs with the clips first: ``[B, V, D]``."""
    return {str(modality): pooled.transpose(0, 1) for modality, pooled in output.pooled.items()}


def collapse_indicators(pooled: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of pooled encoder outputs ``[B, D]`` by modality: how the embeddings spread, and with both how well partners agree.

    One clip has nothing to spread: then there are none.
    """
    embeddings = {modality: normalised(rows) for modality, rows in pooled.items() if len(rows) > 1}
    indicators: dict[str, Tensor] = {}
    for modality, rows in embeddings.items():
        indicators[f"{modality}_embedding_std"] = embedding_std(rows)
        indicators[f"{modality}_embedding_uniformity"] = uniformity(rows)
    if len(embeddings) == 2:
        indicators["audio_video_alignment"] = alignment(embeddings["audio"], embeddings["video"])
    return indicators


def flat_retrieval(audio: Tensor, video: Tensor) -> dict[str, float]:
    """Retrieval both ways as ``audio_to_video/recall_at_1_percent`` and so on, with the gallery size once."""
    flat: dict[str, float] = {}
    for way, result in both_directions(audio, video).items():
        flat |= {f"{way}/{name}": float(v) for name, v in result.items() if name.startswith(("recall", "median"))}
    return flat | {"gallery_size": float(len(audio))}


@torch.inference_mode()
def embed_batch(model: MaskedLearner, grids: dict[Modality, TokenGrid], inputs: Inputs) -> dict[str, Tensor]:
    """Pooled embedding ``[B, D]`` of each complete modality, the same numbers retrieval compares."""
    return {m: model.embed(m, patchify(inputs.of(m), grid)) for m, grid in grids.items()}
