"""The moving average against its formula, in and out of the model, under every kind of parallelism, over a resume."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mavil.engine.parallel import ParallelKind
from mavil.engine.weight_average import MeanOfLast, WeightAverage
from mavil.structs import UserError
from tests.engine.parallel.cases import KINDS, NUM_STEPS, Outcome, Run, begin, copied, one_step, second_half, train
from tests.support.ranks import run_in_ranks

DECAY = 0.3
"""The warm-up 2/11, 3/12, 4/13, ... passes it after the third update."""


def averaged(run: Run, start_from: dict[str, Tensor] | None = None) -> tuple[Outcome, dict[str, Tensor]]:
    """Train with an average; the outcome of training and the state of the average."""
    task, parallel = begin(run)
    average = WeightAverage(parallel, DECAY)
    if start_from is not None:
        average.load(start_from)
    for step in range(run.first, run.stop):
        one_step(task, parallel, run, step)
        average.update()
    outcome = Outcome(model=copied(parallel.model_state()))
    outcome.optimizer = {name: copied(state) for name, state in parallel.optimizer_state().items()}
    return outcome, copied(average.state())


def mean_of_last(run: Run, start_from: dict[str, Tensor] | None = None) -> tuple[Outcome, dict[str, Tensor]]:
    """Train with the mean of the weights after steps 2 and 4 of 4."""
    task, parallel = begin(run)
    mean = MeanOfLast(parallel, NUM_STEPS, last=3, every=2)
    if start_from:
        mean.load(start_from, run.first)
    for step in range(run.first, run.stop):
        one_step(task, parallel, run, step)
        mean.take(step + 1)
    outcome = Outcome(model=copied(parallel.model_state()))
    outcome.optimizer = {name: copied(state) for name, state in parallel.optimizer_state().items()}
    return outcome, copied(mean.state())


def mean_by_hand() -> dict[str, Tensor]:
    taken = [train(Run("odd", stop=stop)).model for stop in (2, 4)]
    return {name: (value.double() + taken[1][name].double()) / 2 for name, value in taken[0].items()}


def by_hand() -> dict[str, Tensor]:
    """The formula, from the weights after 0, 1, 2, ... steps, in float64."""
    run = Run("odd")
    average = {name: value.double() for name, value in begin(run)[1].model_state().items()}
    for step in range(run.stop):
        decay = min(DECAY, (2 + step) / (11 + step))
        weights = train(replace(run, stop=step + 1)).model
        average = {name: decay * value + (1 - decay) * weights[name].double() for name, value in average.items()}
    return average


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name].double() - value.double()).abs().max() <= 1e-6, name


def test_one_process_follows_the_formula() -> None:
    outcome, average = averaged(Run("odd"))
    assert_close(average, by_hand())
    assert not torch.equal(average["embed.weight"], outcome.model["embed.weight"])
    assert torch.equal(average["frozen.weight"], outcome.model["frozen.weight"])
    assert torch.equal(average["shift"], outcome.model["shift"])


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_follow_the_formula(kind: ParallelKind) -> None:
    (_, first), (_, second) = run_in_ranks(averaged, Run("odd", kind))
    assert_close(first, by_hand())
    assert second == {}


@pytest.mark.parametrize(("begun", "continued"), [("fsdp", "fairscale"), ("fairscale", "ddp"), ("ddp", "fsdp")])
def test_an_average_moves_between_kinds_and_world_sizes(begun: ParallelKind, continued: ParallelKind) -> None:
    half, average = run_in_ranks(averaged, Run("odd", begun, stop=2), ranks=3)[0]
    rest = second_half(Run("odd", continued), half)
    assert_close(run_in_ranks(averaged, rest, average)[0][1], by_hand())


def test_stopped_and_continued_is_bit_for_bit_the_same() -> None:
    half, average = averaged(Run("odd", stop=2))
    whole, expected = averaged(Run("odd"))
    rest, found = averaged(second_half(Run("odd"), half), average)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert all(torch.equal(rest.model[name], value) for name, value in whole.model.items())


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_have_the_mean_of_the_last_weights(kind: ParallelKind) -> None:
    """Frozen parameters and buffers are the model's; the halves of one training, under any kinds, are the whole."""
    (_, mean), (_, none) = run_in_ranks(mean_of_last, Run("odd", kind))
    assert_close(mean, mean_by_hand())
    assert none == {}
    half, half_mean = mean_of_last(Run("odd", stop=3))
    assert_close(
        run_in_ranks(mean_of_last, replace(second_half(Run("odd", kind), half), first=3), half_mean)[0][1], mean
    )


