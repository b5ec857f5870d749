from itertools import permutations

import pytest
import torch
from sklearn.metrics import average_precision_score

from mavil.evaluation.retrieval.class_precision import class_precisions

LABELS = [("dog",), ("cat", "dog"), ("rain",), (), ("cat",), ("rain", "dog"), ("owl",)]


def shares(i: int, j: int) -> bool:
    return bool(set(LABELS[i]) & set(LABELS[j]))


def precision_of(order: list[int], query: int) -> float:
    places = [place for place, item in enumerate(order, start=1) if shares(query, item)]
    return sum(number / place for number, place in enumerate(places, start=1)) / len(places)


def test_without_equals_it_is_scikit_learns() -> None:
    generator = torch.Generator().manual_seed(0)
    queries, gallery = torch.randn(7, 5, generator=generator), torch.randn(7, 5, generator=generator)
    found, _ = class_precisions(queries, gallery, LABELS)
    scores = torch.nn.functional.cosine_similarity(queries[:, None], gallery[None], dim=-1)
    for i in range(7):
        if LABELS[i]:
            expected = average_precision_score([shares(i, j) for j in range(7)], scores[i].numpy())
            assert found[i].item() == pytest.approx(expected)
    assert found[3].isnan()


def test_equals_count_as_the_mean_over_their_orders_and_chance_over_all() -> None:
    queries = torch.tensor([[1.0, 0.0]]).repeat(7, 1)
    gallery = torch.tensor([[1.0, 1], [1, 0], [1, 1], [2, 2], [1, -1], [0, 1], [1, 1.0]])
    found, chance = class_precisions(queries, gallery, LABELS)
    # Item 1 is first; 0, 2, 3, 4 and 6 are equal; 5 is last.
    orders = [[1, *middle, 5] for middle in permutations([0, 2, 3, 4, 6])]
    for i in (0, 1, 2, 4, 5, 6):
        assert found[i].item() == pytest.approx(sum(precision_of(order, i) for order in orders) / len(orders))
    every = list(permutations(range(7)))[::7]
    assert chance[0].item() == pytest.approx(sum(precision_of(list(o), 0) for o in every) / len(every), rel=0.02)
    same, _ = class_precisions(torch.ones(7, 2), torch.ones(7, 2), LABELS)
    assert torch.allclose(same, chance, equal_nan=True, rtol=1e-12)
