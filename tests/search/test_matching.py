from __future__ import annotations

import numpy as np
import pytest

from mavil.evaluation.nearest import nearest
from mavil.search.matching import Nearest, best_clips


def exactly(values: np.ndarray, asked: list[int] | None = None) -> Nearest:
    def search(queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        if asked is not None:
            asked.append(k)
        scores, rows = nearest(queries, values, k)
        return scores.numpy(), rows.numpy()

    return search


def unit(rows: int, width: int = 8, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


@pytest.mark.parametrize("num_clips", [3, 40])
def test_best_clips_are_those_of_a_comparison_with_every_row(num_clips: int) -> None:
    values, queries = unit(900), unit(37, seed=1)  # more windows than are compared at once
    clip_of_row = np.random.default_rng(2).integers(num_clips, size=900)
    hits = best_clips(exactly(values), queries, clip_of_row, 5, len(values))
    scores = queries @ values.T
    best = {clip: scores[:, clip_of_row == clip].max() for clip in range(num_clips)}
    wanted = sorted(best, key=lambda clip: -best[clip])[:5]
    assert [int(clip_of_row[hit.row]) for hit in hits] == wanted
    for hit in hits:
        assert hit.score == pytest.approx(scores[hit.query, hit.row], abs=1e-6)
        assert hit.score == pytest.approx(best[int(clip_of_row[hit.row])], abs=1e-6)


def test_many_windows_of_one_clip_do_not_hide_the_others() -> None:
    """Three hundred near copies of the query in one clip stand before the two other clips."""
    query = unit(1)
    copies = query + 0.001 * unit(300, seed=3)
    values = np.concatenate([copies, -query, unit(1, seed=4)])
    clip_of_row = np.array([0] * 300 + [1, 2])
    asked: list[int] = []
    hits = best_clips(exactly(values, asked), query, clip_of_row, 3, len(values))
    assert [int(clip_of_row[hit.row]) for hit in hits] == [0, 2, 1]
    assert asked == [64, 256, 302]


def test_a_clip_behind_many_rows_of_another_is_not_lost_to_a_worse_one_of_another_window() -> None:
    """The first window's nearest rows are all of clip 0; behind them clip 1 fits it better than any clip fits the second."""
    queries = np.eye(3, dtype=np.float32)[:2]
    values = np.zeros((102, 3), dtype=np.float32)
    values[:100, 0] = 1.0
    values[100] = (0.9, 0.0, np.sqrt(1 - 0.81))
    values[101] = (0.0, 0.1, np.sqrt(1 - 0.01))
    hits = best_clips(exactly(values), queries, np.array([0] * 100 + [1, 2]), 2, 102)
    assert [(hit.row, hit.query) for hit in hits] == [(0, 0), (100, 0)]


def test_few_rows_are_asked_for_where_they_suffice() -> None:
    asked: list[int] = []
    best_clips(exactly(unit(1000), asked), unit(1, seed=1), np.arange(1000), 10, 1000)
    assert asked == [64]


def test_equal_clips_come_in_the_order_of_the_index() -> None:
    values = np.tile(unit(1), (200, 1))
    hits = best_clips(exactly(values), unit(2, seed=1), np.arange(200), 4, 200)
    assert [hit.row for hit in hits] == [0, 1, 2, 3]


def test_an_index_that_finds_fewer_is_not_asked_again() -> None:
    def search(queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        assert k == 64
        rows = np.full((len(queries), k), -1)
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        rows[:, 0], scores[:, 0] = 7, 0.5
        return scores, rows

    hits = best_clips(search, unit(2), np.arange(500), 10, 500)
    assert [(hit.row, hit.query, hit.score) for hit in hits] == [(7, 0, 0.5)]
