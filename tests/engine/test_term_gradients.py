"""The gradient norm of each loss term: against one backward pass per term, and training that does not notice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mavil import distributed
from mavil.engine.metrics.tracker import read_metrics
from mavil.engine.parallel import ParallelKind
from mavil.engine.term_gradients import term_gradient_norms
from mavil.engine.trainer import Intervals, Trainer
from mavil.engine.update import Updater
from mavil.structs import LossReport
from tests.engine.fake import FakeBatches, FakeTask, assembled, assert_same_weights, prepare, train
from tests.engine.parallel.cases import Run, begin, own_inputs
from tests.support.ranks import run_in_ranks

EVERY_STEP = Intervals(log=1)


def norm_of_gradient(value: Tensor, parameters: list[torch.nn.Parameter]) -> float:
    for parameter in parameters:
        parameter.grad = None
    value.backward()
    return float(torch.stack([p.grad.square().sum() for p in parameters if p.grad is not None]).sum().sqrt())


def measured(run: Path) -> dict[int, dict[str, float]]:
    """Per log line what was measured."""
    return {
        line["step"]: {name: value for name, value in line["metrics"].items() if name.startswith("gradient/")}
        for line in read_metrics(run)
    }


@pytest.mark.parametrize("factor", [1.0, 1024.0])
def test_each_norm_is_that_of_a_backward_pass_of_its_term_alone(factor: float) -> None:
    torch.manual_seed(0)
    model, inputs = torch.nn.Linear(3, 2).double(), torch.randn(4, 3, dtype=torch.float64)
    unused = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    trained = {**dict(model.named_parameters()), "unused": unused}

    def report() -> LossReport:
        outputs = model(inputs)
        terms = {"near": outputs.square().mean(), "far": outputs.sin().sum(), "off": outputs.sum()}
        return LossReport(
            terms | {"constant": torch.tensor(1.0)}, {"near": 3.0, "far": 0.5, "off": 0.0, "constant": 1.0}
        )

    expected = {
        "gradient/near": norm_of_gradient(3.0 * report().terms["near"], list(model.parameters())),
        "gradient/far": norm_of_gradient(0.5 * report().terms["far"], list(model.parameters())),
        "gradient/constant": 0.0,
    }
    model.zero_grad(set_to_none=True)
    whole = report()
    norms = term_gradient_norms(whole, trained, factor)
    assert {name: float(value) for name, value in norms.items()} == pytest.approx(expected, rel=1e-6)
    assert all(parameter.grad is None for parameter in trained.values())
    assert not any(value.requires_grad for value in norms.values())
    whole.total.backward()  # the graph is still there


@pytest.mark.parametrize(
    "way",
    [{}, {"accumulation": 2}, {"reads_late": True}, {"precision": "bf16"}, {"precision": "fp16"}, {"clip_norm": 0.1}],
    ids=str,
)
def test_training_is_bit_for_bit_the_same_and_only_the_steps_asked_for_are_measured(
    tmp_path: Path, way: dict[str, Any]
) -> None:
    settings: dict[str, Any] = {"dropout": 0.5, "intervals": EVERY_STEP, **way}
    plain = train(tmp_path / "plain", **settings)
    other = train(tmp_path / "measured", term_gradients_every=2, **settings)
    assert_same_weights(plain.updater.parallel.model.state_dict(), other.updater.parallel.model.state_dict())
    assert repr(plain.updater.parallel.optimizer_state()) == repr(other.updater.parallel.optimizer_state())
    assert all(not found for found in measured(plain.run).values())
    is_left_out = {line["step"]: line["metrics"].get("optim/left_out") == 1 for line in read_metrics(other.run)}
    found = measured(other.run)
    for step in range(1, 7):
        expected = {"gradient/error", "gradient/zero"} if step % 2 == 0 and not is_left_out[step] else set()
        assert found[step].keys() == expected
    lines = [[line["metrics"] for line in read_metrics(trainer.run)] for trainer in (plain, other)]
    assert lines[0] == [{n: v for n, v in line.items() if not n.startswith("gradient/")} for line in lines[1]]


def test_a_term_that_is_the_whole_loss_has_the_norm_of_the_whole_gradient(tmp_path: Path) -> None:
    train(tmp_path, term_gradients_every=1, intervals=EVERY_STEP)
    for line in read_metrics(tmp_path):
        assert line["metrics"]["gradient/error"] == pytest.approx(line["metrics"]["optim/gradient_norm"], rel=1e-6)
        assert line["metrics"]["gradient/zero"] == 0


def test_of_several_micro_steps_the_first_is_measured_as_if_it_were_the_step(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"term_gradients_every": 1, "intervals": EVERY_STEP, "num_steps": 1}
    train(tmp_path / "one", **settings)
    train(tmp_path / "two", accumulation=2, **settings)
    assert measured(tmp_path / "two") == measured(tmp_path / "one")


@pytest.mark.parametrize("checkpointing", ["none", "torch"])
@pytest.mark.parametrize("case", ["odd", "pretraining"])
def test_blocks_that_are_computed_again_and_real_losses(case: str, checkpointing: Any) -> None:
    run = Run(case=case, checkpointing=checkpointing, drop=0.5 if case == "odd" else 0.0)
    plain, other = (gradients_of_a_step(run, measures) for measures in (False, True))
    assert plain[1].keys() == other[1].keys()
    assert all(torch.equal(plain[1][name], other[1][name]) for name in plain[1])
    assert not plain[0]
    assert all(value > 0 for value in other[0].values())


def test_steps_that_cannot_be_taken_apart_are_refused(tmp_path: Path) -> None:
    with assembled(tmp_path) as trainer:
        updater = trainer.updater
        arguments: tuple[Any, ...] = (updater.task, updater.parallel, prepare, updater.device)
        with pytest.raises(ValueError, match="micro-steps by themselves"):
            Updater(*arguments, is_cached=True, term_gradients_every=1)
        updater.parallel.has_whole_weights = False
        with pytest.raises(ValueError, match="whole weights"):
            Updater(*arguments, term_gradients_every=1)
        Updater(*arguments)


# Functions below this line run in other processes.


def gradients_of_a_step(run: Run, measures: bool) -> tuple[dict[str, float], dict[str, Tensor]]:
    """What was measured, and the gradients averaged over ranks."""
    task, parallel = begin(run)
    torch.manual_seed(7)
    norms: dict[str, float] = {}
    for micro_step in range(run.accumulation):
        with parallel.averaging(micro_step == run.accumulation - 1):
            task.model = parallel.wrapped
            report = task.loss(own_inputs(run, micro_step), 0)
            if measures and micro_step == 0:
                found = term_gradient_norms(report, parallel.trained, 1.0)
                norms = {name: float(value) for name, value in found.items()}
            (report.total / run.accumulation).backward()
            task.model = parallel.model
    return norms, {n: p.grad.clone() for n, p in parallel.trained.items() if p.grad is not None}


@contextmanager
def _deterministic(is_on: bool) -> Iterator[None]:
    """With which DistributedDataParallel looks for parameters that are not used."""
    torch.use_deterministic_algorithms(is_on)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def _with_and_without(kind: ParallelKind, accumulation: int, is_deterministic: bool) -> tuple[dict[str, float], bool]:
    run = Run(case="pretraining", kind=kind, clips=4, accumulation=accumulation)
    with _deterministic(is_deterministic):
        _, plain = gradients_of_a_step(run, measures=False)
        norms, gradients = gradients_of_a_step(run, measures=True)
    is_same = plain.keys() == gradients.keys() and all(torch.equal(plain[name], gradients[name]) for name in plain)
    return norms, is_same and bool(plain)


@pytest.mark.parametrize(
    ("kind", "accumulation", "is_deterministic"),
    [("ddp", 1, False), ("ddp", 2, False), ("ddp", 1, True), ("fairscale", 1, False), ("fairscale", 2, False)],
)
def test_two_ranks_measure_what_one_process_does_on_the_joined_batch_and_train_the_same(
    kind: ParallelKind, accumulation: int, is_deterministic: bool
) -> None:
    expected, _ = gradients_of_a_step(Run(case="pretraining", clips=4), measures=True)
    answers = run_in_ranks(_with_and_without, kind, accumulation, is_deterministic)
    assert answers[0][0] == answers[1][0]
    assert answers[0][0] == pytest.approx(expected, rel=1e-4)
    assert all(is_same for _, is_same in answers)


def _train_in_ranks(run: Path, every: int | None, kind: ParallelKind) -> tuple[dict[str, Tensor], bool]:
    trainer: Trainer = train(
        run, FakeBatches(), dropout=0.5, kind=kind, term_gradients_every=every, accumulation=2, intervals=EVERY_STEP
    )
    assert isinstance(trainer.updater.task, FakeTask)
    return dict(trainer.updater.parallel.model_state()), distributed.is_main()


@pytest.mark.parametrize("kind", ["ddp", "fairscale"])
def test_whole_runs_of_two_ranks_end_with_the_same_weights(tmp_path: Path, kind: ParallelKind) -> None:
    (plain, _), _ = run_in_ranks(_train_in_ranks, tmp_path / "plain", None, kind)
    (other, _), _ = run_in_ranks(_train_in_ranks, tmp_path / "measured", 1, kind)
    assert_same_weights(plain, other)
    assert all(
        found.keys() == {"gradient/error", "gradient/zero"} for found in measured(tmp_path / "measured").values()
    )
