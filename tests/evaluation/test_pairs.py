"""Pairs of classes against a slow loop."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from mavil.evaluation.pairs import MOST_PAIRS, confusion_pairs, outranking_pairs

CLASSES = [f"class {i}" for i in range(6)]
RANDOM = np.random.default_rng(2)


def test_confusion_is_that_of_scikit_learn() -> None:
    scores, labels = RANDOM.normal(size=(150, 6)), RANDOM.integers(0, 6, 150)
    pairs = confusion_pairs(scores, np.eye(6, dtype=bool)[labels], CLASSES)
    matrix = confusion_matrix(labels, scores.argmax(1))
    off = sorted((int(matrix[a, b]) for a in range(6) for b in range(6) if a != b), reverse=True)
    assert [pair.wrong for pair in pairs] == off[:MOST_PAIRS]
    for pair in pairs:
        a, b = CLASSES.index(pair.true), CLASSES.index(pair.other)
        assert (pair.wrong, pair.clips, pair.together) == (matrix[a, b], matrix[a].sum(), 0)
        assert pair.share == pair.wrong / pair.clips
    tied = confusion_pairs(np.zeros((1, 6)), np.eye(6, dtype=bool)[[2]], CLASSES)
    assert [pair.wrong for pair in tied] == pytest.approx([1 / 6] * 5)
    assert confusion_pairs(np.eye(6), np.eye(6, dtype=bool), CLASSES) == []


def test_outranking_counts_clips_of_one_class_without_the_other() -> None:
    scores, is_positive = RANDOM.integers(0, 3, (80, 6)).astype(float), RANDOM.random((80, 6)) < 0.4
    pairs = outranking_pairs(scores, is_positive, CLASSES)
    assert len(pairs) == MOST_PAIRS
    assert sorted((pair.wrong for pair in pairs), reverse=True) == [pair.wrong for pair in pairs]
    for pair in pairs:
        a, b = CLASSES.index(pair.true), CLASSES.index(pair.other)
        rows = [i for i in range(80) if is_positive[i, a] and not is_positive[i, b]]
        wrong = sum((scores[i, b] > scores[i, a]) + 0.5 * (scores[i, b] == scores[i, a]) for i in rows)
        assert (pair.clips, pair.wrong) == (len(rows), wrong)
        assert pair.together == (is_positive[:, a] & is_positive[:, b]).sum()
