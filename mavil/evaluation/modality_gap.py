"""What the second modality adds: both together against the better one alone, on the clips that have both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mavil.evaluation.classification import Estimate, Scored, estimate_of, score_clips
from mavil.evaluation.predictions import Predictions
from mavil.evaluation.resampling import Progress

BOTH = "audio+video"


@dataclass(frozen=True)
class Gap:
    """``estimate`` is ``metric`` of both modalities less that of ``best_single``, on ``num_clips`` that have both."""

    metric: str
    best_single: str
    estimate: Estimate
    num_clips: int


def modality_gaps(
    predictions: Predictions,
    scored: Mapping[str, Scored],
    resamples: int,
    progress: Progress = lambda done, total: None,
) -> dict[str, list[Gap]]:
    """The gap of mAP and of accuracy (with several labels: hit at 1), by the name of what was shown; empty without both.

    All three are scored on the same resamples of the same clips, so the interval is that of the difference. Which modality is
    the better one is decided once, on the clips as they are.
    """
    found: dict[str, list[Gap]] = {}
    for name in predictions.scores:
        both, comma, windows = name.partition(", ")
        singles = [f"{modality}{comma}{windows}" for modality in ("audio", "video")]
        if both != BOTH or not all(single in predictions.scores for single in singles):
            continue
        rows = predictions.judged(singles[0]) & predictions.judged(singles[1])
        if not rows.any() or not predictions.targets[rows].any():
            continue
        own = {one: scored[one] for one in (*singles, name)}
        if not rows.all():
            targets = predictions.targets[rows]
            own = {
                one: score_clips(
                    predictions.scores[one][rows],
                    targets,
                    predictions.classes,
                    predictions.multi_label,
                    resamples,
                    progress,
                )
                for one in own
            }
        found[name] = [
            _gap(metric, name, singles, own)
            for metric in ("map", "hit_at_1" if predictions.multi_label else "accuracy")
        ]
    return found


def _gap(metric: str, both: str, singles: list[str], scored: Mapping[str, Scored]) -> Gap:
    best = max(singles, key=lambda single: scored[single].metrics[metric].value)
    samples = scored[both].resampled[metric] - scored[best].resampled[metric]
    return Gap(metric, best, estimate_of("gap", samples), scored[both].num_clips)
