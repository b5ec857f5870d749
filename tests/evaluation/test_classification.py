"""All numbers of one evaluation against scikit-learn and torchmetrics; intervals against resampling in a loop."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    roc_auc_score,
    top_k_accuracy_score,
)
from torch import Tensor

from mavil.evaluation.classification import score_clips
from mavil.evaluation.resampling import draw_counts
from mavil.structs import UserError

CLASSES = tuple(f"class {i}" for i in range(8))


def several(num_clips: int = 60, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Scores with ties and targets with several labels; nobody has class 3, everybody has class 5."""
    generator = torch.Generator().manual_seed(seed)
    targets = (torch.rand(num_clips, 8, generator=generator) < 0.2).float()
    targets[:, 3], targets[:, 5] = 0, 1
    scores = torch.randn(num_clips, 8, generator=generator) + targets
    return (4 * scores).round() / 4, targets


def single(num_clips: int = 60) -> tuple[Tensor, Tensor]:
    """One label per clip; nobody has class 7."""
    generator = torch.Generator().manual_seed(1)
    targets = torch.eye(8)[torch.randint(0, 7, (num_clips,), generator=generator)]
    return torch.randn(num_clips, 8, generator=generator) + targets, targets


KEPT = [c for c in range(8) if c not in (3, 5)]


def test_several_labels_agree_with_scikit_learn_over_classes_with_a_positive_and_a_negative() -> None:
    scores, targets = several()
    found = score_clips(scores, targets, CLASSES, True, resamples=0)
    s, t = scores.numpy(), targets.numpy()
    area = roc_auc_score(t[:, KEPT], s[:, KEPT], average="macro")
    expected = {
        "map": average_precision_score(t[:, KEPT], s[:, KEPT], average="macro"),
        "auc": area,
        "d_prime": math.sqrt(2) * norm.ppf(area),
        "macro_f1": f1_score(t[:, [*KEPT, 5]], s[:, [*KEPT, 5]] > 0, average="macro"),
    }
    for name, value in expected.items():
        assert found.metrics[name].value == pytest.approx(value, abs=1e-6), name
        assert math.isnan(found.metrics[name].low)
    assert set(found.metrics) == {*expected, "hit_at_1", "hit_at_5"}
    assert found.left_out == ["class 3", "class 5"]
    row = found.classes[2]
    assert (row.name, row.positives) == ("class 2", t[:, 2].sum())
    assert row.average_precision == pytest.approx(average_precision_score(t[:, 2], s[:, 2]), abs=1e-6)
    assert row.auc == pytest.approx(roc_auc_score(t[:, 2], s[:, 2]), abs=1e-6)
    assert found.chance["mean_prevalence"] == pytest.approx(t[:, KEPT].mean())


def test_one_label_agrees_with_scikit_learn() -> None:
    scores, targets = single()
    found = score_clips(scores, targets, CLASSES, False, resamples=0)
    s, labels = scores.numpy(), targets.argmax(1).numpy()
    expected = {
        "accuracy": accuracy_score(labels, s.argmax(1)),
        "top5_accuracy": top_k_accuracy_score(labels, s, k=5, labels=range(8)),
        "balanced_accuracy": balanced_accuracy_score(labels, s.argmax(1)),
        "macro_f1": f1_score(labels, s.argmax(1), labels=range(7), average="macro"),
        "map": average_precision_score(targets[:, :7].numpy(), s[:, :7], average="macro"),
        "auc": roc_auc_score(targets[:, :7].numpy(), s[:, :7], average="macro"),
    }
    assert {name: found.metrics[name].value for name in expected} == pytest.approx(expected, abs=1e-6)
    assert found.chance["accuracy"] == 1 / 8
    assert found.chance["accuracy_majority"] == pytest.approx(np.bincount(labels).max() / 60)
    recalls = [(s.argmax(1)[labels == c] == c).mean() for c in range(7)]
    assert [row.recall for row in found.classes[:7]] == pytest.approx(recalls)
    assert math.isnan(found.classes[7].recall)