def test_the_mean_of_a_stopped_training_is_bit_for_bit_that_of_the_whole() -> None:
    whole, expected = mean_of_last(Run("odd"))
    for stop in (1, 2, 3):
        half, mean = mean_of_last(Run("odd", stop=stop))
        assert (mean == {}) == (stop == 1)
        rest = Run("odd", first=stop, start_from=half)
        outcome, found = mean_of_last(rest, mean)
        assert_same(found, expected)
        assert_same(outcome.model, whole.model)


def test_an_update_that_was_left_out_leaves_the_average_alone() -> None:
    run = Run("odd")
    task, parallel = begin(run)
    average = WeightAverage(parallel, DECAY)
    one_step(task, parallel, run, 0)
    average.update(torch.zeros(()))
    before = copied(average.state())
    parallel.update(is_bad=torch.ones(()))
    average.update(torch.ones(()))
    assert all(torch.equal(value, before[name]) for name, value in average.state().items())
    one_step(task, parallel, run, 1)
    average.update()
    assert_close(average.state(), averaged(replace(run, stop=2))[1])


def changes_places(kind: ParallelKind) -> tuple[list[dict[str, Tensor]], list[float]]:
    """Weights, average, what the model has in place, and both again after an exception inside."""
    run = Run("odd", kind)
    task, parallel = begin(run)
    average = WeightAverage(parallel, DECAY)
    for step in range(2):
        one_step(task, parallel, run, step)
        average.update()
    seen = [copied(parallel.model_state()), copied(average.state())]
    values = torch.ones(2, 3)
    outputs = []

    def fail_inside() -> None:
        with average.in_place_of_weights():
            seen.append(copied(parallel.model_state()))
            with torch.no_grad(), parallel.complete():
                outputs.append(float(task.model(values)[0]))
            with pytest.raises(RuntimeError, match="leave in_place_of_weights"):
                average.update()
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    with torch.no_grad(), parallel.complete():
        outputs.append(float(task.model(values)[0]))
    return [*seen, copied(parallel.model_state()), copied(average.state())], outputs


@pytest.mark.parametrize("kind", KINDS)
def test_the_average_takes_the_place_of_the_weights_and_gives_it_back(kind: ParallelKind) -> None:
    (weights, average, in_place, weights_again, average_again), _ = changes_places(kind)
    assert_same(in_place, average)
    assert_same(weights_again, weights)
    assert_same(average_again, average)
    (seen, outputs), (_, other_outputs) = run_in_ranks(changes_places, kind)
    assert_same(seen[2], seen[1])
    assert_same(seen[3], seen[0])
    assert_same(seen[4], seen[1])
    assert outputs == other_outputs
    assert outputs[0] != outputs[1]


def exchanges_gathered_weights() -> None:
    parallel = begin(Run("odd", "fsdp"))[1]
    with parallel.complete(), WeightAverage(parallel, DECAY).in_place_of_weights():
        pass


def test_gathered_weights_cannot_be_exchanged() -> None:
    with pytest.raises(AssertionError, match="enter complete"):
        run_in_ranks(exchanges_gathered_weights)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name, value in expected.items() if not torch.equal(found[name], value)] == []


def test_an_average_of_another_model_is_refused() -> None:
    average = WeightAverage(begin(Run("odd"))[1], DECAY)
    with pytest.raises(
        UserError, match=r"moving average does not fit the model: 13 missing or of another shape: weights"
    ):
        average.load(begin(Run("blocks alone"))[1].model_state())
