"""The linear probe against scikit-learn's logistic regression, whose optimum it must come to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from mavil.evaluation.frozen import fitting
from mavil.evaluation.frozen.fitting import Budget, Point
from mavil.evaluation.frozen.linear import BUDGET, SMALL_GRID, Linear, moments
from tests.evaluation.frozen.clusters import CPU, blobs, labelled, silent

POINT = Point(1e-1, 1e-2)


def linear(is_multi_label: bool = False, points: Sequence[Point] = SMALL_GRID, budget: Budget = BUDGET) -> Linear:
    return Linear(is_multi_label, CPU, silent, points, budget)


def test_the_fit_is_ridge_penalised_logistic_regression() -> None:
    train, test = blobs(90), blobs(60, seed=1)
    scores = linear().fit(train, POINT, seed=0)(test.features)
    values, others = (clips.features.take(np.arange(len(clips)), CPU)[0].double().numpy() for clips in (train, test))
    scaler = StandardScaler().fit(values)
    known = LogisticRegression(C=1 / (90 * POINT.weight_decay), tol=1e-8, max_iter=5000)
    known.fit(scaler.transform(values), train.targets.float().argmax(dim=1).numpy())
    expected = known.predict_proba(scaler.transform(others))
    assert np.abs(torch.softmax(scores, dim=1).numpy() - expected).max() < 2e-3


def test_several_labels_are_a_regression_for_each_class() -> None:
    train = blobs(80, classes=4)
    targets = train.targets.numpy().astype(np.float64)
    targets[:, 0] = np.maximum(targets[:, 0], targets[:, 1])  # every second clip has two
    values = train.features.take(np.arange(80), CPU)[0].numpy()
    scores = linear(True).fit(labelled(values, targets), POINT, seed=0)(train.features).double()
    scaled = StandardScaler().fit_transform(values.astype(np.float64))
    for number in range(4):
        known = LogisticRegression(C=1 / (80 * POINT.weight_decay), tol=1e-8, max_iter=5000).fit(
            scaled, targets[:, number]
        )
        assert np.abs(torch.sigmoid(scores[:, number]).numpy() - known.predict_proba(scaled)[:, 1]).max() < 2e-3


def test_points_of_a_grid_are_fitted_as_if_alone() -> None:
    train, points = blobs(40), [Point(1e-2, 1e-1), Point(1e-3, 1e-4)]
    kind = linear(points=points, budget=Budget(batch_rows=16, epochs=2, least_steps=20))
    together = dict(kind.trials(train, train.features, seed=3))
    for point in points:
        assert torch.equal(together[point], kind.fit(train, point, seed=3)(train.features))
    assert not torch.equal(*together.values())
    assert not torch.equal(together[points[0]], kind.fit(train, points[0], seed=4)(train.features))


def test_moments_are_those_of_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mavil.evaluation.frozen.linear.ROWS_AT_ONCE", 7)
    values = np.random.default_rng(0).standard_normal((30, 3)).astype(np.float32) * [1, 1e-3, 100] + [0, 1000, -5]
    values[:, 0] = 0.25  # constant: it must not be blown up
    mean, std = moments(labelled(values.astype(np.float32), np.eye(3)[np.arange(30) % 3]).features, CPU)
    expected = values.astype(np.float32).astype(np.float64)
    assert np.allclose(mean, expected.mean(axis=0), rtol=1e-6)
    assert np.allclose(std, [1.0, *expected.std(axis=0)[1:]], rtol=1e-5)


def test_every_clip_comes_once_per_epoch_and_the_rate_ends_at_nothing() -> None:
    order = fitting._Orders(10, 4, seed=0)
    batches = [order.next() for _ in range(6)]
    assert [len(batch) for batch in batches] == [4, 4, 2] * 2
    assert sorted(np.concatenate(batches[:3])) == sorted(np.concatenate(batches[3:])) == list(range(10))
    rates = [fitting._rate(step, 100) for step in range(101)]
    assert (rates[0], max(rates)) == (0.2, 1.0)
    assert rates[100] == pytest.approx(0.0)
    assert Budget(batch_rows=4, epochs=3, least_steps=5).steps(10) == 9
    assert Budget(batch_rows=4, epochs=1, least_steps=5).steps(10) == 5
