"""The schedule in closed form, and groups that hold every trained parameter exactly once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from mavil.engine.optim import (
    build_optimizer,
    scaled_learning_rate,
    set_learning_rate,
    warmup_cosine,
    warmup_linear,
)
from mavil.structs import UserError
from mavil.tasks.base import ParameterGroup

SCHEDULE: dict[str, Any] = {"peak": 2.0, "warmup_steps": 10, "total_steps": 110, "minimum": 0.5}


def test_the_schedule_in_closed_form() -> None:
    rates = [warmup_cosine(step, **SCHEDULE) for step in range(111)]
    assert rates[0] == 0.0
    assert rates[5] == pytest.approx(1.0)
    assert rates[10] == pytest.approx(2.0)
    assert rates[35] == pytest.approx(0.5 + 1.5 * 0.5 * (1 + 2**-0.5))
    assert rates[60] == pytest.approx(1.25)
    assert rates[110] == 0.5
    assert max(rates) == rates[10]
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_the_straight_way_down() -> None:
    rates = [warmup_linear(step, **SCHEDULE) for step in range(112)]
    assert rates[:11] == [warmup_cosine(step, **SCHEDULE) for step in range(11)]
    assert rates[10:111] == pytest.approx([2.0 - 1.5 * i / 100 for i in range(101)])
    assert rates[110:] == [0.5, 0.5]


@pytest.mark.parametrize("rate", [warmup_cosine, warmup_linear])
def test_the_schedule_at_its_edges(rate: Callable[..., float]) -> None:
    assert rate(0, peak=2.0, warmup_steps=0, total_steps=4, minimum=0.0) == 2.0
    assert rate(4, peak=2.0, warmup_steps=4, total_steps=4, minimum=0.1) == 0.1
    with pytest.raises(UserError, match=r"warm-up of 5 steps does not fit into 4 .*schedule\.warmup"):
        rate(0, peak=2.0, warmup_steps=5, total_steps=4, minimum=0.0)


def test_the_linear_scaling_rule() -> None:
    assert scaled_learning_rate(2e-4, 512) == pytest.approx(4e-4)


def groups_of(model: nn.Module) -> list[ParameterGroup]:
    weight, bias = model.parameters()
    return [ParameterGroup([weight], ["weight"], 0.75, 0.05), ParameterGroup([bias], ["bias"], 1.0, 0.0)]


def test_groups_keep_scale_and_decay() -> None:
    model = nn.Linear(2, 2)
    optimizer = build_optimizer(groups_of(model), (0.9, 0.95), model)
    set_learning_rate(optimizer, 0.4)
    weight, bias = optimizer.param_groups
    assert (weight["lr"], weight["weight_decay"], weight["names"]) == (pytest.approx(0.3), 0.05, ["weight"])
    assert (bias["lr"], bias["weight_decay"], bias["betas"]) == (0.4, 0.0, (0.9, 0.95))


def test_parameters_in_no_group_are_named() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"2 trained parameters are in no group of the optimizer: 1\.weight, 1\.bias;"):
        build_optimizer(groups_of(model[0]), (0.9, 0.95), model)
    model[1].requires_grad_(False)
    build_optimizer(groups_of(model[0]), (0.9, 0.95), model)


def test_a_parameter_in_two_groups_or_not_of_the_model_is_refused() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="weight is in two groups"):
        build_optimizer([*groups_of(model), *groups_of(model)], (0.9, 0.95), model)
    with pytest.raises(ValueError, match="is not a trained one"):
        build_optimizer([*groups_of(model), *groups_of(nn.Linear(2, 2))], (0.9, 0.95), model)


def test_the_moments_exist_before_the_first_step_and_change_nothing() -> None:
    ours, theirs = nn.Linear(2, 2), nn.Linear(2, 2)
    theirs.load_state_dict(ours.state_dict())
    optimizer = build_optimizer(groups_of(ours), (0.9, 0.95), ours, eps=1e-3)
    assert all(not value.any() for state in optimizer.state.values() for value in state.values())
    assert [set(state) for state in optimizer.state.values()] == [{"step", "exp_avg", "exp_avg_sq"}] * 2
    set_learning_rate(optimizer, 0.1)
    weight, bias = theirs.parameters()
    groups: list[dict[str, Any]] = [
        {"params": [weight], "lr": 0.075, "weight_decay": 0.05},
        {"params": [bias], "lr": 0.1, "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-3, fused=True)
    for _ in range(3):
        for model, own in ((ours, optimizer), (theirs, reference)):
            model(torch.ones(1, 2)).square().sum().backward()
            own.step()
            own.zero_grad()
    assert torch.equal(ours.weight, theirs.weight)
    assert torch.equal(ours.bias, theirs.bias)
