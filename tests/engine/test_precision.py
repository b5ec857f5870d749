"""Which number format is chosen, what autocast does with it, and how the factor of fp16 losses moves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mavil.engine import precision
from mavil.engine.precision import LossScale, Precision, autocast, choose_precision
from mavil.structs import UserError

CPU = torch.device("cpu")


def test_bf16_is_chosen_only_where_the_device_has_it_and_fp16_only_when_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert choose_precision("auto", CPU) == "fp32"
    assert choose_precision("bf16", CPU) == "bf16"
    assert choose_precision("fp16", CPU) == "fp16"
    cuda = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert choose_precision("auto", cuda) == "bf16"
    assert choose_precision("fp32", cuda) == "fp32"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Old Card")
    assert choose_precision("auto", cuda) == "fp32"
    assert choose_precision("fp16", cuda) == "fp16"
    with pytest.raises(UserError, match=r"Old Card does not compute in it: set trainer\.precision=fp16"):
        choose_precision("bf16", cuda)


@pytest.mark.parametrize(
    ("setting", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_matrix_products_are_computed_in_the_chosen_format(setting: Precision, dtype: torch.dtype) -> None:
    with autocast(CPU, setting):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_the_factor_falls_to_one_and_no_further() -> None:
    scale = LossScale("fp16")
    assert scale.factor == 65536
    factors = []
    for _ in range(20):
        if scale.can_back_off:
            scale.after_step(all_finite=False)
            factors.append(scale.factor)
    assert factors == [2.0**n for n in range(15, -1, -1)]
    with pytest.raises(ValueError, match="refuse the update"):
        scale.after_step(all_finite=False)


def test_the_factor_doubles_after_enough_good_steps_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "GROWTH_STEPS", 3)
    scale = LossScale("fp16")
    factors = []
    for is_good in (True, True, False, True, True, True, True, True, True):
        scale.after_step(is_good)
        factors.append(scale.factor / 2**16)
    assert factors == [1, 1, 0.5, 0.5, 0.5, 1, 1, 1, 2]


def test_a_resumed_scale_goes_on_counting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "GROWTH_STEPS", 3)
    scale, other = LossScale("fp16"), LossScale("fp16")
    for is_good in (False, True, True):
        scale.after_step(is_good)
    other.load_state_dict(scale.state_dict())
    other.after_step(all_finite=True)
    assert (scale.factor, other.factor) == (2**15, 2**16)
    exact = LossScale("fp32")
    exact.load_state_dict(scale.state_dict())
    assert exact.factor == 1.0


@pytest.mark.parametrize("setting", ["fp32", "bf16"])
def test_the_other_formats_have_no_factor(setting: Precision) -> None:
    scale = LossScale(setting)
    for _ in range(precision.GROWTH_STEPS + 1):
        scale.after_step(all_finite=True)
    assert (scale.factor, scale.is_adaptive, scale.can_back_off) == (1.0, False, False)


def _train(setting: Precision, is_scaled: bool, size: float) -> tuple[list[float], LossScale]:
    """A tiny attention model whose loss is as small as ``size``; returns its losses over ``size``."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True), nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1 / size)
    scale, inputs = LossScale(setting if is_scaled else "fp32"), torch.randn(16, 4, 16)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        with autocast(CPU, setting):
            outputs = model(inputs).mean(dim=1).squeeze(1)
            loss = size * (outputs.float() - inputs.mean(dim=(1, 2))).square().mean()
        (loss * scale.factor).backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        is_finite = bool(torch.isfinite(norm))
        if is_finite:
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter.grad /= scale.factor
            optimizer.step()
        scale.after_step(is_finite)
        losses.append(loss.item() / size)
    return losses, scale


def test_a_model_trains_in_fp16_on_the_cpu_too() -> None:
    losses, scale = _train("fp16", is_scaled=True, size=1.0)
    exact, _ = _train("fp32", is_scaled=True, size=1.0)
    assert losses[-1] < losses[0] / 10
    assert losses[-1] == pytest.approx(exact[-1], rel=0.3, abs=0.01)
    assert scale.factor <= 2**16


def test_without_the_factor_small_gradients_vanish_in_fp16() -> None:
    scaled, _ = _train("fp16", is_scaled=True, size=1e-7)
    unscaled, _ = _train("fp16", is_scaled=False, size=1e-7)
    assert scaled[-1] < scaled[0] / 10
    assert unscaled[-1] > unscaled[0] / 2
