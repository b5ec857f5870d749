import math
from itertools import permutations

import pytest
import torch
from sklearn.metrics import average_precision_score

from mavil.evaluation.metrics import classification_metrics
from mavil.structs import UserError


def slow_average_precision(scores: list[float], positives: list[bool]) -> float:
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    found, precisions = 0, []
    for rank, i in enumerate(order, start=1):
        if positives[i]:
            found += 1
            precisions.append(found / rank)
    return sum(precisions) / len(precisions)


def test_against_hand_computed_numbers() -> None:
    scores = torch.tensor([[3.0, 1.0, 0.0], [2.0, 0.0, 1.0], [0.0, 1.0, 2.0], [0.0, 2.0, 1.0]])
    targets = torch.eye(3)[[0, 1, 2, 1]]
    metrics = classification_metrics(scores, targets, multi_label=False)
    assert metrics["accuracy"] == pytest.approx(0.75)
    assert metrics["accuracy_chance_majority"] == pytest.approx(0.5)
    assert metrics["accuracy_chance_uniform"] == pytest.approx(1 / 3)
    # Class 0 and 2 are ranked first; class 1: positives at ranks 1 and 4.
    assert metrics["map"] == pytest.approx((1 + (1 + 2 / 4) / 2 + 1) / 3)
    assert (metrics["num_clips"], metrics["num_classes"], metrics["num_classes_scored"]) == (4, 3, 3)


def test_map_is_the_mean_over_classes_that_have_a_positive() -> None:
    generator = torch.Generator().manual_seed(0)
    scores, targets = torch.randn(50, 6, generator=generator), (torch.rand(50, 6, generator=generator) < 0.2).float()
    targets[:, 4] = 0
    metrics = classification_metrics(scores, targets, multi_label=True)
    kept = [c for c in range(6) if c != 4]
    slow = [slow_average_precision(scores[:, c].tolist(), targets[:, c].bool().tolist()) for c in kept]
    assert metrics["map"] == pytest.approx(sum(slow) / 5, rel=1e-12)
    assert metrics["num_classes_scored"] == 5
    assert metrics["mean_prevalence"] == pytest.approx(targets[:, kept].mean().item())
    assert "accuracy" not in metrics


def test_chance_of_map_is_the_mean_over_all_orders() -> None:
    orders = list(permutations([True, True, False, False, False]))
    expected = sum(average_precision_score(order, [5, 4, 3, 2, 1]) for order in orders) / len(orders)
    targets = torch.tensor([[1.0], [1.0], [0.0], [0.0], [0.0]])
    assert classification_metrics(torch.zeros(5, 1), targets, True)["map_chance"] == pytest.approx(expected)


def test_constant_scores_are_worth_nothing() -> None:
    targets = torch.eye(4)[[0] * 6 + [1, 2, 3]]
    metrics = classification_metrics(torch.zeros(9, 4), targets, multi_label=False)
    assert metrics["accuracy"] == pytest.approx(1 / 4)
    assert metrics["map"] == pytest.approx(metrics["mean_prevalence"])


def test_what_is_refused() -> None:
    scores, targets = torch.zeros(2, 2), torch.eye(2)
    with pytest.raises(UserError, match="1 of 2 clips are not finite"):
        classification_metrics(torch.tensor([[0.0, math.nan], [0.0, 0.0]]), targets, False)
    with pytest.raises(ValueError, match="clip 1 has 2 labels"):
        classification_metrics(scores, torch.tensor([[1.0, 0.0], [1.0, 1.0]]), False)
    with pytest.raises(ValueError, match="none of the 2 clips"):
        classification_metrics(scores, torch.zeros(2, 2), True)
    with pytest.raises(ValueError, match="must both be"):
        classification_metrics(scores, torch.zeros(2, 3), True)
