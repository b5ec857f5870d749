"""Metrics of clips against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm

from mavil.evaluation.hear.scores import scene_metrics


def test_accuracies() -> None:
    targets = np.eye(14)[[0, 12, 1, 13]]
    scores = np.eye(14)[[0, 0, 2, 13]]
    metrics = scene_metrics(("top1_acc", "pitch_acc", "chroma_acc"), scores, targets)
    assert metrics == {"top1_acc": 0.5, "pitch_acc": 0.5, "chroma_acc": 0.75}


def test_ranking_metrics_are_means_over_classes() -> None:
    targets = np.array([[1, 0], [0, 1], [1, 0], [0, 1]])
    scores = np.array([[0.9, 0.6], [0.1, 0.2], [0.8, 0.1], [0.4, 0.9]])
    # First class: perfect. Second: of 2 x 2 pairs one is in the wrong order, ranks of the positives are 1 and 3.
    metrics = scene_metrics(("mAP", "aucroc"), scores, targets)
    assert metrics["mAP"] == pytest.approx((1 + (1 + 2 / 3) / 2) / 2)
    assert metrics["aucroc"] == pytest.approx((1 + 3 / 4) / 2)
    both_wrong = scene_metrics(("d_prime",), scores[:, [1, 1]], targets[:, [1, 1]])
    assert both_wrong["d_prime"] == pytest.approx(math.sqrt(2) * norm.ppf(0.75))


def test_a_class_without_clips() -> None:
    targets, scores = np.array([[1, 0], [0, 0]]), np.array([[0.9, 0.5], [0.1, 0.4]])
    metrics = scene_metrics(("mAP", "aucroc", "d_prime"), scores, targets)
    assert metrics["mAP"] == 0.5
    assert math.isnan(metrics["aucroc"])
    assert math.isnan(metrics["d_prime"])
