"""Decisions against scikit-learn, and ties against all orders."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score, recall_score, top_k_accuracy_score

from mavil.evaluation.decisions import decided, hits_at, recall_and_f1

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("k", [1, 2, 5, 9])
def test_top_k_is_that_of_scikit_learn(k: int) -> None:
    scores, labels = RANDOM.normal(size=(60, 7)), RANDOM.integers(0, 7, 60)
    labels[:7] = range(7)
    expected = 1.0 if k >= 7 else top_k_accuracy_score(labels, scores, k=k)
    assert hits_at(scores, np.eye(7, dtype=bool)[labels], k).mean() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_ties_are_broken_in_every_order_alike(k: int) -> None:
    scores = np.array([[1.0, 0.0, 0.0, 0.0, -1.0], [0.0] * 5, [2.0, 2.0, 1.0, 1.0, 1.0]])
    is_positive = np.array([[0, 1, 1, 0, 0], [0, 0, 1, 1, 0], [0, 1, 0, 0, 1]], dtype=bool)
    for row, labels in zip(scores, is_positive, strict=True):
        orders = [sorted(range(5), key=lambda c: (-row[c], order[c])) for order in permutations(range(5))]
        expected = np.mean([labels[order[:k]].any() for order in orders])
        assert hits_at(row[None], labels[None], k)[0] == pytest.approx(expected, abs=1e-12)


def test_recall_and_f1_are_those_of_scikit_learn_on_every_resample() -> None:
    scores, labels = RANDOM.normal(size=(40, 5)), RANDOM.integers(0, 4, 40)  # nobody has class 4
    labels[:4] = range(4)
    drawn = [np.arange(40), *RANDOM.integers(0, 40, (3, 40))]
    counts = np.stack([np.bincount(rows, minlength=40) for rows in drawn], axis=1)
    recall, f1 = recall_and_f1(decided(scores, False), np.eye(5, dtype=bool)[labels], counts)
    assert np.isnan(recall[4]).all()
    for column, rows in enumerate(drawn):
        true, found = labels[rows], scores[rows].argmax(1)
        expected = f1_score(true, found, labels=np.unique(true), average="macro")
        assert np.nanmean(f1[:, column]) == pytest.approx(expected, abs=1e-12)
        assert np.nanmean(recall[:, column]) == pytest.approx(balanced_accuracy_score(true, found), abs=1e-12)


def test_with_several_labels_a_class_is_chosen_above_one_half() -> None:
    scores, is_positive = RANDOM.normal(size=(30, 4)), RANDOM.random((30, 4)) < 0.4
    scores[0, 0] = 0.0  # exactly one half is not above it
    chosen = decided(scores, True)
    assert chosen[0, 0] == 0
    recall, f1 = recall_and_f1(chosen, is_positive, np.ones((30, 1)))
    assert f1[:, 0] == pytest.approx(f1_score(is_positive, scores > 0, average=None))
    assert recall[:, 0] == pytest.approx(recall_score(is_positive, scores > 0, average=None))
