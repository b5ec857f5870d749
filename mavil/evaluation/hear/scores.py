"""The benchmark's metrics by name, for scenes and for events."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import average_precision_score, roc_auc_score

from mavil.evaluation.hear.event_scores import Events, matched_f_measure, segment_error_rate


@dataclass(frozen=True)
class Metric:
    """What a metric needs and whether more is better; the collar and the rest are for events only."""

    is_event: bool = False
    is_maximised: bool = True
    collar_seconds: float = 0.0
    offset_ratio: float | None = None


METRICS = {
    "top1_acc": Metric(),
    "pitch_acc": Metric(),
    "chroma_acc": Metric(),
    "mAP": Metric(),
    "d_prime": Metric(),
    "aucroc": Metric(),
    "event_onset_200ms_fms": Metric(is_event=True, collar_seconds=0.2),
    "event_onset_50ms_fms": Metric(is_event=True, collar_seconds=0.05),
    "event_onset_offset_50ms_20perc_fms": Metric(is_event=True, collar_seconds=0.05, offset_ratio=0.2),
    "segment_1s_er": Metric(is_event=True, is_maximised=False),
}
"""[source heareval]"""
_SEMITONES = 12


def scene_metrics(names: Sequence[str], scores: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Metrics of clips, by name.

    Args:
        names: of ``METRICS``.
        scores: ``[n, classes]``, larger is more likely.
        targets: ``[n, classes]`` multi-hot.

    Returns:
        Accuracies in [0, 1]; ``mAP`` and ``aucroc`` as mean over *all* classes, in which a class without any clip counts as
        0 for the former and makes the latter (and ``d_prime``) not a number, as in heareval with today's scikit-learn.
    """
    return {name: _scene_metric(name, scores, targets) for name in names}


def event_metrics(
    names: Sequence[str], reference: Events, estimated: Events, labels: Sequence[str]
) -> dict[str, float]:
    """Metrics of events, by name; of F-measures also ``name_precision`` and ``name_recall``, as heareval names them."""
    metrics: dict[str, float] = {}
    for name in names:
        metric = METRICS[name]
        if metric.collar_seconds:
            parts = matched_f_measure(reference, estimated, metric.collar_seconds, metric.offset_ratio)
            metrics |= {name: parts["f_measure"], **{f"{name}_{part}": value for part, value in parts.items()}}
        else:
            metrics[name] = segment_error_rate(reference, estimated, labels, segment_seconds=1.0)
    return metrics


def _scene_metric(name: str, scores: np.ndarray, targets: np.ndarray) -> float:
    if name in ("top1_acc", "pitch_acc"):
        return float(np.mean(scores.argmax(1) == targets.argmax(1)))
    if name == "chroma_acc":
        return float(np.mean(scores.argmax(1) % _SEMITONES == targets.argmax(1) % _SEMITONES))
    with warnings.catch_warnings():
        # What a class without clips counts for is said above; the warning would come at every validation.
        warnings.filterwarnings("ignore", message="No positive class found")
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        if name == "mAP":
            return float(average_precision_score(targets, scores, average="macro"))
        areas = np.asarray(roc_auc_score(targets, scores, average=None))
    if name == "d_prime":
        return float(np.mean(norm.ppf(areas) * np.sqrt(2.0)))
    return float(np.mean(areas))
