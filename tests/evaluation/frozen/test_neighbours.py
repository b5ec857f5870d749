"""Nearest neighbours against a slow loop and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from mavil.evaluation.frozen.labelled import Features
from mavil.evaluation.frozen.neighbours import NearestNeighbours, Neighbours
from tests.evaluation.frozen.clusters import CPU, blobs, labelled, silent

KIND = NearestNeighbours(CPU, silent)


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bank is read in pieces smaller than k."""
    monkeypatch.setattr("mavil.evaluation.frozen.neighbours.ROWS_AT_ONCE", 7)
    monkeypatch.setattr("mavil.evaluation.frozen.neighbours._QUERIES_AT_ONCE", 4)


def slow_votes(bank: np.ndarray, targets: np.ndarray, query: np.ndarray, k: int) -> np.ndarray:
    """One query by plain Python."""
    cosines = [float(query @ row / math.sqrt(query @ query) / math.sqrt(row @ row)) for row in bank]
    best = sorted(range(len(bank)), key=lambda i: -cosines[i])[:k]
    weights = [math.exp(cosines[i] / 0.07) for i in best]
    return np.sum([w * targets[i] for w, i in zip(weights, best, strict=True)], axis=0) / sum(weights)


def test_votes_are_those_of_a_slow_loop_also_with_several_labels() -> None:
    generator = np.random.default_rng(0)
    bank, queries = generator.standard_normal((30, 5)), generator.standard_normal((9, 5))
    targets = (generator.random((30, 4)) < 0.4).astype(np.float64)
    train = labelled(bank.astype(np.float32), targets)
    found = dict(KIND.trials(train, Features([[queries.astype(np.float32)]]), seed=0))
    # 50 of 30 clips are all of them.
    assert [point.k for point in found] == [1, 5, 10, 20, 30]
    for point, scores in found.items():
        expected = [slow_votes(bank, targets, query, point.k) for query in queries]
        assert np.abs(scores.numpy() - expected).max() < 1e-5
        assert torch.equal(scores, KIND.fit(train, point, seed=0)(Features([[queries.astype(np.float32)]])))


def test_one_neighbour_is_scikit_learns() -> None:
    train, test = blobs(60), blobs(40, seed=1)
    values, others = (clips.features.take(np.arange(len(clips)), CPU)[0].numpy() for clips in (train, test))
    known = KNeighborsClassifier(1, metric="cosine").fit(values, train.targets.float().argmax(dim=1))
    scores = KIND.fit(train, Neighbours(1), seed=0)(test.features)
    assert scores.argmax(dim=1).tolist() == known.predict(others).tolist()


def test_modalities_count_alike_whatever_their_scale() -> None:
    generator = np.random.default_rng(0)
    sound, picture = (generator.standard_normal((12, 4)).astype(np.float32) for _ in range(2))
    targets = torch.eye(12)
    scores = []
    for factor in (1.0, 1000.0):
        train = labelled(sound, targets.numpy())
        both = Features([[sound], [factor * picture]])
        train = type(train)(both, targets > 0.5)
        scores.append(KIND.fit(train, Neighbours(12), seed=0)(both))
    assert torch.allclose(scores[0], scores[1], atol=1e-6)
    # A clip is most alike to itself in both.
    assert scores[0].argmax(dim=1).tolist() == list(range(12))