def test_agreement_with_torchmetrics() -> None:
    classification = pytest.importorskip("torchmetrics.functional.classification")
    scores, targets = several()
    found = score_clips(scores, targets, CLASSES, True, resamples=0)
    s, t = scores[:, KEPT], targets[:, KEPT].long()
    expected = classification.multilabel_average_precision(s.sigmoid().double(), t, num_labels=6, average="macro")
    assert found.metrics["map"].value == pytest.approx(float(expected), abs=1e-6)
    expected = classification.multilabel_auroc(s.sigmoid().double(), t, num_labels=6, average="macro")
    assert found.metrics["auc"].value == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("multi_label", [True, False])
def test_intervals_are_percentiles_of_resampled_clips(multi_label: bool) -> None:
    scores, targets = several(25) if multi_label else single(25)
    found = score_clips(scores, targets, CLASSES, multi_label, resamples=15)
    counts = draw_counts(25, 15, 0)
    values: dict[str, list[float]] = {name: [] for name in ("map", "auc", "hit_at_1" if multi_label else "accuracy")}
    for column in range(1, 16):
        rows = np.repeat(np.arange(25), counts[:, column])
        s, t = scores.numpy()[rows], targets.numpy()[rows]
        kept = [c for c in range(8) if 0 < t[:, c].sum() < len(rows)]
        values["map"].append(np.mean([average_precision_score(t[:, c], s[:, c]) for c in kept]))
        values["auc"].append(np.mean([roc_auc_score(t[:, c], s[:, c]) for c in kept]))
        if not multi_label:
            values["accuracy"].append(np.mean(s.argmax(1) == t.argmax(1)))
    for name in [n for n in values if values[n]]:
        low, high = np.percentile(values[name], [2.5, 97.5])
        assert (found.metrics[name].low, found.metrics[name].high) == pytest.approx((low, high), abs=1e-6)
    area = found.metrics["auc"]
    assert found.metrics["d_prime"].low == pytest.approx(math.sqrt(2) * norm.ppf(area.low))
    again = score_clips(scores, targets, CLASSES, multi_label, resamples=15)
    assert again.metrics == found.metrics


def test_what_is_not_defined_is_none_in_json() -> None:
    perfect = score_clips(torch.eye(3), torch.eye(3), CLASSES[:3], False, resamples=20)
    assert perfect.metrics["d_prime"].value == math.inf
    tree = perfect.as_json()
    assert tree["metrics"]["d_prime"]["value"] is None
    assert tree["metrics"]["accuracy"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    json.dumps(tree, allow_nan=False)
    # Every clip is of one class: nothing separates classes, and accuracy is still defined.
    alone = score_clips(torch.eye(3), torch.eye(3)[[0, 0, 0]], CLASSES[:3], False, resamples=5)
    assert math.isnan(alone.metrics["map"].value)
    assert alone.left_out == list(CLASSES[:3])
    assert alone.metrics["accuracy"].value == pytest.approx(1 / 3)
    json.dumps(alone.as_json(), allow_nan=False)


def test_what_is_refused() -> None:
    with pytest.raises(UserError, match="none of the 2 clips has a label"):
        score_clips(torch.zeros(2, 3), torch.zeros(2, 3), CLASSES[:3], True)
    with pytest.raises(UserError, match="1 of 2 clips are not finite"):
        score_clips(torch.tensor([[math.nan, 0.0], [0.0, 0.0]]), torch.eye(2), CLASSES[:2], False)
    with pytest.raises(ValueError, match="not exactly one label"):
        score_clips(torch.zeros(1, 2), torch.ones(1, 2), CLASSES[:2], False)


def test_progress_ends_at_the_whole() -> None:
    told: list[tuple[int, int]] = []
    score_clips(*several(10), CLASSES, True, resamples=3, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (8, 8)
