from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mavil import distributed
from mavil.losses.reconstruction import masked_mse, normalise_patches
from tests.support.ranks import run_in_ranks


def test_against_a_slow_double_loop() -> None:
    torch.manual_seed(0)
    predictions, patches = torch.randn(3, 5, 7, dtype=torch.float64), torch.randn(3, 5, 7, dtype=torch.float64)
    is_masked = torch.rand(3, 5) > 0.4
    total, count = 0.0, 0
    for clip in range(3):
        for token in range(5):
            if not is_masked[clip, token]:
                continue
            values = patches[clip, token]
            mean = float(sum(values)) / 7
            variance = float(sum((v - mean) ** 2 for v in values)) / 6
            target = [(float(v) - mean) / (variance + 1e-6) ** 0.5 for v in values]
            errors = [(float(p) - t) ** 2 for p, t in zip(predictions[clip, token], target, strict=True)]
            total += sum(errors) / 7
            count += 1
    loss = masked_mse(predictions, normalise_patches(patches), is_masked)
    torch.testing.assert_close(loss.double(), torch.tensor(total / count).double(), rtol=1e-6, atol=1e-6)


def test_closed_forms() -> None:
    targets = torch.randn(2, 4, 6)
    is_masked = torch.tensor([[True, False, True, True], [False, True, False, False]])
    assert masked_mse(targets, targets, is_masked) == 0
    torch.testing.assert_close(masked_mse(targets + 2, targets, is_masked), torch.tensor(4.0))


def test_no_gradient_on_visible_predictions() -> None:
    predictions = torch.randn(2, 4, 6, requires_grad=True)
    is_masked = torch.tensor([[True, False, True, True], [False, True, False, False]])
    masked_mse(predictions, torch.randn(2, 4, 6), is_masked).backward()
    assert predictions.grad is not None
    assert not predictions.grad[~is_masked].any()
    assert predictions.grad[is_masked].all()


def test_constant_patches_become_zero() -> None:
    assert not normalise_patches(torch.full((1, 2, 8), 3.5)).any()


def test_views_share_targets_and_one_view_changes_nothing() -> None:
    predictions, targets = torch.randn(3, 2, 4, 6), torch.randn(2, 4, 6)
    counted = torch.rand(3, 2, 4) > 0.5
    error = sum((predictions[v, b, n] - targets[b, n]).square().mean().item() for v, b, n in counted.nonzero().tolist())
    assert masked_mse(predictions, targets, counted).item() == pytest.approx(error / int(counted.sum()), rel=1e-5)
    one = masked_mse(predictions[0], targets, counted[0])
    assert torch.equal(masked_mse(predictions[:1], targets, counted[:1]), one)
    assert torch.equal(masked_mse(predictions[0], targets, counted[0], across_ranks=True), one)


@pytest.mark.parametrize("across_ranks", [False, True])
def test_nothing_counted_is_zero_without_gradient(across_ranks: bool) -> None:
    predictions = torch.randn(2, 4, 6, requires_grad=True)
    loss = masked_mse(predictions, torch.randn(2, 4, 6), torch.zeros(2, 4, dtype=torch.bool), across_ranks)
    loss.backward()
    assert loss == 0
    assert predictions.grad is not None
    assert not predictions.grad.any()


CLIPS, TOKENS, VALUES = 4, 3, 5


def clips_of_two_ranks(num_counted: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Four clips, two per rank, and the first so many tokens of each rank's clips counted."""
    generator = torch.Generator().manual_seed(3)
    predictions, targets = (torch.randn(CLIPS, TOKENS, VALUES, generator=generator) for _ in range(2))
    numbers = torch.arange(2 * TOKENS).view(2, TOKENS)
    return predictions, targets, torch.cat([numbers < count for count in num_counted])


def _mean_on_this_rank(num_counted: tuple[int, int]) -> tuple[Tensor, Tensor]:
    own = slice(2 * distributed.rank(), 2 * distributed.rank() + 2)
    predictions, targets, counted = (values[own] for values in clips_of_two_ranks(num_counted))
    predictions.requires_grad_()
    loss = masked_mse(predictions, targets, counted, across_ranks=True)
    loss.backward()
    assert predictions.grad is not None
    # What DistributedDataParallel makes of gradients: their mean over ranks.
    return distributed.mean_over_ranks(loss.detach()), predictions.grad / 2


@pytest.mark.parametrize("num_counted", [(3, 3), (1, 5), (0, 4), (0, 1), (0, 0)])
def test_ranks_that_count_different_numbers_equal_one_process(num_counted: tuple[int, int]) -> None:
    predictions, targets, counted = clips_of_two_ranks(num_counted)
    predictions.requires_grad_()
    loss = masked_mse(predictions, targets, counted)
    loss.backward()
    answers = run_in_ranks(_mean_on_this_rank, num_counted)
    for mean, _ in answers:
        torch.testing.assert_close(mean, loss.detach(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(torch.cat([gradient for _, gradient in answers]), predictions.grad, rtol=1e-6, atol=1e-7)
