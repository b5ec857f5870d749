"""The loop: resume bit for bit, a stop before a bad update on every rank, ranks and accumulation against one batch."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mavil.engine.checkpoint import checkpoints, latest_checkpoint, load_checkpoint, load_weights
from mavil.engine.runtime import random_state
from mavil.engine.tracker import read_metrics
from mavil.engine.trainer import Interrupted, Trainer
from mavil.structs import Inputs, LossReport, UserError
from tests.engine.fake import FakeBatches, FakeTask, assemble, evaluation, train
from tests.support.ranks import run_in_ranks

# Neither divides the other, so a checkpoint falls between two log lines.
INTERVALS: dict[str, Any] = {"log_every": 2, "checkpoint_every": 3, "evaluate_every": 3, "evaluation": evaluation}


def outcome(trainer: Trainer) -> dict[str, Any]:
    """Everything that must be the same after a resumed run as after one that never stopped."""
    return {
        "weights": {name: value.tolist() for name, value in trainer.model.state_dict().items()},
        "optimizer": repr(trainer.optimizer.state_dict()),
        "state": trainer.state,
        "random": repr(random_state(trainer.device)),
        "metrics": [(line["step"], line["metrics"]) for line in read_metrics(trainer.run)],
    }


def test_stopped_by_a_signal_and_resumed_is_bit_for_bit_the_same(tmp_path: Path) -> None:
    whole = outcome(train(tmp_path / "whole", dropout=0.5, **INTERVALS))
    with pytest.raises(Interrupted, match=r"stopped by SIGTERM after step 3 of 6; .*--resume"):
        train(tmp_path / "halves", FakeBatches(stopped_at=4), dropout=0.5, **INTERVALS)
    before = [(line["step"], line["metrics"]) for line in read_metrics(tmp_path / "halves")]
    assert [step for step, _ in before] == [1, 2]
    resumed = outcome(train(tmp_path / "halves", resume=True, dropout=0.5, **INTERVALS))
    # The evaluation of step 3 came after the stop: it is the one line a stopped run lacks.
    whole["metrics"] = [line for line in whole["metrics"] if not (line[0] == 3 and "evaluation/error" in line[1])]
    assert resumed == whole


def test_crashed_between_checkpoints_and_resumed_is_bit_for_bit_the_same(tmp_path: Path) -> None:
    whole = outcome(train(tmp_path / "whole", dropout=0.5, **INTERVALS))
    with pytest.raises(RuntimeError, match="disk went away"):
        train(tmp_path / "halves", FakeBatches(lost_at=8), dropout=0.5, **INTERVALS)
    assert read_metrics(tmp_path / "halves")[-1]["step"] == 4
    assert outcome(train(tmp_path / "halves", resume=True, dropout=0.5, **INTERVALS)) == whole


def test_a_different_seed_gives_another_outcome(tmp_path: Path) -> None:
    """The comparison above is able to fail."""
    first = outcome(train(tmp_path / "first", dropout=0.5))
    assert outcome(train(tmp_path / "other", FakeBatches(first=2), dropout=0.5)) != first


def test_the_first_and_the_last_step_are_logged_with_means_in_between(tmp_path: Path) -> None:
    every = train(tmp_path / "every", log_every=1)
    train(tmp_path / "some", log_every=4)
    each = {line["step"]: line["metrics"] for line in read_metrics(tmp_path / "every")}
    some = {line["step"]: line["metrics"] for line in read_metrics(tmp_path / "some")}
    assert list(some) == [1, 4, 6]
    assert some[4]["loss/error"] == pytest.approx(sum(each[s]["loss/error"] for s in (2, 3, 4)) / 3)
    assert some[6]["loss_weighted/error"] == pytest.approx(2 * some[6]["loss/error"])
    assert some[6]["loss/total"] == pytest.approx(some[6]["loss_weighted/error"] + some[6]["loss_weighted/zero"])
    assert some[6]["train/num_clips"] == 2
    assert some[6]["progress/samples_seen"] == 12
    assert each[1]["optim/lr"] == 0.0
    assert each[3]["optim/lr"] == pytest.approx(0.1)
    assert every.optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * each[6]["optim/lr"])
    assert set(read_metrics(tmp_path / "some")[0]["conditions"]) == {
        "time",
        "speed/clips_per_second",
        "speed/data_wait_share",
    }


def test_evaluation_runs_in_evaluation_mode_and_leaves_frozen_parts_alone(tmp_path: Path) -> None:
    trainer, tracker = assemble(tmp_path, FakeBatches(), evaluation=evaluation, evaluate_every=4)
    frozen = trainer.model.get_submodule("dropout").eval()
    with tracker:
        metrics = trainer.fit()
    assert isinstance(trainer.task, FakeTask)
    assert trainer.task.evaluated_in_training_mode == [False, False]
    assert trainer.model.training
    assert not frozen.training
    lines = [line for line in read_metrics(tmp_path) if "evaluation/error" in line["metrics"]]
    assert [line["step"] for line in lines] == [4, 6]
    assert lines[-1]["metrics"]["evaluation/error"] == metrics["error"]


def test_a_complete_run_is_only_evaluated_again(tmp_path: Path) -> None:
    whole = train(tmp_path)
    trainer, tracker = assemble(tmp_path, FakeBatches(), resume=True, evaluation=evaluation)
    with tracker:
        assert trainer.fit().keys() == {"error"}
    assert trainer.state == whole.state


def test_not_finite_stops_before_the_update_and_names_the_clips(tmp_path: Path) -> None:
    trainer, tracker = assemble(tmp_path, FakeBatches(spoilt=5))
    with pytest.raises(UserError, match=r"step 3: .*nothing was updated\. Clips: rank 0: clip_4, clip_5 "), tracker:
        trainer.fit()
    two_steps = train(tmp_path / "two", num_steps=2)
    assert_same_weights(trainer.model.state_dict(), two_steps.model.state_dict())
    assert trainer.state.step == 2
    report = json.loads((tmp_path / "nonfinite_step_00000003.json").read_text())
    assert report["ranks"][0]["keys"] == ["clip_4", "clip_5"]
    assert report["ranks"][0]["micro_steps"][0]["loss/error"] == "nan"


def assert_same_weights(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("clip_norm", [None, 0.1])
def test_accumulation_equals_a_larger_batch(tmp_path: Path, clip_norm: float | None) -> None:
    large = train(tmp_path / "large", FakeBatches(clips_per_batch=4), clip_norm=clip_norm)
    small = train(tmp_path / "small", FakeBatches(clips_per_batch=2), clip_norm=clip_norm, accumulation=2)
    torch.testing.assert_close(large.model.state_dict(), small.model.state_dict(), rtol=1e-6, atol=1e-7)
    assert large.state == small.state
    # AdamW and clipping hide a gradient that is too large by a factor; the logged norm does not.
    norms = [read_metrics(trainer.run)[-1]["metrics"]["optim/gradient_norm"] for trainer in (large, small)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    unclipped = train(tmp_path / "unclipped", FakeBatches(clips_per_batch=4))
    is_same = torch.equal(unclipped.model.state_dict()["weights"], large.model.state_dict()["weights"])
    assert is_same == (clip_norm is None)


def test_bf16_computes_under_autocast_and_keeps_fp32_weights(tmp_path: Path) -> None:
    exact, rounded = train(tmp_path / "fp32"), train(tmp_path / "bf16", precision="bf16")
    assert rounded.model.state_dict()["weights"].dtype == torch.float32
    losses = [read_metrics(run)[0]["metrics"]["loss/error"] for run in (exact.run, rounded.run)]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_a_loader_that_ends_is_an_error(tmp_path: Path) -> None:
    trainer, tracker = assemble(tmp_path, FakeBatches())
    trainer.batches = [next(iter(FakeBatches()))]
    with pytest.raises(ValueError, match="ended at step 1"), tracker:
        trainer.fit()


def test_a_model_in_evaluation_mode_is_refused(tmp_path: Path) -> None:
    trainer, tracker = assemble(tmp_path, FakeBatches())
    trainer.model.eval()
    with pytest.raises(ValueError, match="evaluation mode"), tracker:
        trainer.fit()


def test_older_checkpoints_are_deleted_and_weights_load_without_the_rest(tmp_path: Path) -> None:
    trainer = train(tmp_path, checkpoint_every=1, keep_checkpoints=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step_00000005", "step_00000006"]
    assert_same_weights(load_weights(tmp_path)["whole"], trainer.model.state_dict())


# Functions below this line run in other processes.


def _weights_after(run: Path, batches: FakeBatches, settings: dict[str, Any]) -> tuple[dict[str, Tensor], Any, Any]:
    trainer = train(run, batches, **settings)
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}, trainer.state, read_metrics(run)


def test_two_ranks_equal_one_rank_on_the_joined_batch(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"clip_norm": 0.5, "accumulation": 2, "log_every": 1}
    one = train(tmp_path / "one", FakeBatches(clips_per_batch=4), **settings)
    (first, state, metrics), (second, _, _) = run_in_ranks(
        _weights_after, tmp_path / "two", FakeBatches(clips_per_batch=2), settings
    )
    assert_same_weights(first, second)
    torch.testing.assert_close(first, dict(one.model.state_dict()), rtol=1e-6, atol=1e-7)
    assert (state.step, state.samples_seen) == (one.state.step, one.state.samples_seen)
    losses = [[line["metrics"]["loss/error"] for line in lines] for lines in (metrics, read_metrics(one.run))]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert_same_weights(load_weights(tmp_path / "two")["whole"], first)


def _resume_in_ranks(folder: Path) -> list[Any]:
    settings = INTERVALS | {"dropout": 0.5}
    whole = outcome(train(folder / "whole", **settings))
    # Only the clip of rank 1 sends a signal, and only to rank 1.
    try:
        train(folder / "halves", FakeBatches(stopped_at=11), **settings)
        message = "not interrupted"
    except Interrupted as stop:
        message = str(stop)
    resumed = outcome(train(folder / "halves", resume=True, **settings))
    whole["metrics"] = resumed["metrics"] = None
    return [message, whole == resumed, whole["random"]]


def test_a_signal_to_one_rank_stops_both_and_both_resume_bit_for_bit(tmp_path: Path) -> None:
    (first, same_first, random_first), (second, same_second, random_second) = run_in_ranks(_resume_in_ranks, tmp_path)
    assert "stopped by a signal to another rank after step 3" in first
    assert "stopped by SIGTERM after step 3" in second
    assert same_first
    assert same_second
    assert random_first != random_second


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


def _train_on_spoilt(run: Path, is_loss_spoilt: bool | None) -> tuple[str, dict[str, Tensor], int]:
    trainer, tracker = assemble(run, FakeBatches(spoilt=6 if is_loss_spoilt is None else None))
    if is_loss_spoilt is not None:
        # The optimizer already holds the parameters of this model.
        odd = OddTask(is_loss_spoilt)
        odd.model = trainer.model
        trainer.task = odd
    try:
        with tracker:
            trainer.fit()
        message = "not stopped"
    except UserError as error:
        message = str(error)
    return message, trainer.model.state_dict(), trainer.state.step


@pytest.mark.parametrize(("is_loss_spoilt", "blamed"), [(None, "1"), (True, "1"), (False, "0")])
def test_not_finite_on_rank_1_stops_both_ranks_before_the_update(
    tmp_path: Path, is_loss_spoilt: bool | None, blamed: str
) -> None:
    """A NaN in the data, an infinite loss with a finite gradient, and the reverse, whose origin no rank can tell."""
    first, second = run_in_ranks(_train_on_spoilt, tmp_path / "spoilt", is_loss_spoilt)
    (after_one_step, _, _), _ = run_in_ranks(_weights_after, tmp_path / "good", FakeBatches(), {"num_steps": 1})
    for message, weights, step in (first, second):
        assert f"nothing was updated. Clips: rank {blamed}: clip_" in message
        assert "rank 1: clip_6, clip_7 " in message
        assert step == 1
        assert_same_weights(weights, after_one_step)
    report = json.loads((tmp_path / "spoilt" / "nonfinite_step_00000002.json").read_text())
    assert [rank["keys"] for rank in report["ranks"]] == [["clip_4", "clip_5"], ["clip_6", "clip_7"]]


def _resume_in_two(run: Path) -> tuple[dict[str, Any], int, bool, int]:
    path = latest_checkpoint(run)
    assert path is not None
    checkpoint = load_checkpoint(path)
    trainer, tracker = assemble(run, FakeBatches(), resume=True, num_steps=8)
    with tracker:
        before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        trainer.fit()
    return before, trainer.state.step, checkpoint.random is None, len(checkpoint.positions or [])


def test_another_number_of_ranks_goes_on_from_the_same_weights(tmp_path: Path) -> None:
    whole = train(tmp_path)
    for weights, step, is_anew, num_positions in run_in_ranks(_resume_in_two, tmp_path):
        assert_same_weights(weights, whole.model.state_dict())
        assert (step, is_anew, num_positions) == (8, True, 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_other_signals_save_too(tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    kill = os.kill
    monkeypatch.setattr(os, "kill", lambda pid, _: kill(pid, number))
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=number.name):
        train(tmp_path, FakeBatches(stopped_at=3))
    latest = latest_checkpoint(tmp_path)
    assert latest is not None
    assert latest.name == "step_00000002"
    assert signal.getsignal(number) is before
