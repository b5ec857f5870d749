"""The predictor and its training: layout, order of the rows, when it stops, and which state it hands out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from mavil.evaluation.hear import predictor as module
from mavil.evaluation.hear.grid import Setting
from mavil.evaluation.hear.predictor import Predictor, Rows, Verdict, fit, logits_of, loss_of
from mavil.structs import UserError

SETTING = Setting(1, 1e-2, "xavier_uniform", 3, 12)


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HIDDEN_WIDTH", 16)


def rows(count: int = 40, parts: int = 1, seed: int = 0) -> Rows:
    random = np.random.default_rng(seed)
    classes = random.integers(2, size=count)
    embeddings = (random.standard_normal((count, 3)) + 4 * classes[:, None]).astype(np.float32)
    targets = np.eye(2, dtype=np.float32)[classes]
    return Rows(np.array_split(embeddings, parts), np.array_split(targets, parts), torch.device("cpu"))


def falling(values: list[float], is_maximised: bool = True) -> tuple[list[Tensor], object]:
    """A judge that hands out given values, and what it saw."""
    seen: list[Tensor] = []

    def judge(logits: Tensor) -> Verdict:
        seen.append(logits.clone())
        return Verdict(values[len(seen) - 1], is_maximised, len(seen))

    return seen, judge


def test_layout_and_start() -> None:
    torch.manual_seed(0)
    layers = Predictor(3000, 7, Setting(2, 1e-3, "xavier_normal", 3, 9))
    names = [type(layer).__name__ for layer in layers]
    assert names == [*["Linear", "BatchNorm1d", "Dropout", "ReLU"] * 2, "Linear"]
    deviations = [layers[i].weight.std().item() for i in (0, 4, 8)]
    # Xavier's rule: gain * sqrt(2 / (inputs + outputs)), gain sqrt(2) behind a ReLU.
    assert deviations == pytest.approx([math.sqrt(2 / 3016), math.sqrt(4 / 32), math.sqrt(4 / 23)], rel=0.15)
    uniform = Predictor(3000, 7, Setting(1, 1e-3, "xavier_uniform", 3, 9))[0].weight
    assert uniform.abs().max().item() == pytest.approx(math.sqrt(6 / 3016), rel=0.01)


def test_the_best_validation_is_handed_out_and_patience_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 2)
    seen, judge = falling([0.1, 0.5, 0.5, math.nan, 0.9])
    data = rows()
    fitted = fit(data, data, judge, Setting(1, 1e-2, "xavier_uniform", 3, 500), False, True, seed=1)  # type: ignore[arg-type]
    # An equal value is no improvement, and neither is what is not a number.
    assert len(seen) == 4
    assert (fitted.epochs, fitted.verdict.monitored, fitted.verdict.choice) == (6, 0.5, 2)
    torch.testing.assert_close(logits_of(fitted.predictor, data), seen[1])
    # Validation puts it into eval(); every epoch must train again, a batch each.
    assert fitted.predictor[1].num_batches_tracked.item() == 6
    assert not torch.equal(seen[1], seen[3])


def test_less_is_better_where_it_is_minimised() -> None:
    _, judge = falling([0.5, 0.2, 0.3, 0.4], is_maximised=False)
    assert fit(rows(), rows(), judge, SETTING, False, True, seed=1).epochs == 6  # type: ignore[arg-type]


def test_it_learns_and_is_the_same_again() -> None:
    train, valid = rows(200), rows(100, seed=1)

    def judge(logits: Tensor) -> Verdict:
        return Verdict(-loss_of(logits, valid.targets, False).item(), True)

    torch.manual_seed(5)
    fitted = fit(train, valid, judge, SETTING, False, True, seed=1)
    expected = torch.rand(1)
    accuracy = (logits_of(fitted.predictor, valid).argmax(1) == valid.targets.argmax(1)).float().mean().item()
    assert accuracy > 0.95
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), expected)  # the caller's random numbers are left alone
    again = fit(train, valid, judge, SETTING, False, True, seed=1)
    torch.testing.assert_close(again.verdict.monitored, fitted.verdict.monitored, rtol=0, atol=0)
    assert fit(train, valid, judge, SETTING, False, True, seed=2).verdict.monitored != fitted.verdict.monitored


@pytest.mark.parametrize("shuffles", [True, False])
def test_rows_are_shuffled_in_every_epoch_unless_told_not_to(shuffles: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH_ROWS", 8)
    data = rows(17)
    orders: list[list[int]] = []
    take = Rows.take

    def watched(self: Rows, ids: Tensor) -> tuple[Tensor, Tensor]:
        if self is data:
            orders.append(ids.tolist())
        return take(self, ids)

    monkeypatch.setattr(Rows, "take", watched)
    fit(data, rows(8), falling([0.0])[1], Setting(1, 1e-2, "xavier_uniform", 3, 3), False, shuffles, seed=1)  # type: ignore[arg-type]
    # The last row would be a batch of its own, without a variance: it waits for the next epoch.
    epochs = [orders[i] + orders[i + 1] for i in range(0, len(orders), 2)]
    assert [len(epoch) for epoch in epochs] == [16, 16, 16]
    if shuffles:
        assert len({tuple(epoch) for epoch in epochs}) == 3
        assert {row for epoch in epochs for row in epoch} == set(range(17))
    else:
        assert epochs == [list(range(16))] * 3


def test_rows_from_disk_are_the_same_as_from_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = rows(40, parts=3)
    monkeypatch.setattr(module, "IN_MEMORY_BYTES", 0)
    mapped = rows(40, parts=3)
    ids = torch.randperm(40)
    for one, other in zip(whole.take(ids), mapped.take(ids), strict=True):
        assert torch.equal(one, other)
    assert mapped._whole is None


def test_losses() -> None:
    logits, targets = torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    assert loss_of(logits, targets, False).item() == pytest.approx(math.log(1 + math.exp(-2)))
    both = (math.log(1 + math.exp(-2)) + math.log(2)) / 2
    assert loss_of(logits, targets, True).item() == pytest.approx(both)


def test_what_cannot_be_trained_is_told() -> None:
    with pytest.raises(UserError, match="1 training row"):
        fit(rows(1), rows(), falling([1.0])[1], SETTING, False, True, seed=1)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="not finite at any validation"):
        fit(rows(), rows(), falling([math.nan] * 4)[1], SETTING, False, True, seed=1)  # type: ignore[arg-type]
