"""How good a classifier's scores are: top-1 accuracy, mean average precision, and what chance would give."""

from __future__ import annotations

import torch
from torch import Tensor

from mavil.structs import UserError


def classification_metrics(scores: Tensor, targets: Tensor, multi_label: bool) -> dict[str, float]:
    """Metrics of one evaluation set, as ratios in [0, 1] and counts.

    Args:
        scores: ``[n, classes]``, larger means more likely; logits or probabilities, only their order matters.
        targets: ``[n, classes]`` multi-hot; exactly one class per row unless ``multi_label``.
        multi_label: leave out the accuracy, which has no meaning with several labels per clip.

    Returns:
        ``map``: average precision per class, mean over the classes that have a positive clip (the AudioSet protocol
        [source AudioMAE]); ``map_chance``: its expectation under a random order, exactly; ``mean_prevalence``: share of
        positives over the same classes, what constant scores reach. ``num_clips``, ``num_classes`` and
        ``num_classes_scored`` (those with a positive). With one label per clip also ``accuracy``, and for comparison
        ``accuracy_chance_majority`` (always the most frequent class) and ``accuracy_chance_uniform`` (1 / classes).

    Raises:
        UserError: a score is not finite.
        ValueError: shapes differ, there is no clip or no positive, or a row has not exactly one label.
    """
    scores, is_positive = checked(scores, targets)
    num_clips, num_classes = scores.shape
    positives = is_positive.sum(0)
    scored = [c for c in range(num_classes) if positives[c] > 0]
    if not scored:
        raise ValueError(f"none of the {num_clips} clips has a label: average precision needs at least one positive")
    # Takes more than a second to import, and pre-training does without.
    from sklearn.metrics import average_precision_score

    precisions = [average_precision_score(is_positive[:, c].numpy(), scores[:, c].numpy()) for c in scored]
    metrics = {
        "map": sum(precisions) / len(scored),
        "map_chance": sum(random_order_precision(num_clips, int(positives[c])) for c in scored) / len(scored),
        "mean_prevalence": (positives[scored].double().mean() / num_clips).item(),
        "num_clips": float(num_clips),
        "num_classes": float(num_classes),
        "num_classes_scored": float(len(scored)),
    }
    if not multi_label:
        metrics |= _accuracy(scores, is_positive)
    return metrics


def checked(scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The scores ``[n, classes]`` as float64 and which targets are positive, as bool, both on the CPU.

    Raises:
        UserError: a score is not finite.
        ValueError: shapes differ, or there is no clip.
    """
    scores, targets = scores.detach().double().cpu(), targets.detach().cpu()
    if scores.ndim != 2 or scores.shape != targets.shape or len(scores) == 0:
        raise ValueError(
            f"scores {tuple(scores.shape)} and targets {tuple(targets.shape)} must both be [clips, classes]"
        )
    bad = (~scores.isfinite()).any(1).sum().item()
    if bad:
        raise UserError(
            f"the scores of {bad} of {len(scores)} clips are not finite: the model has diverged, evaluate an earlier checkpoint"
        )
    return scores, targets > 0.5


def _accuracy(scores: Tensor, is_positive: Tensor) -> dict[str, float]:
    labels_per_clip = is_positive.sum(1)
    if (labels_per_clip != 1).any():
        row = int((labels_per_clip != 1).nonzero()[0])
        raise ValueError(
            f"clip {row} has {int(labels_per_clip[row])} labels, accuracy needs exactly one: use multi_label=True"
        )
    # Equal best scores share the point: constant scores get 1 / classes, not the share of whichever class comes first.
    is_best = scores == scores.amax(1, keepdim=True)
    credit = (is_best & is_positive).sum(1) / is_best.sum(1)
    return {
        "accuracy": credit.double().mean().item(),
        "accuracy_chance_majority": is_positive.double().mean(0).max().item(),
        "accuracy_chance_uniform": 1.0 / scores.shape[1],
    }


def random_order_precision(num_clips: int, num_positives: int) -> float:
    """Expected average precision of a random order, exactly.

    A positive at rank k has (k - 1)(positives - 1)/(clips - 1) other positives above it on average, so its precision is
    expected to be (1 + that) / k; all ranks are equally likely. More than the prevalence, much more for few clips.
    """
    ranks = torch.arange(1, num_clips + 1, dtype=torch.float64)
    others = (num_positives - 1) / max(num_clips - 1, 1)
    return ((1 + (ranks - 1) * others) / ranks).mean().item()
