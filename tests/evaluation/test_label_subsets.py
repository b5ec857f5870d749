"""VGGSounder's protocol against a slow loop and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    jaccard_score,
    precision_score,
    recall_score,
    roc_auc_score,
)

from mavil.evaluation.label_subsets import MarkedLabels, modality_confusion, subset_metrics

CLASSES = ("dog", "rain", "song")
LABELS = MarkedLabels({"a": {"dog": "AV", "rain": "A"}, "b": {"song": "V"}, "z": {"dog": ""}})


def test_subsets_take_labels_by_how_they_are_perceived() -> None:
    expected = {
        "all": [[1, 1, 0], [0, 0, 0], [0, 0, 1]],
        "audible": [[1, 1, 0], [0, 0, 0], [0, 0, 0]],
        "visible": [[1, 0, 0], [0, 0, 0], [0, 0, 1]],
        "audible and visible": [[1, 0, 0], [0, 0, 0], [0, 0, 0]],
        "audible only": [[0, 1, 0], [0, 0, 0], [0, 0, 0]],
        "visible only": [[0, 0, 0], [0, 0, 0], [0, 0, 1]],
    }
    for subset, rows in expected.items():
        assert LABELS.targets(["a", "nobody", "b"], CLASSES, subset).astype(int).tolist() == rows, subset
    assert LABELS.has_marks
    assert not MarkedLabels({"z": {"dog": ""}}).has_marks
    assert LABELS.classes() == set(CLASSES)


def test_metrics_of_the_best_classes_agree_with_scikit_learn() -> None:
    random = np.random.default_rng(0)
    scores, is_positive = random.normal(size=(50, 6)), random.random((50, 6)) < 0.3
    is_positive[:, 5] = False  # a class that no clip has
    is_positive[~is_positive.any(axis=1), 0] = True
    found = subset_metrics(scores, is_positive, resamples=30)
    assert {int(name.rpartition("_")[2]) for name in found if "at" in name} == {1, 3, 5}  # 10 are more than there are
    for k in (1, 3, 5):
        best = np.argsort(-scores, axis=1)[:, :k]
        chosen = np.zeros_like(is_positive)
        np.put_along_axis(chosen, best, True, axis=1)
        expected = {
            "hit": (chosen & is_positive).any(axis=1).mean(),
            "accuracy": accuracy_score(is_positive, chosen),
            "precision": precision_score(is_positive, chosen, average="micro"),
            "recall": recall_score(is_positive, chosen, average="micro"),
            "f1": f1_score(is_positive, chosen, average="micro"),
            "f1_macro": f1_score(is_positive, chosen, average="macro", zero_division=0),
            "jaccard": jaccard_score(is_positive, chosen, average="micro"),
        }
        for name, value in expected.items():
            estimate = found[f"{name}_at_{k}"]
            assert estimate.value == pytest.approx(value, abs=1e-12), name
            assert estimate.low <= estimate.value <= estimate.high
    some, own = is_positive[:, :5], scores[:, :5]
    assert found["map"].value == pytest.approx(average_precision_score(some, own, average="macro"), abs=1e-6)
    assert found["auc"].value == pytest.approx(roc_auc_score(some, own, average="macro"), abs=1e-6)


def test_confusion_counts_clips_that_the_second_modality_spoils() -> None:
    is_positive = np.eye(2, dtype=bool)[[0, 0, 0, 0]]
    right, wrong = [1.0, 0.0], [0.0, 1.0]
    scores = {
        "audio": np.array([right, right, wrong, right]),
        "video": np.array([right, wrong, right, right]),
        "audio+video": np.array([wrong, wrong, wrong, right]),
    }
    found = modality_confusion(scores, is_positive)
    assert found == {"audio": 0.5, "video": 0.5, "both": 0.25, "either": 0.75}
