"""Checkpoints between kinds of parallelism and world sizes, evaluation while weights are cut, updates that are left out."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from mavil import distributed
from mavil.engine.parallel import Parallel, ParallelKind
from mavil.structs import UserError
from tests.engine.parallel.cases import (
    KINDS,
    NUM_STEPS,
    OddModel,
    Outcome,
    Run,
    assert_equal,
    backward,
    begin,
    copied,
    one_step,
    own_inputs,
    second_half,
    train,
)
from tests.support.ranks import run_in_ranks

PLACES: list[tuple[ParallelKind, int]] = [
    ("ddp", 1),
    ("ddp", 2),
    ("fsdp", 2),
    ("fairscale", 2),
    ("ddp", 3),
    ("fsdp", 3),
]


@cache
def straight() -> Outcome:
    return train(Run("odd"))


def at(place: tuple[ParallelKind, int], run: Run) -> Outcome:
    """Rank 0's outcome of a run in a place: a kind and a number of ranks."""
    kind, ranks = place
    run = replace(run, kind=kind)
    outcome: Outcome = train(run) if ranks == 1 else run_in_ranks(train, run, ranks=ranks)[0]
    return outcome


@pytest.mark.parametrize("begun", PLACES, ids=str)
def test_begun_anywhere_and_continued_anywhere_else_equals_straight_through(begun: tuple[ParallelKind, int]) -> None:
    half = at(begun, Run("odd", stop=NUM_STEPS // 2))
    for continued in PLACES:
        rest = at(continued, second_half(Run("odd"), half))
        rest.losses, rest.norms = half.losses + rest.losses, half.norms + rest.norms
        assert_equal(rest, straight())


def test_pretraining_moves_between_kinds() -> None:
    half = at(("fsdp", 2), Run("pretraining", stop=2))
    half_more = at(("fairscale", 2), replace(second_half(Run("pretraining"), half), stop=3))
    rest = at(("ddp", 2), replace(second_half(Run("pretraining"), half_more), first=3))
    rest.losses, rest.norms = half.losses + half_more.losses + rest.losses, half.norms + half_more.norms + rest.norms
    assert_equal(rest, train(Run("pretraining")))


def continued_without_a_change(kind: ParallelKind) -> tuple[Outcome, Outcome]:
    """Straight through, and stopped and continued in the middle, by the same ranks."""
    run = Run("odd", kind, drop=0.3)
    torch.manual_seed(5)
    whole = train(run)
    half = distributed.broadcast_object(train(replace(run, stop=2)))
    task, parallel = begin(second_half(run, half))
    assert parallel.num_updates == 2
    # Dropped values are drawn from this rank's generator: bring it where the straight run had it.
    torch.manual_seed(distributed.rank())
    begin_again, again = begin(run)
    for step in range(2):
        one_step(begin_again, again, run, step)
    for step in range(2, NUM_STEPS):
        one_step(task, parallel, run, step)
    return whole, Outcome(model=copied(parallel.model_state()))


@pytest.mark.parametrize("kind", KINDS)
def test_continued_by_the_same_ranks_is_bit_for_bit_the_same(kind: ParallelKind) -> None:
    whole, halves = run_in_ranks(continued_without_a_change, kind)[0]
    for name, value in whole.model.items():
        assert torch.equal(halves.model[name], value), name


def test_a_state_of_other_parameters_is_refused_and_nothing_changes() -> None:
    state = train(Run("odd", stop=1)).optimizer
    other = train(Run("blocks alone", stop=1)).optimizer
    _, parallel = begin(Run("odd"))
    with pytest.raises(
        UserError, match=r"does not fit .* 4 missing: weights.* 6 unknown here: blocks\.3.* of another shape"
    ):
        parallel.load_optimizer_state(other)
    del state["weights"]["exp_avg_sq"]
    with pytest.raises(UserError, match="1 missing: weights"):
        parallel.load_optimizer_state(state)
    assert all(not value.any() for entry in parallel.optimizer_state().values() for value in entry.values())


def embeds_by_itself(kind: ParallelKind) -> tuple[list[Tensor], Outcome, bool]:
    """Rank r evaluates r + 1 times, before the first step and between steps, through another method than forward."""
    run = Run("odd", kind)
    task, parallel = begin(run)
    model = task.model
    assert isinstance(model, OddModel)
    features, outcome = [], Outcome()
    for step in range(NUM_STEPS):
        model.eval()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=step > 0), parallel.complete():
            for number in range(3 * distributed.rank()):
                values = torch.full((2, 3), float(number))
                features.append(model(values)[:, None] + model.weights + model.features(values))
        model.train()
        loss, norm = one_step(task, parallel, run, step)
        outcome.losses.append(loss)
        outcome.norms.append(norm)
    outcome.model = copied(parallel.model_state())
    outcome.optimizer = {name: copied(state) for name, state in parallel.optimizer_state().items()}
    return features, outcome, parallel.is_complete


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_evaluate_as_often_as_they_like_and_training_does_not_notice(kind: ParallelKind) -> None:
    (none, outcome, _), (features, _, is_complete) = run_in_ranks(embeds_by_itself, kind)
    assert_equal(outcome, straight())
    assert none == []
    assert not is_complete
    model = begin(Run("odd"))[0].model
    assert isinstance(model, OddModel)
    for number in range(3):
        values = torch.full((2, 3), float(number))
        torch.testing.assert_close(features[number], model(values)[:, None] + model.weights + model.features(values))


def evaluation_that_fails(kind: ParallelKind) -> Outcome:
    task, parallel = begin(Run("odd", kind))
    with pytest.raises(KeyError), parallel.complete():
        raise KeyError
    outcome = Outcome()
    for step in range(NUM_STEPS):
        loss, norm = one_step(task, parallel, Run("odd", kind), step)
        outcome.losses.append(loss)
        outcome.norms.append(norm)
    outcome.model = copied(parallel.model_state())
    outcome.optimizer = {name: copied(state) for name, state in parallel.optimizer_state().items()}
    return outcome


def test_training_goes_on_after_an_evaluation_that_failed() -> None:
    assert_equal(run_in_ranks(evaluation_that_fails, "fsdp")[0], straight())


def memory_of_block_weights() -> list[bool]:
    """Whether block weights are given up after forward, again after an evaluation gathered all of them."""
    run = Run("odd", "fsdp")
    task, parallel = begin(run)
    answers = []
    for _ in range(2):
        with parallel.averaging(is_last=True):
            task.model(own_inputs(run, 0).of("audio").flatten(1)[:, :3])
        block = task.model.get_submodule("blocks.1")
        answers.append(all(p.numel() == parallel.own(p).numel() for p in block.parameters() if p.ndim == 2))
        with parallel.complete():
            pass
    return answers


def test_block_weights_are_given_up_after_the_forward_pass() -> None:
    assert run_in_ranks(memory_of_block_weights) == [[False, False], [False, False]]


def bad_update(kind: ParallelKind) -> list[bool]:
    """A good update, a bad one with gradients that are no numbers, a good one; against two good ones."""
    run = Run("odd", kind)
    task, parallel = begin(run)
    one_step(task, parallel, run, 0)
    before = everything(parallel)
    with parallel.averaging(is_last=True):
        backward(task, parallel, own_inputs(run, 1))
    for gradient in parallel.gradients():
        gradient.fill_(torch.nan)
    parallel.update(is_bad=torch.ones(()))
    answers = [same(everything(parallel), before), bool(parallel.num_updates == 1)]
    answers.append(all(p.grad is None for p in parallel.trained.values()))
    with parallel.averaging(is_last=True):
        backward(task, parallel, own_inputs(run, 1))
    parallel.update(is_bad=torch.zeros(()))
    other_task, other = begin(run)
    one_step(other_task, other, run, 0)
    with other.averaging(is_last=True):
        backward(other_task, other, own_inputs(run, 1))
    other.update()
    return [*answers, same(everything(parallel), everything(other)), not same(everything(parallel), before)]


def everything(parallel: Parallel) -> dict[str, Tensor]:
    state = parallel.optimizer_state()
    moments = {f"{key} of {name}": value for name, entry in state.items() for key, value in entry.items()}
    return copied({**parallel.model_state(), **moments})


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_update_leaves_weights_moments_and_counts_as_they_are(kind: ParallelKind) -> None:
    assert bad_update(kind) == [True] * 5  # one process
    first, second = run_in_ranks(bad_update, kind)
    assert first == [True] * 5
    assert second[:3] == [True] * 3  # it gathers nothing, so there is nothing to compare
