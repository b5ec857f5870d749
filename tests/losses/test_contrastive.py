from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mavil import distributed
from mavil.losses.contrastive import Directions, symmetric_info_nce
from tests.support.ranks import run_in_ranks


def slow_info_nce(
    first: torch.Tensor, second: torch.Tensor, temperature: float, directions: Directions = "both"
) -> float:
    """The directions by hand, one pair at a time."""

    def cosine(x: torch.Tensor, y: torch.Tensor) -> float:
        return float((x @ y) / (x.norm() * y.norm()))

    total = 0.0
    ways = ((first, second), (second, first)) if directions == "both" else ((second, first),)
    for queries, keys in ways:
        for i, query in enumerate(queries):
            scores = [math.exp(cosine(query, key) / temperature) for key in keys]
            total -= math.log(scores[i] / sum(scores))
    return total / (len(ways) * len(first))


DIRECTIONS = pytest.mark.parametrize("directions", ["both", "first_for_second"])


@DIRECTIONS
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_against_a_slow_double_loop(temperature: float, directions: Directions) -> None:
    torch.manual_seed(0)
    first, second = torch.randn(6, 5, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)
    result = symmetric_info_nce(first, second, temperature, directions=directions)
    assert result.loss.dtype == torch.float64
    assert result.loss.item() == pytest.approx(slow_info_nce(first, second, temperature, directions), rel=1e-12)
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


def test_without_presence_the_numbers_are_those_of_the_plain_formula_bit_for_bit() -> None:
    torch.manual_seed(0)
    rows = torch.randn(6, 5), torch.randn(6, 5)
    first, second = (F.normalize(side, dim=1) for side in rows)
    partners = torch.arange(6)
    forward, backward = first @ second.T / 0.1, second @ first.T / 0.1
    loss = (F.cross_entropy(forward, partners) + F.cross_entropy(backward, partners)) / 2
    assert torch.equal(symmetric_info_nce(*rows, 0.1).loss, loss)


def test_one_direction_asks_for_the_right_first_of_each_second() -> None:
    """CAV-MAE: a softmax over the sounds for each video, and a video that every sound fits is no mistake."""
    torch.manual_seed(0)
    audio, video = torch.randn(6, 5), torch.randn(6, 5)
    total = F.normalize(audio, dim=1) @ F.normalize(video, dim=1).T / 0.05
    result = symmetric_info_nce(audio, video, 0.05, directions="first_for_second")
    torch.testing.assert_close(result.loss, -total.log_softmax(dim=0).diagonal().mean())
    assert result.accuracy.item() == pytest.approx((total.argmax(dim=0) == torch.arange(6)).float().mean().item())


