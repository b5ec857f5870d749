"""InfoNCE within a clip against a slow loop, in closed form, and blind to what is not hidden or not there."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mavil.losses.patch_discrimination import SoftmaxOver, patch_discrimination

VIEWS, CLIPS, TOKENS, VALUES, HIDDEN = 2, 3, 6, 5, 4


def random_case() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    predictions = torch.randn(VIEWS, CLIPS, TOKENS, VALUES, dtype=torch.float64, generator=generator)
    targets = torch.randn(CLIPS, TOKENS, VALUES, dtype=torch.float64, generator=generator)
    ids = torch.rand(VIEWS, CLIPS, TOKENS, generator=generator).argsort(dim=2)[:, :, :HIDDEN]
    return predictions, targets, ids


def slow_terms(
    predictions: Tensor, targets: Tensor, ids: Tensor, softmax_over: SoftmaxOver
) -> dict[int, list[tuple[float, bool]]]:
    """Loss and hit of every hidden token of each clip, one dot product at a time."""
    terms: dict[int, list[tuple[float, bool]]] = {}
    for view in range(VIEWS):
        for clip in range(CLIPS):
            hidden = ids[view, clip].tolist()
            for i in hidden:
                own = float(predictions[view, clip, i] @ targets[clip, i])
                to_targets = [float(predictions[view, clip, i] @ targets[clip, j]) for j in hidden]
                to_predictions = [float(predictions[view, clip, j] @ targets[clip, i]) for j in hidden]
                rivals = to_targets if softmax_over == "targets" else to_predictions
                loss = math.log(sum(map(math.exp, rivals))) - own
                terms.setdefault(clip, []).append((loss, own == max(to_targets)))
    return terms


@pytest.mark.parametrize("softmax_over", ["targets", "predictions"])
def test_against_a_slow_loop_and_absent_clips_count_nowhere(softmax_over: SoftmaxOver) -> None:
    case = random_case()
    terms = slow_terms(*case, softmax_over)
    for present in (None, torch.tensor([True, False, True])):
        found = patch_discrimination(*case, softmax_over, present)
        expected = [term for clip in range(CLIPS) if present is None or present[clip] for term in terms[clip]]
        assert found.loss.item() == pytest.approx(sum(loss for loss, _ in expected) / len(expected), rel=1e-12)
        assert found.accuracy.item() == pytest.approx(sum(hit for _, hit in expected) / len(expected))


def test_closed_forms() -> None:
    ids = random_case()[2]
    alike = patch_discrimination(torch.randn(VIEWS, CLIPS, TOKENS, VALUES), torch.ones(CLIPS, TOKENS, VALUES), ids)
    assert alike.loss.item() == pytest.approx(math.log(HIDDEN), rel=1e-6)
    one_hot = torch.eye(TOKENS).expand(CLIPS, -1, -1)
    perfect = patch_discrimination(50 * one_hot.expand(VIEWS, -1, -1, -1), one_hot, ids)
    assert perfect.loss.item() < 1e-6
    assert perfect.accuracy == 1
    nobody = patch_discrimination(*random_case(), present=torch.zeros(CLIPS, dtype=torch.bool))
    assert (nobody.loss.item(), nobody.accuracy.item()) == (0, 0)


def test_only_predictions_of_hidden_tokens_of_present_clips_get_a_gradient() -> None:
    predictions, targets, ids = random_case()
    predictions.requires_grad_()
    present = torch.tensor([True, True, False])
    patch_discrimination(predictions, targets, ids, present=present).loss.backward()  # type: ignore[no-untyped-call]
    assert predictions.grad is not None
    is_counted = torch.zeros(VIEWS, CLIPS, TOKENS, dtype=torch.bool).scatter(2, ids, True) & present[:, None]
    assert torch.equal(predictions.grad.abs().sum(dim=3) > 0, is_counted)


def test_half_precision_is_left() -> None:
    predictions, targets, ids = random_case()
    exact = patch_discrimination(predictions.float(), targets.float(), ids).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(patch_discrimination(predictions.float(), targets.float(), ids).loss, exact)
