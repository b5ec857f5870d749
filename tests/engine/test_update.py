"""One update: accumulation and ranks against one batch, precision, and a stop before a bad update on every rank."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mavil.engine.checkpoints.reading import load_weights
from mavil.engine.metrics.tracker import read_metrics
from mavil.engine.trainer import Intervals
from mavil.structs import Inputs, LossReport, UserError
from tests.engine.fake import FakeBatches, FakeTask, assembled, assert_same_weights, train
from tests.support.ranks import run_in_ranks

LATE = pytest.mark.parametrize("reads_late", [False, True], ids=["read at once", "read late"])


@LATE
def test_not_finite_stops_before_the_update_and_names_the_clips(tmp_path: Path, reads_late: bool) -> None:
    with assembled(tmp_path, FakeBatches(spoilt=5), reads_late=reads_late) as trainer:
        assert trainer.updater.reads_late == reads_late
        with pytest.raises(UserError, match=r"step 3: .*nothing was updated\. Clips: rank 0: clip_4, clip_5 "):
            trainer.fit()
    two_steps = train(tmp_path / "two", num_steps=2)
    assert_same_weights(trainer.updater.parallel.model.state_dict(), two_steps.updater.parallel.model.state_dict())
    states = [repr(t.updater.parallel.optimizer_state()) for t in (trainer, two_steps)]
    assert states[0] == states[1]
    assert trainer.state == two_steps.state
    report = json.loads((tmp_path / "nonfinite_step_00000003" / "report.json").read_text())
    assert report["ranks"][0]["keys"] == ["clip_4", "clip_5"]
    assert report["ranks"][0]["micro_steps"][0]["loss/error"] == "nan"


@LATE
@pytest.mark.parametrize("clip_norm", [None, 0.1])
def test_accumulation_equals_a_larger_batch(tmp_path: Path, clip_norm: float | None, reads_late: bool) -> None:
    settings: dict[str, Any] = {"clip_norm": clip_norm, "reads_late": reads_late}
    large = train(tmp_path / "large", FakeBatches(clips_per_batch=4), **settings)
    small = train(tmp_path / "small", FakeBatches(clips_per_batch=2), accumulation=2, **settings)
    states = [trainer.updater.parallel.model.state_dict() for trainer in (large, small)]
    torch.testing.assert_close(states[0], states[1], rtol=1e-6, atol=1e-7)
    assert large.state == small.state
    # AdamW and clipping hide a gradient that is too large by a factor; the logged norm does not.
    norms = [read_metrics(trainer.run)[-1]["metrics"]["optim/gradient_norm"] for trainer in (large, small)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    unclipped = train(tmp_path / "unclipped", FakeBatches(clips_per_batch=4))
    is_same = torch.equal(unclipped.updater.parallel.model.state_dict()["weights"], states[0]["weights"])
    assert is_same == (clip_norm is None)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_computes_under_autocast_and_keeps_fp32_weights(tmp_path: Path, precision: Any) -> None:
    exact = train(tmp_path / "fp32")
    with assembled(tmp_path / "rounded", precision=precision) as rounded:
        # The first scale of fp16 is too large for these gradients.
        rounded.updater.loss_scale.load_state_dict({"factor": 256.0, "good_steps": 0.0})
        rounded.fit()
    assert rounded.updater.parallel.model.state_dict()["weights"].dtype == torch.float32
    lines = [read_metrics(run) for run in (exact.run, rounded.run)]
    losses = [each[0]["metrics"]["loss/error"] for each in lines]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    # The logged norm is that of the gradient itself, whatever the loss was multiplied with.
    norms = [each[0]["metrics"]["optim/gradient_norm"] for each in lines]
    assert norms[0] == pytest.approx(norms[1], rel=0.05)


def test_an_overflow_of_the_scaled_gradient_leaves_one_update_out_and_lowers_the_scale(tmp_path: Path) -> None:
    with assembled(tmp_path, precision="fp16", intervals=Intervals(log=1)) as trainer:
        scale = trainer.updater.loss_scale
        scale.load_state_dict(scale.state_dict() | {"factor": 2.0**40})
        before = {name: value.clone() for name, value in trainer.updater.parallel.model.state_dict().items()}
        trainer.num_steps = 1
        trainer.fit()
        assert_same_weights(trainer.updater.parallel.model.state_dict(), before)
        assert scale.factor == 2.0**39
        trainer.num_steps = 40
        trainer.fit()
    lines = {line["step"]: line["metrics"] for line in read_metrics(tmp_path)}
    assert lines[1]["optim/left_out"] == 1.0
    assert "optim/gradient_norm" not in lines[1]
    assert lines[40]["optim/left_out"] == 0.0
    assert lines[40]["optim/loss_scale"] < 2.0**40
    assert trainer.state.step == 40


def test_a_loss_that_overflows_is_refused_whatever_the_scale(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing was updated"):
        train(tmp_path, FakeBatches(spoilt=2), precision="fp16")


# Functions below this line run in other processes.


def _weights_after(run: Path, batches: FakeBatches, settings: dict[str, Any]) -> tuple[dict[str, Tensor], Any, Any]:
    trainer = train(run, batches, **settings)
    weights = trainer.updater.parallel.model.state_dict()
    return {name: value.clone() for name, value in weights.items()}, trainer.state, read_metrics(run)


def test_two_ranks_equal_one_rank_on_the_joined_batch(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"clip_norm": 0.5, "accumulation": 2, "intervals": Intervals(log=1)}
    one = train(tmp_path / "one", FakeBatches(clips_per_batch=4), **settings)
    (first, state, metrics), (second, _, _) = run_in_ranks(
        _weights_after, tmp_path / "two", FakeBatches(clips_per_batch=2), settings
    )
    assert_same_weights(first, second)
    torch.testing.assert_close(first, dict(one.updater.parallel.model.state_dict()), rtol=1e-6, atol=1e-7)
    assert (state.step, state.samples_seen) == (one.state.step, one.state.samples_seen)
    losses = [[line["metrics"]["loss/error"] for line in lines] for lines in (metrics, read_metrics(one.run))]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert_same_weights(load_weights(tmp_path / "two")["whole"], first)


class OddTask(FakeTask):
    """Spoils the loss at ``clip_6`` alone and leaves the gradient finite, or the other way round."""

    def __init__(self, is_loss_spoilt: bool) -> None:
        super().__init__()
        self.is_loss_spoilt = is_loss_spoilt

    def loss(self, inputs: Inputs, step: int) -> LossReport:
        report = super().loss(inputs, step)
        if "clip_6" in inputs.keys:
            infinite = torch.tensor(torch.inf)
            at_the_edge = (report.terms["error"] * 0).sqrt()  # 0, with an infinite slope
            report.terms["zero"] = infinite if self.is_loss_spoilt else at_the_edge
        return report


def _train_on_spoilt(run: Path, is_loss_spoilt: bool | None, reads_late: bool) -> tuple[str, dict[str, Tensor], int]:
    batches = FakeBatches(spoilt=6 if is_loss_spoilt is None else None)
    with assembled(run, batches, reads_late=reads_late) as trainer:
        model = trainer.updater.parallel.model
        if is_loss_spoilt is not None:
            # The optimizer already holds the parameters of this model.
            odd = OddTask(is_loss_spoilt)
            odd.model = model
            trainer.updater.task = odd
        try:
            trainer.fit()
            message = "not stopped"
        except UserError as error:
            message = str(error)
    return message, model.state_dict(), trainer.state.step


@LATE
@pytest.mark.parametrize(("is_loss_spoilt", "blamed"), [(None, "1"), (True, "1"), (False, "0")])
def test_not_finite_on_rank_1_stops_both_ranks_before_the_update(
    tmp_path: Path, is_loss_spoilt: bool | None, blamed: str, reads_late: bool
) -> None:
    """A NaN in the data, an infinite loss with a finite gradient, and the reverse, whose origin no rank can tell."""
    first, second = run_in_ranks(_train_on_spoilt, tmp_path / "spoilt", is_loss_spoilt, reads_late)
    (after_one_step, _, _), _ = run_in_ranks(_weights_after, tmp_path / "good", FakeBatches(), {"num_steps": 1})
    for message, weights, step in (first, second):
        assert f"nothing was updated. Clips: rank {blamed}: clip_" in message
        assert "rank 1: clip_6, clip_7 " in message
        assert step == 1
        assert_same_weights(weights, after_one_step)
    report = json.loads((tmp_path / "spoilt" / "nonfinite_step_00000002" / "report.json").read_text())
    assert [rank["keys"] for rank in report["ranks"]] == [["clip_4", "clip_5"], ["clip_6", "clip_7"]]
