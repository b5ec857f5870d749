import math

import pytest
import torch

from mavil.losses.contrastive import symmetric_info_nce


def slow_info_nce(first: torch.Tensor, second: torch.Tensor, temperature: float) -> float:
    """Both directions by hand, one pair at a time."""

    def cosine(x: torch.Tensor, y: torch.Tensor) -> float:
        return float((x @ y) / (x.norm() * y.norm()))

    total = 0.0
    for queries, keys in ((first, second), (second, first)):
        for i, query in enumerate(queries):
            scores = [math.exp(cosine(query, key) / temperature) for key in keys]
            total -= math.log(scores[i] / sum(scores))
    return total / (2 * len(first))


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_against_a_slow_double_loop(temperature: float) -> None:
    torch.manual_seed(0)
    first, second = torch.randn(6, 5, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)
    result = symmetric_info_nce(first, second, temperature)
    assert result.loss.dtype == torch.float64
    assert result.loss.item() == pytest.approx(slow_info_nce(first, second, temperature), rel=1e-12)
    assert result.num_negatives == 5


def test_identical_embeddings_give_the_logarithm_of_the_candidates() -> None:
    same = torch.ones(8, 4)
    torch.testing.assert_close(symmetric_info_nce(same, same, 0.1).loss, torch.tensor(math.log(8)))


def test_perfect_embeddings_approach_zero() -> None:
    result = symmetric_info_nce(torch.eye(8), 3 * torch.eye(8), 0.01)
    assert result.loss < 1e-6
    assert result.accuracy == 1


def test_swapping_sides_changes_nothing_but_swapping_rows_does() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(6, 5), torch.randn(6, 5)
    loss = symmetric_info_nce(first, second, 0.1).loss
    torch.testing.assert_close(symmetric_info_nce(second, first, 0.1).loss, loss)
    assert not torch.allclose(symmetric_info_nce(first, second.roll(1, 0), 0.1).loss, loss)


def test_scale_of_embeddings_does_not_matter() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(6, 5), torch.randn(6, 5)
    torch.testing.assert_close(
        symmetric_info_nce(first, second, 0.1).loss, symmetric_info_nce(7 * first, second / 3, 0.1).loss
    )


def test_autocast_keeps_float32() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(6, 5), torch.randn(6, 5)
    with torch.autocast("cpu", torch.bfloat16):
        loss = symmetric_info_nce(first, second, 0.1).loss
    assert torch.equal(loss, symmetric_info_nce(first, second, 0.1).loss)
