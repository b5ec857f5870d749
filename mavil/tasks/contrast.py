"""The terms of pre-training that compare clips: sound with picture, and two views of one modality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mavil.config import Contrast
from mavil.evaluation.collapse import alignment, embedding_std, normalised, uniformity
from mavil.losses.contrastive import symmetric_info_nce
from mavil.structs import LossReport, Modality


def contrast_terms(
    contrast: Contrast, representations: Mapping[str, Tensor], modalities: Sequence[Modality]
) -> LossReport:
    """``inter_contrast`` of the first views, ``{modality}_intra_contrast`` of the first two, and how embeddings spread.

    ``representations``: pooled tokens ``[B, V, Z]`` by modality and, where clips may lack one, ``{modality}_present`` ``[B]``.
    """
    report = LossReport({}, {})
    pooled = {m: representations[m] for m in modalities}
    present = {m: flags.bool() for m in modalities if (flags := representations.get(f"{m}_present")) is not None}
    across_ranks = contrast.negatives == "global"

    def add(name: str, first: Tensor, second: Tensor, temperature: float, weight: float, **named: object) -> None:
        result = symmetric_info_nce(first, second, temperature, across_ranks, **named)  # type: ignore[arg-type]
        report.terms[name] = result.loss
        report.weights[name] = weight
        report.scalars[f"{name}_accuracy"] = result.accuracy
        report.scalars["num_negatives"] = result.num_negatives

    if contrast.inter_weight > 0:
        both = torch.stack(list(present.values())).all(dim=0) if present else None
        directions = "both" if contrast.directions == "both" else "first_for_second"
        audio, video = pooled["audio"][:, 0], pooled["video"][:, 0]
        weight, temperature = contrast.inter_weight, contrast.inter_temperature
        add("inter_contrast", audio, video, temperature, weight, present=both, directions=directions)
    if contrast.intra_weight > 0:
        weight, temperature = contrast.intra_weight, contrast.intra_temperature
        for m, views in pooled.items():
            name = f"{m}_intra_contrast"
            add(name, views[:, 0], views[:, 1], temperature, weight, present=present.get(m))
    report.scalars |= collapse_indicators({modality: views[:, 0] for modality, views in pooled.items()}, present)
    return report


def collapse_indicators(pooled: Mapping[Modality, Tensor], present: Mapping[Modality, Tensor]) -> dict[str, Tensor]:
    """Of pooled tokens ``[B, Z]`` by modality: how the embeddings spread, and with both how well partners agree.

    One clip has nothing to spread: then there are none. Where clips may lack a modality, only the deviation is told, of those
    that have it (``present`` ``[B]`` bool by modality).
    """
    embeddings = {modality: normalised(rows) for modality, rows in pooled.items() if len(rows) > 1}
    if present:
        return {f"{m}_embedding_std": embedding_std(rows, present.get(m)) for m, rows in embeddings.items()}
    indicators: dict[str, Tensor] = {}
    for modality, rows in embeddings.items():
        indicators[f"{modality}_embedding_std"] = embedding_std(rows)
        indicators[f"{modality}_embedding_uniformity"] = uniformity(rows)
    if len(embeddings) == 2:
        indicators["audio_video_alignment"] = alignment(embeddings["audio"], embeddings["video"])
    return indicators
