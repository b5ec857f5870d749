from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from mavil.evaluation import resampling
from mavil.evaluation.classification import BOOTSTRAP_SEED, score_clips
from mavil.evaluation.resampling import class_metrics, draw_counts, means_over_classes, resampled_metrics

NUM_CLIPS, NUM_CLASSES = 40, 4


@pytest.fixture
def scores() -> np.ndarray:
    """Few different values: many ties, between positives and negatives too."""
    return np.random.default_rng(0).integers(0, 7, (NUM_CLIPS, NUM_CLASSES)).astype(float)


@pytest.fixture
def targets() -> np.ndarray:
    """The last but one class has a single positive clip, the last one none."""
    found = np.random.default_rng(1).random((NUM_CLIPS, NUM_CLASSES)) < 0.3
    found[:, -2:] = False
    found[5, [0, -2]] = True
    return found


def test_weights_are_clips_repeated(scores: np.ndarray, targets: np.ndarray) -> None:
    counts = draw_counts(NUM_CLIPS, 25, seed=3)
    assert (counts.sum(axis=0) == NUM_CLIPS).all()
    assert (counts[:, 0] == 1).all()
    assert len(np.unique(counts, axis=1).T) == 26
    for c in range(NUM_CLASSES - 1):
        precisions, areas = class_metrics(scores[:, c], targets[:, c], counts)
        for precision, area, column in zip(precisions, areas, counts.T, strict=True):
            rows = np.repeat(np.arange(NUM_CLIPS), column)
            if targets[rows, c].any():
                assert precision == pytest.approx(average_precision_score(targets[rows, c], scores[rows, c]), abs=1e-12)
                assert area == pytest.approx(roc_auc_score(targets[rows, c], scores[rows, c]), abs=1e-12)


def test_what_a_resample_lacks_has_no_number(scores: np.ndarray, targets: np.ndarray) -> None:
    counts = np.ones((NUM_CLIPS, 3), dtype=np.uint8)
    counts[5, 1] = 0
    counts[~targets[:, 0], 2] = 0
    precision, _ = class_metrics(scores[:, 2], targets[:, 2], counts)
    assert np.isnan(precision).tolist() == [False, True, False]
    assert np.isnan(class_metrics(scores[:, 0], targets[:, 0], counts)[1]).tolist() == [False, False, True]


@pytest.mark.parametrize("multi_label", [False, True])
def test_means_are_those_of_an_evaluation(
    scores: np.ndarray, targets: np.ndarray, multi_label: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not multi_label:
        targets = np.eye(NUM_CLASSES, dtype=bool)[np.arange(NUM_CLIPS) % (NUM_CLASSES - 1)]
    expected = score_clips(
        torch.from_numpy(scores), torch.from_numpy(targets), list("abcd"), multi_label, resamples=25
    ).resampled
    monkeypatch.setattr(resampling, "AT_ONCE", 7 * NUM_CLIPS)  # in four parts
    found = resampled_metrics(scores, targets, draw_counts(NUM_CLIPS, 25, BOOTSTRAP_SEED), multi_label)
    assert set(found) == {"map", "auc"} | (set() if multi_label else {"accuracy"})
    for name, values in found.items():
        assert values == pytest.approx(expected[name], abs=1e-12)


def test_own_numbers_of_a_class_are_those_of_the_clips_as_they_are(
    scores: np.ndarray, targets: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the resamples are summed in several parts: only the first one begins with them."""
    monkeypatch.setattr(resampling, "AT_ONCE", 7 * NUM_CLIPS)
    told: list[tuple[int, int]] = []
    counts = draw_counts(NUM_CLIPS, 25, BOOTSTRAP_SEED)
    _, own = means_over_classes(scores, targets, counts, lambda done, total: told.append((done, total)))
    for number in range(NUM_CLASSES - 1):
        expected = [score(targets[:, number], scores[:, number]) for score in (average_precision_score, roc_auc_score)]
        assert own[number] == pytest.approx(expected, abs=1e-12)
    assert np.isnan(own[-1]).all()
    assert told == [(part + 1, 16) for part in range(16)]
