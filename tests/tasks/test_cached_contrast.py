"""Contrast over all micro-steps and ranks equals contrast in one large batch: terms, accuracy, candidates and gradients."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from mavil import distributed
from mavil.config import Contrast
from mavil.engine.cached import cached_micro_steps
from mavil.engine.optim import set_learning_rate
from mavil.engine.parallel import ParallelKind, parallelise
from mavil.structs import Batch, Inputs
from mavil.tasks.pretrain import Pretraining
from tests.support.ranks import run_in_ranks
from tests.support.recipes import random_inputs, slice_inputs
from tests.tasks.test_pretrain import CONTRAST, double, loss_and_gradients, make_task

CPU = torch.device("cpu")
NUM_CLIPS = 12
LOCAL = Contrast(inter_weight=0.7, intra_weight=0.3, inter_temperature=0.2, intra_temperature=0.5, negatives="local")


def exact_task(with_teacher: bool = False, contrast: Contrast = CONTRAST) -> Pretraining:
    task = make_task(with_teacher, contrast=contrast)
    task.model.double()
    if task.teacher is not None:
        task.teacher.model.double()
    return task


def prepare(batch: Batch) -> Inputs:
    return double(prepare_single(batch))


def prepare_single(batch: Batch) -> Inputs:
    first = int(batch.seeds[0])
    return slice_inputs(random_inputs(NUM_CLIPS), first, first + len(batch))


@dataclass
class Step:
    """Mean terms, scalars, the gradient norm and, on rank 0, complete gradients."""

    terms: dict[str, float]
    scalars: dict[str, float]
    norm: float
    gradients: dict[str, Tensor]


def large_step(task: Pretraining, inputs: Inputs) -> Step:
    report, gradients = loss_and_gradients(task, inputs)
    terms = {name: value.item() for name, value in report.terms.items()}
    norm = torch.nn.utils.get_total_norm(gradients.values()).item()
    return Step(terms, {name: float(value) for name, value in report.scalars.items()}, norm, gradients)


def cached_step(
    task: Pretraining, accumulation: int, kind: ParallelKind = "ddp", is_autocast: bool = False, num_steps: int = 1
) -> Step:
    """The last of some steps without progress: this rank's share of the clips in micro-steps."""
    numbers = torch.arange(NUM_CLIPS).chunk(distributed.world_size())[distributed.rank()]
    batches = [Batch([f"clip{n}" for n in part], part) for part in numbers.chunk(accumulation)]
    parallel = parallelise(kind, task.model, lambda: task.parameter_groups(0.0, 1.0), (0.9, 0.9), CPU)
    set_learning_rate(parallel.optimizer, 0.0)
    for _ in range(num_steps):
        parallel.optimizer.zero_grad()
        reports = cached_micro_steps(
            task,
            parallel.wrapped,
            batches,
            prepare_single if is_autocast else prepare,
            0,
            CPU,
            averaging=parallel.averaging,
            autocast=lambda: torch.autocast("cpu", torch.bfloat16, enabled=is_autocast),
        )
        norm = parallel.gradient_norm().item()
        before = {name: state["exp_avg"].clone() for name, state in parallel.optimizer_state().items()}
        parallel.update()
    # The only way to complete gradients that every kind offers: what the first moment has gained.
    after = parallel.optimizer_state()
    gradients = {name: 10 * state["exp_avg"] - 9 * before[name] for name, state in after.items()}
    terms = {name: sum(report.terms[name].item() for report in reports) / len(reports) for name in reports[0].terms}
    return Step(terms, {name: float(value) for name, value in reports[0].scalars.items()}, norm, gradients)