@DIRECTIONS
def test_clips_without_both_sides_are_as_if_they_were_not_there(directions: Directions) -> None:
    torch.manual_seed(0)
    first, second = (torch.randn(6, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    present = torch.tensor([True, False, True, True, False, True])
    with torch.no_grad():
        first[1], second[4] = torch.nan, torch.inf  # whatever stands for what is absent
    result = symmetric_info_nce(first, second, 0.1, present=present, directions=directions)
    alone = symmetric_info_nce(first[present], second[present], 0.1, directions=directions)
    torch.testing.assert_close(result.loss, alone.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(result.accuracy, alone.accuracy.double())
    assert (int(result.num_negatives), alone.num_negatives) == (3, 3)
    gradients = torch.autograd.grad(result.loss, (first, second))
    for gradient, expected in zip(gradients, torch.autograd.grad(alone.loss, (first, second)), strict=True):
        torch.testing.assert_close(gradient[present], expected[present], rtol=1e-10, atol=1e-14)
        assert not gradient[~present].any()


def test_everybody_present_is_the_same_as_no_presence() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(6, 5), torch.randn(6, 5)
    result = symmetric_info_nce(first, second, 0.1, present=torch.ones(6, dtype=torch.bool))
    plain = symmetric_info_nce(first, second, 0.1)
    torch.testing.assert_close(result.loss, plain.loss)
    assert result.accuracy == plain.accuracy
    assert int(result.num_negatives) == plain.num_negatives


def test_nobody_present_is_zero_without_gradient() -> None:
    first, second = (torch.randn(3, 5, requires_grad=True) for _ in range(2))
    result = symmetric_info_nce(first, second, 0.1, present=torch.zeros(3, dtype=torch.bool))
    result.loss.backward()
    assert (result.loss, result.accuracy, int(result.num_negatives)) == (0, 0, 0)
    assert first.grad is not None
    assert not first.grad.any()


ROWS, WIDTH = 3, 4


def rows_of_two_ranks() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    first, second = (torch.randn(2 * ROWS, WIDTH, dtype=torch.float64, generator=generator) for _ in range(2))
    return first, second, torch.randn(WIDTH, WIDTH, dtype=torch.float64, generator=generator)


def _contrast_on_this_rank(present: list[bool] | None, directions: Directions, across_ranks: bool) -> dict[str, Any]:
    own = slice(ROWS * distributed.rank(), ROWS * distributed.rank() + ROWS)
    first, second, weights = rows_of_two_ranks()
    weights.requires_grad_()
    flags = None if present is None else torch.tensor(present)[own]
    result = symmetric_info_nce(first[own] @ weights, second[own] @ weights, 0.2, across_ranks, flags, directions)
    result.loss.backward()
    assert weights.grad is not None
    numbers = {"loss": result.loss.detach(), "accuracy": result.accuracy.double(), "gradient": weights.grad}
    means = {name: distributed.mean_over_ranks(value) for name, value in numbers.items()}
    return means | {"own": result.loss.detach(), "own gradient": weights.grad, "negatives": int(result.num_negatives)}


@DIRECTIONS
@pytest.mark.parametrize(
    "present",
    [
        pytest.param(None, id="no flags"),
        pytest.param([True] * 6, id="all"),
        pytest.param([True, False, True, False, False, True], id="more on rank 0"),
        pytest.param([False, False, False, True, False, True], id="none on rank 0"),
        pytest.param([False] * 6, id="nobody"),
    ],
)
def test_two_ranks_equal_one_process_whoever_is_present(present: list[bool] | None, directions: Directions) -> None:
    first, second, weights = rows_of_two_ranks()
    weights.requires_grad_()
    flags = torch.ones(6, dtype=torch.bool) if present is None else torch.tensor(present)
    pairs = (first[flags] @ weights, second[flags] @ weights)
    gradient, loss, accuracy = torch.zeros_like(weights), torch.tensor(0.0).double(), torch.tensor(0.0).double()
    if flags.any():
        result = symmetric_info_nce(*pairs, 0.2, directions=directions)
        (gradient,) = torch.autograd.grad(result.loss, weights)
        loss, accuracy = result.loss.detach(), result.accuracy.double()
    for rank, answer in enumerate(run_in_ranks(_contrast_on_this_rank, present, directions, True)):
        torch.testing.assert_close(answer["loss"], loss, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(answer["accuracy"], accuracy, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(answer["gradient"], gradient.detach(), rtol=1e-10, atol=1e-13)
        assert answer["negatives"] == max(0, int(flags.sum()) - 1)
        if not flags[ROWS * rank : ROWS * rank + ROWS].any():
            assert answer["own"] == 0


def test_own_candidates_only() -> None:
    """The mean over ranks is the mean over all rows that are there, each among those of its own rank."""
    first, second, weights = rows_of_two_ranks()
    present = [True, False, True, True, True, True]
    halves = [torch.tensor(present[:ROWS]), torch.tensor(present[ROWS:])]
    total = 0.0
    for half, flags in zip((slice(0, ROWS), slice(ROWS, 2 * ROWS)), halves, strict=True):
        pairs = (first[half][flags] @ weights, second[half][flags] @ weights)
        total += float(flags.sum()) * symmetric_info_nce(*pairs, 0.2).loss.item()
    answers = run_in_ranks(_contrast_on_this_rank, present, "both", False)
    assert answers[0]["loss"].item() == pytest.approx(total / 5, rel=1e-12)
    assert [answer["negatives"] for answer in answers] == [1, 2]
