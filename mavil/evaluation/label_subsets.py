"""VGGSounder: several labels per clip, each told to be audible, visible or both, beside the data's own single label.

Names and formulas are those of the VGGSounder package [source vggsounder/benchmark.py, version 1.0]; docs/evaluation.md tells
what was compared and what differs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mavil.evaluation.classification import BOOTSTRAP_SEED, Estimate, estimate_of
from mavil.evaluation.decisions import hits_at, recall_and_f1
from mavil.evaluation.resampling import class_metrics, draw_counts

BEST = (1, 3, 5, 10)
"""Numbers of best classes that are compared with the labels [source VGGSounder README]."""
SUBSETS: Mapping[str, tuple[str, ...]] = {
    "all": ("A", "V", "AV", ""),
    "audible": ("A", "AV"),
    "visible": ("V", "AV"),
    "audible and visible": ("AV",),
    "audible only": ("A",),
    "visible only": ("V",),
}
"""Marks of the labels that each subset takes; a list without marks has only ``all``."""


@dataclass(frozen=True)
class MarkedLabels:
    """Labels of clips: by clip, the mark (``A``, ``V``, ``AV``, or nothing) of each of its classes."""

    marks: Mapping[str, Mapping[str, str]]

    @property
    def has_marks(self) -> bool:
        """Whether any label says how it is perceived."""
        return any(mark for labels in self.marks.values() for mark in labels.values())

    def classes(self) -> set[str]:
        """All class names."""
        return {name for labels in self.marks.values() for name in labels}

    def targets(self, keys: Sequence[str], classes: Sequence[str], subset: str) -> np.ndarray:
        """``[n, classes]`` bool: the labels of one subset; no label at all where the list does not name a clip."""
        numbers = {name: number for number, name in enumerate(classes)}
        found = np.zeros((len(keys), len(classes)), dtype=bool)
        for row, key in enumerate(keys):
            for name, mark in self.marks.get(key, {}).items():
                found[row, numbers[name]] = mark in SUBSETS[subset]
        return found


def subset_metrics(scores: np.ndarray, is_positive: np.ndarray, resamples: int = 1000) -> dict[str, Estimate]:
    """Metrics of ``[n, classes]`` scores on clips with at least one label each.

    For the k best classes: ``hit_at_k``, the share of clips with a label among them; ``accuracy_at_k`` (subset accuracy), the
    share whose labels are exactly these; ``precision_at_k``, ``recall_at_k``, ``f1_at_k`` and ``jaccard_at_k`` over all (clip,
    class) decisions together (micro); ``f1_macro_at_k``, the mean over **all** classes, 0 for one that no clip has. Of equal
    scores the first class comes first, except for ``hit_at_k``, see :func:`hits_at`. ``map`` and ``auc`` are macro means over
    the classes with a positive and a negative clip, without an interval.
    """
    counts = draw_counts(len(scores), resamples, BOOTSTRAP_SEED)
    order = np.argsort(-scores, axis=1, kind="stable")
    num_labels = is_positive.sum(axis=1)
    found: dict[str, np.ndarray] = {}
    for k in (k for k in BEST if k <= scores.shape[1]):
        right = np.take_along_axis(is_positive, order[:, :k], axis=1).sum(axis=1)
        all_right, all_labels = right @ counts, num_labels @ counts
        chosen = np.zeros(scores.shape)
        np.put_along_axis(chosen, order[:, :k], 1.0, axis=1)
        found[f"hit_at_{k}"] = hits_at(scores, is_positive, k) @ counts / len(scores)
        found[f"accuracy_at_{k}"] = ((right == k) & (num_labels == k)) @ counts / len(scores)
        found[f"precision_at_{k}"] = all_right / (k * len(scores))
        found[f"recall_at_{k}"] = all_right / all_labels
        found[f"f1_at_{k}"] = 2 * all_right / (k * len(scores) + all_labels)
        found[f"f1_macro_at_{k}"] = np.nan_to_num(recall_and_f1(chosen, is_positive, counts)[1]).mean(axis=0)
        found[f"jaccard_at_{k}"] = all_right / (k * len(scores) + all_labels - all_right)
    estimates = {name: estimate_of(name, samples) for name, samples in found.items()}
    ones = np.ones((len(scores), 1), dtype=np.int32)
    is_scored = is_positive.any(axis=0) & ~is_positive.all(axis=0)
    of_classes = np.array(
        [class_metrics(s, p, ones) for s, p in zip(scores.T[is_scored], is_positive.T[is_scored], strict=True)]
    )
    if len(of_classes):
        precision, area = of_classes[:, :, 0].mean(axis=0)
        estimates |= {"map": Estimate(float(precision)), "auc": Estimate(float(area))}
    return estimates


def modality_confusion(scores: Mapping[str, np.ndarray], is_positive: np.ndarray) -> dict[str, float]:
    """Shares of clips that one modality gets right and both together get wrong.

    Args:
        scores: ``[n, classes]`` of ``audio``, ``video`` and ``audio+video``.
        is_positive: ``[n, classes]`` bool; right is a best class that is one of a clip's labels.

    Returns:
        ``audio``, ``video``: that modality alone was right; ``both``: each alone was; ``either``: at least one was.
    """
    hits = {name: hits_at(values, is_positive, 1) for name, values in scores.items()}
    lost = 1 - hits["audio+video"]
    audio, video = hits["audio"], hits["video"]
    shares = {"audio": audio, "video": video, "both": audio * video, "either": audio + video - audio * video}
    return {name: float((share * lost).mean()) for name, share in shares.items()}
