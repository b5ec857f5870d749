"""Everything that is said about the scores of a classifier on one evaluation set, with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import ndtri
from torch import Tensor

from mavil.evaluation.calibration import Calibration, calibration
from mavil.evaluation.decisions import decided, hits_at, recall_and_f1
from mavil.evaluation.metrics import checked, random_order_precision
from mavil.evaluation.pairs import Pair, confusion_pairs, outranking_pairs
from mavil.evaluation.resampling import Progress, draw_counts, means_over_classes
from mavil.structs import UserError

BOOTSTRAP_SEED = 0
"""One for all runs: intervals of two runs on the same clips are then of the same resamples."""
LEVEL = 95.0
"""Percent of the interval."""


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval over resamples of the clips; NaN where nothing defines it."""

    value: float
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True)
class ClassRow:
    """One class: clips that have it, average precision, area under the ROC curve, recall. NaN where nothing defines it."""

    name: str
    positives: int
    average_precision: float
    auc: float
    recall: float


@dataclass(frozen=True)
class Scored:
    """What :func:`score_clips` found.

    Attributes:
        metrics: by name.
        chance: what guesses would reach, by name.
        classes: one row per class of the vocabulary.
        left_out: classes without a positive or without a negative clip, which no mean over classes counts.
        calibration, pairs: see there.
        resampled: every metric in every resample, ``[1 + resamples]``, the clips as they are first.
    """

    num_clips: int
    metrics: dict[str, Estimate]
    chance: dict[str, float]
    classes: list[ClassRow]
    left_out: list[str]
    calibration: Calibration
    pairs: list[Pair]
    resampled: dict[str, np.ndarray]

    def as_json(self) -> dict[str, Any]:
        """Everything but the resamples, as JSON can hold it: what is not finite is ``None``."""
        parts = asdict(self)
        del parts["resampled"]
        parts["pairs"] = [{**asdict(pair), "share": pair.share} for pair in self.pairs]
        plain: dict[str, Any] = finite(parts)
        return plain


def score_clips(
    scores: Tensor,
    targets: Tensor,
    classes: Sequence[str],
    multi_label: bool,
    resamples: int = 1000,
    progress: Progress = lambda done, total: None,
) -> Scored:
    """Judge ``[n, classes]`` logits by ``[n, classes]`` multi-hot targets.

    ``map``, ``auc`` and ``d_prime`` are over the classes with a positive and a negative clip: average precision and area under
    the ROC curve per class, then the mean; d' is sqrt(2) times the normal quantile of that mean area, AudioSet's convention
    [source AST]. With one label per clip ``accuracy``, ``top5_accuracy``, ``balanced_accuracy`` (mean recall) and ``macro_f1``;
    with several ``hit_at_1``, ``hit_at_5`` (share of clips with a label among the best) and ``macro_f1`` with every class above
    one half chosen. Recall and F1 are over the classes with a positive clip. Ties share the point, see :func:`hits_at`.

    The interval is the bootstrap's over clips: its 2.5th and 97.5th percentile. A class that a resample has no positive or no
    negative clip of is left out of that resample's mean.

    Raises:
        UserError: a score is not finite, or no clip has a label.
        ValueError: shapes differ, or a row has not exactly one label without ``multi_label``.
    """
    given, labels = checked(scores, targets)
    values, is_positive = given.numpy(), labels.numpy()
    if not is_positive.any():
        raise UserError(f"none of the {len(values)} clips has a label: use data that has labels")
    if not multi_label and (is_positive.sum(axis=1) != 1).any():
        raise ValueError("a clip has not exactly one label: use multi_label=True")
    counts = draw_counts(len(values), resamples, BOOTSTRAP_SEED)
    resampled, of_classes = means_over_classes(values, is_positive, counts, progress)
    resampled["d_prime"] = resampled["auc"]
    found, recall = _of_decisions(values, is_positive, multi_label, counts)
    resampled |= found
    positives = is_positive.sum(axis=0)
    is_scored = (positives > 0) & (positives < len(values))
    return Scored(
        len(values),
        {name: estimate_of(name, samples) for name, samples in resampled.items()},
        _chance(is_positive, is_scored, multi_label),
        [
            ClassRow(name, int(number), of_class[0], of_class[1], float(own))
            for name, number, of_class, own in zip(classes, positives, of_classes, recall, strict=True)
        ],
        [name for name, is_in in zip(classes, is_scored, strict=True) if not is_in],
        calibration(values, is_positive, multi_label),
        (outranking_pairs if multi_label else confusion_pairs)(values, is_positive, classes),
        resampled,
    )


def estimate_of(name: str, samples: np.ndarray) -> Estimate:
    """The value, first of ``samples`` ``[1 + resamples]``, with its interval; ``d_prime`` is made of areas here."""
    value, bounds = float(samples[0]), [math.nan, math.nan]
    drawn = samples[1:][~np.isnan(samples[1:])]
    if len(drawn):
        tail = (100 - LEVEL) / 2
        bounds = [float(bound) for bound in np.percentile(drawn, [tail, 100 - tail])]
    if name == "d_prime":
        # Percentiles of the areas first: between infinite d' none could be taken.
        value, *bounds = (math.sqrt(2) * float(ndtri(area)) for area in (value, *bounds))
    return Estimate(value, *bounds)


def finite(value: Any) -> Any:
    """The same tree with ``None`` for numbers that are not finite, which JSON does not know."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _of_decisions(
    values: np.ndarray, is_positive: np.ndarray, multi_label: bool, counts: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Metrics of what is decided in every resample, and the recall of each class."""
    names = ("hit_at_1", "hit_at_5") if multi_label else ("accuracy", "top5_accuracy")
    found = {
        name: hits_at(values, is_positive, k) @ counts / len(values) for name, k in zip(names, (1, 5), strict=True)
    }
    recall, f1 = recall_and_f1(decided(values, multi_label), is_positive, counts)
    if not multi_label:
        found["balanced_accuracy"] = np.nanmean(recall, axis=0)
    found["macro_f1"] = np.nanmean(f1, axis=0)
    return found, recall[:, 0]


def _chance(is_positive: np.ndarray, is_scored: np.ndarray, multi_label: bool) -> dict[str, float]:
    num_clips, num_classes = is_positive.shape
    positives = is_positive.sum(axis=0)[is_scored]
    chance = {"auc": 0.5, "d_prime": 0.0}
    if len(positives):
        chance["map"] = float(np.mean([random_order_precision(num_clips, int(number)) for number in positives]))
        chance["mean_prevalence"] = float(positives.mean() / num_clips)
    if not multi_label:
        chance["accuracy_majority"] = float(is_positive.mean(axis=0).max())
        chance["accuracy"] = 1 / num_classes
        chance["top5_accuracy"] = min(5 / num_classes, 1.0)
    return chance
