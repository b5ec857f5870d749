"""Two passes per micro-step: the gradient of one large batch, the same dropout in both passes, and what is left behind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mavil.engine.cached import cached_micro_steps
from mavil.structs import Batch, Inputs, LossReport
from mavil.tasks.base import CoupledTask, ParameterGroup

CPU = torch.device("cpu")


class Spread:
    """Keeps outputs near 1 (each clip by itself) and apart from each other (all clips together)."""

    def __init__(self, dropout: float = 0.0) -> None:
        torch.manual_seed(0)
        self.model: nn.Module = nn.Sequential(nn.Dropout(dropout), nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
        self.couples_clips = True
        self.seen: list[Tensor] = []
        self.has_unused = False

    def loss(self, inputs: Inputs, step: int) -> LossReport:
        own, representations = self.own_loss(inputs, step)
        coupled = self.coupled_loss(representations)
        return LossReport(own.terms | coupled.terms, own.weights | coupled.weights, own.scalars | coupled.scalars)

    def representations(self, inputs: Inputs, step: int) -> dict[str, Tensor]:
        return self.own_loss(inputs, step)[1]

    def own_loss(self, inputs: Inputs, step: int) -> tuple[LossReport, dict[str, Tensor]]:
        outputs = self.model(inputs.of("audio").flatten(1).to(next(self.model.parameters()).dtype))
        self.seen.append(outputs.detach())
        report = LossReport({"near": (outputs - 1).square().mean()}, {"near": 3.0}, {"step": float(step)})
        representations = {"outputs": outputs, "unused": outputs + 1} if self.has_unused else {"outputs": outputs}
        return report, representations

    def coupled_loss(self, representations: dict[str, Tensor]) -> LossReport:
        outputs = representations["outputs"]
        distances = (outputs[:, None] - outputs[None]).square().sum(dim=-1)
        report = LossReport({"apart": (-distances).exp().mean()}, {"apart": 0.5})
        report.scalars["num_clips"] = len(outputs)
        return report

    def parameter_groups(self, weight_decay: float, layer_decay: float) -> list[ParameterGroup]:
        return [ParameterGroup(list(self.model.parameters()), [], 1.0, 0.0)]

    def evaluate(self, batches: Iterable[Inputs]) -> dict[str, float]:
        return {}

    def export_modules(self) -> dict[str, nn.Module]:
        return {}


def batches_of(num_clips: int, count: int) -> list[Batch]:
    numbers = torch.arange(num_clips).chunk(count)
    return [Batch([f"clip_{n}" for n in part], part) for part in numbers]


def prepare(batch: Batch) -> Inputs:
    assert not torch.is_grad_enabled()
    rows = [torch.randn(3, dtype=torch.float64, generator=torch.Generator().manual_seed(int(n))) for n in batch.seeds]
    return Inputs(batch.keys, batch.seeds, audio=torch.stack(rows)[:, None, None])


class Averaging:
    """Records what every pass was told."""

    def __init__(self) -> None:
        self.calls: list[tuple[bool, bool]] = []

    def __call__(self, is_last: bool) -> AbstractContextManager[None]:
        return self._around(is_last)

    @contextmanager
    def _around(self, is_last: bool) -> Iterator[None]:
        self.calls.append((is_last, torch.is_grad_enabled()))
        yield


def take(task: Spread, batches: list[Batch], **changes: Any) -> list[LossReport]:
    settings: dict[str, Any] = {"averaging": lambda _: nullcontext(), "autocast": nullcontext, **changes}
    return cached_micro_steps(task, task.model, batches, prepare, 7, CPU, **settings)


def gradients_of(task: Spread) -> list[Tensor]:
    return [p.grad.clone() for p in task.model.parameters() if p.grad is not None]


@pytest.mark.parametrize("accumulation", [1, 2, 3])
@pytest.mark.parametrize("factor", [1.0, 1024.0])
def test_micro_steps_equal_one_large_batch(accumulation: int, factor: float) -> None:
    large, small = Spread(), Spread()
    with torch.no_grad():
        inputs = prepare(batches_of(12, 1)[0])
    report = large.loss(inputs, 7)
    (report.total * factor).backward()
    reports = take(small, batches_of(12, accumulation), factor=factor)
    torch.testing.assert_close(gradients_of(small), gradients_of(large), rtol=1e-12, atol=1e-14)
    assert len(reports) == accumulation
    for name, value in report.terms.items():
        mean = sum(float(other.terms[name]) for other in reports) / accumulation
        assert mean == pytest.approx(value.item(), rel=1e-12)
    assert sum(float(other.total) for other in reports) / accumulation == pytest.approx(report.total.item(), rel=1e-12)
    assert reports[0].scalars == {"step": 7.0, "num_clips": 12}
    assert not reports[0].total.requires_grad


def test_plain_accumulation_would_not_equal_it() -> None:
    """The comparison above is able to fail."""
    large, small = Spread(), Spread()
    with torch.no_grad():
        parts = [prepare(batch) for batch in [*batches_of(12, 1), *batches_of(12, 3)]]
    large.loss(parts[0], 7).total.backward()
    for part in parts[1:]:
        (small.loss(part, 7).total / 3).backward()
    assert not torch.allclose(gradients_of(small)[0], gradients_of(large)[0], rtol=1e-2)


def test_both_passes_drop_the_same_and_leave_the_generator_where_one_pass_does() -> None:
    task, batches = Spread(dropout=0.5), batches_of(6, 3)
    torch.manual_seed(5)
    take(task, batches)
    after = torch.get_rng_state()
    first, second = task.seen[:3], task.seen[3:]
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    torch.manual_seed(5)
    for batch in batches:
        with torch.no_grad():
            task.loss(prepare(batch), 7)
    assert torch.equal(torch.get_rng_state(), after)
    assert all(torch.equal(one, other) for one, other in zip(first, task.seen[6:], strict=True))


def test_gradients_are_averaged_over_ranks_in_the_very_last_pass_only() -> None:
    averaging = Averaging()
    take(Spread(), batches_of(6, 3), averaging=averaging)
    assert averaging.calls == [(False, False)] * 3 + [(False, True), (False, True), (True, True)]


def test_representations_that_no_term_uses_do_no_harm() -> None:
    task, other = Spread(), Spread()
    task.has_unused = True
    take(task, batches_of(6, 2))
    take(other, batches_of(6, 2))
    assert all(torch.equal(a, b) for a, b in zip(gradients_of(task), gradients_of(other), strict=True))


def test_the_wrapped_model_is_called_and_the_plain_one_comes_back() -> None:
    task = Spread()
    plain, wrapped = task.model, nn.Sequential(task.model)
    calls: list[bool] = []
    wrapped.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    settings: dict[str, Any] = {"averaging": lambda _: nullcontext(), "autocast": nullcontext}
    cached_micro_steps(task, wrapped, batches_of(4, 2), prepare, 0, CPU, **settings)
    assert calls == [False, False, True, True]
    assert task.model is plain
    with pytest.raises(ValueError, match="micro-steps have"):
        cached_micro_steps(task, wrapped, [*batches_of(4, 1), *batches_of(3, 1)], prepare, 0, CPU, **settings)
    assert task.model is plain


def test_half_precision_stays_close_to_the_exact_gradient() -> None:
    """The representations' gradient is taken in float32, and the scale keeps it from vanishing in fp16."""
    exact = Spread()
    exact.model.float()
    take(exact, batches_of(6, 1))
    for dtype, factor in ((torch.bfloat16, 1.0), (torch.float16, 2.0**12)):
        task = Spread()
        task.model.float()
        take(task, batches_of(6, 3), autocast=lambda dtype=dtype: torch.autocast("cpu", dtype=dtype), factor=factor)
        for gradient, other in zip(gradients_of(task), gradients_of(exact), strict=True):
            assert (gradient / factor - other).norm() < 0.03 * other.norm()


def test_tasks_are_told_apart_by_what_they_offer() -> None:
    class Plain:
        model: nn.Module = nn.Identity()
        loss = parameter_groups = evaluate = export_modules = Spread.loss

    assert isinstance(Spread(), CoupledTask)
    assert not isinstance(Plain(), CoupledTask)
