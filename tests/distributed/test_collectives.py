"""Collectives in two real processes: values, gradients against one process, agreement."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mavil import distributed
from tests.support.ranks import run_in_ranks

ROWS, WIDTH = 3, 4
TEMPERATURE = 0.2


def test_one_process_needs_no_group() -> None:
    rows = torch.randn(ROWS, WIDTH, requires_grad=True)
    assert distributed.gather_with_gradient(rows) is rows
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert distributed.gather_objects({"a": 1}) == [{"a": 1}]
    assert distributed.broadcast_object("x") == "x"
    assert distributed.agree(True)
    assert not distributed.agree(False)
    assert distributed.agree_all(torch.tensor([True, False])) == [True, False]
    assert distributed.mean_over_ranks(torch.tensor(2.0)) == 2.0
    distributed.barrier()


def _gather_rows() -> tuple[Tensor, Tensor, Tensor]:
    mine = torch.arange(6.0).reshape(2, 3).t() + 10 * distributed.rank()  # not contiguous
    mine.requires_grad_()
    other = torch.ones(6, 2, requires_grad=True)
    doubled = other * 2  # made before the gather, so its backward runs after the gather's
    joined = distributed.gather_with_gradient(mine)
    factors = torch.arange(12.0).reshape(6, 2) * (1 + distributed.rank())
    # Both summands receive the very same gradient tensor; the gather must not write into it.
    ((joined + doubled) * factors).sum().backward()
    assert mine.grad is not None
    assert other.grad is not None
    assert torch.equal(other.grad, 2 * factors)
    return joined.detach(), mine.grad, mine.detach()


def test_gather_joins_in_rank_order_and_its_backward_sums_over_ranks() -> None:
    answers = run_in_ranks(_gather_rows)
    expected = torch.cat([mine for _, _, mine in answers])
    factors = torch.arange(12.0).reshape(6, 2) * (1 + 2)
    for rank, (joined, gradient, _) in enumerate(answers):
        assert torch.equal(joined, expected)
        assert torch.equal(gradient, factors[3 * rank : 3 * rank + 3])


class TwoTowers(nn.Module):
    """Two projections in float64; the smallest thing a contrastive loss can train."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.audio, self.video = (
            nn.Parameter(torch.randn(WIDTH, WIDTH, dtype=torch.float64, generator=generator)) for _ in range(2)
        )

    def forward(self, audio: Tensor, video: Tensor) -> tuple[Tensor, Tensor]:
        return F.normalize(audio @ self.audio, dim=1), F.normalize(video @ self.video, dim=1)


def info_nce(audio: Tensor, video: Tensor, gather: Callable[[Tensor], Tensor], first: int) -> Tensor:
    """Symmetric InfoNCE of own rows against all columns; ``first`` is the number of the first own row."""
    labels = first + torch.arange(len(audio))
    audio_to_video = F.cross_entropy(audio @ gather(video).t() / TEMPERATURE, labels)
    video_to_audio = F.cross_entropy(video @ gather(audio).t() / TEMPERATURE, labels)
    return (audio_to_video + video_to_audio) / 2


def clips(ranks: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(8)
    audio, video = (torch.randn(ranks * ROWS, WIDTH, dtype=torch.float64, generator=generator) for _ in range(2))
    return audio, video


def loss_of_one_process(model: TwoTowers, ranks: int) -> Tensor:
    audio, video = model(*clips(ranks))
    return info_nce(audio, video, gather=lambda rows: rows, first=0)


def _contrast_on_this_rank(gather_name: str) -> dict[str, Any]:
    first = distributed.rank() * ROWS
    audio, video = (values[first : first + ROWS] for values in clips(distributed.world_size()))
    gather = distributed.gather_with_gradient if gather_name == "with gradient" else _gather_without_gradient
    model = TwoTowers()
    wrapped = DistributedDataParallel(model)
    ours = wrapped(audio, video)
    loss = info_nce(ours[0], ours[1], gather, first)
    loss.backward()
    return {"loss": distributed.mean_over_ranks(loss.detach()), **{n: p.grad for n, p in model.named_parameters()}}


def _gather_without_gradient(rows: Tensor) -> Tensor:
    return distributed.gather_with_gradient(rows.detach())


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_info_nce_over_ranks_has_the_loss_and_gradient_of_one_process(ranks: int) -> None:
    model = TwoTowers()
    loss = loss_of_one_process(model, ranks)
    loss.backward()
    expected = {"loss": loss.detach(), **{name: p.grad for name, p in model.named_parameters()}}
    for answer in run_in_ranks(_contrast_on_this_rank, "with gradient", ranks=ranks):
        torch.testing.assert_close(answer, expected, rtol=1e-12, atol=1e-14)


def test_a_gather_without_gradient_would_not(tmp_path: Any) -> None:
    """The comparison above is able to fail: this is the common mistake."""
    model = TwoTowers()
    loss_of_one_process(model, 2).backward()
    answer = run_in_ranks(_contrast_on_this_rank, "without gradient")[0]
    assert model.audio.grad is not None
    assert (answer["audio"] - model.audio.grad).norm() > 0.05 * model.audio.grad.norm()


def _talk() -> dict[str, Any]:
    rank = distributed.rank()
    return {
        "all": distributed.agree(True),
        "one": distributed.agree(rank == 0),
        "flags": distributed.agree_all(torch.tensor([True, rank == 1, False])),
        "objects": distributed.gather_objects(["clip"] * (3 * rank)),
        "broadcast": distributed.broadcast_object({"from": rank}),
        "mean": distributed.mean_over_ranks(torch.tensor([1.0 + rank, 4.0])),
        "is_main": distributed.is_main(),
    }


def test_ranks_agree_and_exchange_values_of_different_lengths() -> None:
    answers = run_in_ranks(_talk)
    assert [answer.pop("is_main") for answer in answers] == [True, False]
    for answer in answers:
        assert torch.equal(answer.pop("mean"), torch.tensor([1.5, 4.0]))
        assert answer == {
            "all": True,
            "one": False,
            "flags": [True, False, False],
            "objects": [[], ["clip"] * 3],
            "broadcast": {"from": 0},
        }


def _fail_on_rank_1() -> None:
    if distributed.rank() == 1:
        raise KeyError("a clip that is not there")
    distributed.barrier()


def test_the_runner_reports_the_traceback_of_a_rank() -> None:
    with pytest.raises(AssertionError, match=r"(?s)rank 1: Traceback.*a clip that is not there"):
        run_in_ranks(_fail_on_rank_1, timeout_seconds=20)
    assert run_in_ranks(distributed.rank) == [0, 1]
