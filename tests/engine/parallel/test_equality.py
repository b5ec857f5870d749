"""Every kind of parallelism, in real processes, trains what one process trains on the joined batch."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from mavil import distributed
from mavil.engine.blocks import CheckpointKind
from mavil.engine.parallel import ParallelKind, parallelise
from mavil.structs import UserError
from tests.engine.parallel.cases import (
    CPU,
    KINDS,
    OddModel,
    OddTask,
    Outcome,
    Run,
    assert_equal,
    backward,
    begin,
    own_inputs,
    train,
)
from tests.support.ranks import run_in_ranks

CASES = ["odd", "blocks alone", "pretraining", "fine-tuning", "probe"]


@cache
def alone(case: str, accumulation: int = 1) -> Outcome:
    """One process with all clips."""
    return train(Run(case, accumulation=accumulation))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES)
def test_two_ranks_equal_one_process(case: str, kind: ParallelKind) -> None:
    first, second = run_in_ranks(train, Run(case, kind))
    assert_equal(first, alone(case))
    assert second.losses == first.losses
    assert second.norms == first.norms
    assert (second.model, second.optimizer) == ({}, {})


@pytest.mark.parametrize("kind", KINDS)
def test_three_ranks_equal_one_process(kind: ParallelKind) -> None:
    """No width of this model is a multiple of 3, and some parameters have fewer elements than there are ranks."""
    assert_equal(run_in_ranks(train, Run("odd", kind), ranks=3)[0], alone("odd"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", ["odd", "pretraining"])
def test_micro_steps_on_two_ranks_equal_micro_steps_in_one_process(case: str, kind: ParallelKind) -> None:
    assert_equal(run_in_ranks(train, Run(case, kind, accumulation=2))[0], alone(case, accumulation=2))


@pytest.mark.parametrize("checkpointing", ["torch", "fairscale"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", ["blocks alone", "pretraining"])
def test_computing_blocks_again_changes_nothing(case: str, kind: ParallelKind, checkpointing: CheckpointKind) -> None:
    assert_equal(run_in_ranks(train, Run(case, kind, checkpointing, accumulation=2))[0], alone(case, accumulation=2))


@pytest.mark.parametrize("checkpointing", ["torch", "fairscale"])
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_computed_again_drop_what_they_dropped_before(kind: ParallelKind, checkpointing: CheckpointKind) -> None:
    run = Run("odd", kind, drop=0.5)
    plain = run_in_ranks(train, run)[0]
    again = run_in_ranks(train, replace(run, checkpointing=checkpointing))[0]
    assert again.losses == plain.losses
    assert again.norms == plain.norms
    assert plain.losses != alone("odd").losses


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_that_leave_out_other_blocks_train_together(kind: ParallelKind) -> None:
    found, second = run_in_ranks(train, Run("left out", kind, drop=0.5))
    assert (second.losses, second.norms) == (found.losses, found.norms)
    assert_equal(found, left_out_under_ddp())
    assert found.losses != alone("left out").losses


@cache
def left_out_under_ddp() -> Outcome:
    return run_in_ranks(train, Run("left out", "ddp", drop=0.5))[0]


def what_each_rank_holds(kind: ParallelKind) -> dict[str, int]:
    _, parallel = begin(Run("pretraining", kind))
    moments = [state["exp_avg"] for state in parallel.own_optimizer.state.values()]
    return {
        "weights": sum(parallel.own(p).numel() for p in parallel.model.parameters()),
        "moments": sum(parallel.own(moment).numel() for moment in moments),
        "all": sum(p.numel() for p in parallel.model.parameters()),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_cut_and_what_is_whole(kind: ParallelKind) -> None:
    ranks = run_in_ranks(what_each_rank_holds, kind)
    for held in ranks:
        assert held["weights"] == pytest.approx(held["all"] / (2 if kind == "fsdp" else 1), rel=0.02)
        assert held["moments"] == pytest.approx(held["all"] / (1 if kind == "ddp" else 2), rel=0.15)
    if kind != "ddp":
        assert sum(held["moments"] for held in ranks) == ranks[0]["all"]


def gradients_kept(kind: ParallelKind) -> tuple[int, int]:
    run = Run("pretraining", kind)
    task, parallel = begin(run)
    with parallel.averaging(is_last=True):
        backward(task, parallel, own_inputs(run, 0))
    kept = sum(parallel.own(p.grad).numel() for p in parallel.trained.values() if p.grad is not None)
    return kept, sum(gradient.numel() for gradient in parallel.gradients())


@pytest.mark.parametrize("kind", ["fsdp", "fairscale"])
def test_cut_gradients_leave_nothing_behind_on_other_ranks(kind: ParallelKind) -> None:
    ranks = run_in_ranks(gradients_kept, kind)
    assert all(kept == listed for kept, listed in ranks)
    assert sum(kept for kept, _ in ranks) == sum(p.numel() for p in begin(Run("pretraining"))[1].trained.values())


def gradients_of_two_micro_steps(kind: ParallelKind) -> list[dict[str, Tensor]]:
    run = Run("odd", kind)
    task, parallel = begin(run)
    seen = []
    for micro_step in range(2):
        with parallel.averaging(is_last=micro_step == 1):
            backward(task, parallel, own_inputs(run, micro_step))
        gradients = {name: p.grad for name, p in parallel.trained.items() if p.grad is not None}
        seen.append({name: parallel.own(gradient).clone() for name, gradient in gradients.items()})
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_talk_only_in_the_last_micro_step(kind: ParallelKind) -> None:
    (before, after), (other_before, other_after) = run_in_ranks(gradients_of_two_micro_steps, kind)
    assert before.keys() == other_before.keys()
    if kind == "fsdp":
        assert set(before) == {
            n for n in after if after[n].ndim == 0
        }  # whole gradients are kept inside torch until then
    assert not any(torch.equal(gradient, other_before[name]) for name, gradient in before.items())
    assert before.keys() <= after.keys() | other_after.keys()
    for name in after.keys() & other_after.keys():
        if kind == "ddp" or after[name].ndim == 0:
            assert torch.equal(after[name], other_after[name])


def not_a_number_on_rank_1(kind: ParallelKind) -> float:
    run = Run("odd", kind)
    task, parallel = begin(run)
    inputs = own_inputs(run, 0)
    if distributed.rank() == 1:
        assert inputs.audio is not None
        inputs.audio[0] = torch.nan
    with parallel.averaging(is_last=True):
        backward(task, parallel, inputs)
    return float(parallel.gradient_norm())


@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_that_is_no_number_on_one_rank_shows_on_all(kind: ParallelKind) -> None:
    assert all(math.isnan(norm) for norm in run_in_ranks(not_a_number_on_rank_1, kind))


def test_one_process_stays_plain_whatever_the_kind() -> None:
    for kind in KINDS:
        task, parallel = begin(Run("odd", kind))
        assert parallel.wrapped is task.model
        assert type(parallel.optimizer) is torch.optim.AdamW


def test_an_unknown_kind_is_refused() -> None:
    task = OddTask(OddModel())
    with pytest.raises(UserError, match=r"trainer\.parallel=zero is not .* use ddp, fsdp, fairscale"):
        parallelise("zero", task.model, lambda: task.parameter_groups(0.1, 1.0), (0.9, 0.95), CPU)  # type: ignore[arg-type]


def begins_without_fairscale() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "mavil.engine.parallel.fairscale", None)
        begin(Run("odd", "fairscale"))


def test_fairscale_that_is_not_installed_is_one_line() -> None:
    with pytest.raises(
        AssertionError, match=r"UserError: trainer\.parallel=fairscale needs the package fairscale .*fsdp"
    ):
        run_in_ranks(begins_without_fairscale)
