"""Calibration against a slow loop and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import expit, softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from mavil.evaluation.calibration import calibration, reliability

RANDOM = np.random.default_rng(1)


def test_with_one_label_the_best_class_of_every_clip_is_a_decision() -> None:
    scores, labels = 2 * RANDOM.normal(size=(200, 6)), RANDOM.integers(0, 6, 200)
    found = calibration(scores, np.eye(6, dtype=bool)[labels], False)
    shares, error, squares = softmax(scores, axis=1), 0.0, 0.0
    for number in range(15):
        inside = [i for i in range(200) if number < 15 * shares[i].max() <= number + 1]
        if inside:
            confidence = sum(shares[i].max() for i in inside)
            error += abs(confidence - sum(shares[i].argmax() == labels[i] for i in inside)) / 200
    for i in range(200):
        squares += sum((shares[i, c] - (labels[i] == c)) ** 2 for c in range(6)) / 200
    assert found.ece == pytest.approx(error, abs=1e-12)
    assert found.brier == pytest.approx(squares, abs=1e-12)
    assert (found.decisions, sum(b.count for b in found.bins)) == (200, 200)


def test_with_several_labels_every_clip_and_class_is_a_decision() -> None:
    scores, is_positive = 2 * RANDOM.normal(size=(90, 4)), RANDOM.random((90, 4)) < 0.3
    found = calibration(scores, is_positive, True)
    shares = expit(scores).ravel()
    assert found.brier == pytest.approx(brier_score_loss(is_positive.ravel(), shares), abs=1e-12)
    true, predicted = calibration_curve(is_positive.ravel(), shares, n_bins=15)
    bins = [b for b in found.bins if b.count]
    assert [b.outcome for b in bins] == pytest.approx(true)
    assert [b.confidence for b in bins] == pytest.approx(predicted)
    expected = sum(b.count * abs(t - p) for b, t, p in zip(bins, true, predicted, strict=True)) / 360
    assert found.ece == pytest.approx(expected, abs=1e-12)


def test_equal_best_classes_share_the_point_and_bounds_belong_to_the_lower_bin() -> None:
    found = calibration(np.zeros((4, 5)), np.eye(5, dtype=bool)[[0, 1, 2, 3]], False)
    assert found.ece == pytest.approx(0, abs=1e-12)  # one fifth sure, one fifth right
    bins = reliability(np.array([0.0, 0.5, 1.0]), np.array([0.0, 1.0, 1.0]), num_bins=2)
    assert [b.count for b in bins] == [2, 1]
    assert (bins[0].confidence, bins[0].outcome) == (0.25, 0.5)
    assert math.isnan(reliability(np.array([0.9]), np.array([1.0]), num_bins=2)[0].confidence)