def assert_same_gradients(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, gradient in one.items():
        # masked_mse is computed in float32 even here, hence not 1e-12.
        torch.testing.assert_close(gradient, other[name], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("accumulation", "with_teacher"), [(2, False), (3, False), (2, True)], ids=["2", "3", "2-with-teacher"]
)
def test_micro_steps_equal_one_large_batch(accumulation: int, with_teacher: bool) -> None:
    large = large_step(exact_task(with_teacher), double(random_inputs(NUM_CLIPS)))
    small = cached_step(exact_task(with_teacher), accumulation)
    assert small.terms == pytest.approx(large.terms, rel=1e-6)
    accuracies = {name: value for name, value in large.scalars.items() if name.endswith("_accuracy")}
    assert len(accuracies) == 3
    assert {name: small.scalars[name] for name in accuracies} == pytest.approx(accuracies, rel=1e-6)
    assert small.scalars["num_negatives"] == NUM_CLIPS - 1
    assert small.norm == pytest.approx(large.norm, rel=1e-6)
    assert_same_gradients(small.gradients, large.gradients)


def test_fewer_candidates_would_not_equal_it() -> None:
    """The comparison above is able to fail."""
    large = large_step(exact_task(), double(random_inputs(NUM_CLIPS)))
    task = exact_task()
    for part in torch.arange(NUM_CLIPS).chunk(2):
        (task.loss(prepare(Batch([str(n) for n in part], part)), 0).total / 2).backward()
    apart = {name: p.grad for name, p in task.model.named_parameters() if p.grad is not None}
    differences = [float((apart[name] - value).norm() / value.norm()) for name, value in large.gradients.items()]
    assert max(differences) > 1e-2


def _rank_step(kind: ParallelKind, contrast: Contrast = CONTRAST) -> Step:
    # In two steps, so that a trace of the first pass in what averages the gradients would show.
    return cached_step(exact_task(contrast=contrast), accumulation=2, kind=kind, num_steps=2)


@pytest.mark.parametrize("kind", ["ddp", "fsdp", "fairscale"])
def test_two_ranks_times_two_micro_steps_equal_one_large_batch(kind: ParallelKind) -> None:
    large = large_step(exact_task(), double(random_inputs(NUM_CLIPS)))
    ranks = run_in_ranks(_rank_step, kind)
    for name, value in large.terms.items():
        assert sum(rank.terms[name] for rank in ranks) / 2 == pytest.approx(value, rel=1e-6)
    accuracy = sum(rank.scalars["inter_contrast_accuracy"] for rank in ranks) / 2
    assert accuracy == pytest.approx(large.scalars["inter_contrast_accuracy"], rel=1e-6)
    for rank in ranks:
        assert rank.scalars["num_negatives"] == NUM_CLIPS - 1
        assert rank.norm == pytest.approx(large.norm, rel=1e-6)
    assert_same_gradients(ranks[0].gradients, large.gradients)


def test_local_candidates_are_those_of_a_ranks_own_micro_steps() -> None:
    first, second = run_in_ranks(_rank_step, "ddp", LOCAL)
    halves = [
        large_step(exact_task(contrast=LOCAL), prepare(Batch([""] * 6, torch.arange(start, start + 6))))
        for start in (0, 6)
    ]
    assert first.scalars["num_negatives"] == second.scalars["num_negatives"] == NUM_CLIPS // 2 - 1
    assert [first.terms, second.terms] == [pytest.approx(half.terms, rel=1e-6) for half in halves]
    means = {name: (halves[0].gradients[name] + halves[1].gradients[name]) / 2 for name in first.gradients}
    assert_same_gradients(first.gradients, means)


def test_under_autocast_it_stays_close_to_the_large_batch() -> None:
    large, inputs = make_task(), random_inputs(NUM_CLIPS)
    with torch.autocast("cpu", torch.bfloat16):
        report = large.loss(inputs, 0)
    report.total.backward()
    small = cached_step(make_task(), 3, is_autocast=True)
    assert small.terms == pytest.approx({name: value.item() for name, value in report.terms.items()}, rel=0.02)
    for name, parameter in large.model.named_parameters():
        if parameter.grad is not None:
            assert (small.gradients[name] - parameter.grad).norm() < 0.05 * parameter.grad.norm() + 1e-3
