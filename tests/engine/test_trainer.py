"""The loop: resume bit for bit, what is due when, evaluation, the best checkpoint, stopping, a disk that is full."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from mavil.engine.checkpoints.reading import checkpoints, latest_checkpoint, load_checkpoint, load_weights
from mavil.engine.metrics.tracker import Tracker, read_metrics
from mavil.engine.process.runtime import random_state
from mavil.engine.process.stopping import Interrupted
from mavil.engine.trainer import Intervals, Trainer
from mavil.structs import Inputs, UserError
from tests.engine.fake import NUM_STEPS, FakeBatches, FakeTask, assembled, assert_same_weights, evaluation, train
from tests.support.ranks import run_in_ranks

# Neither divides the other, so a checkpoint falls between two log lines.
SETTINGS: dict[str, Any] = {"intervals": Intervals(log=2, save=3, evaluate=3), "evaluation": evaluation}
# Every way of computing a step must resume.
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "read late": {"reads_late": True},
    "averaged": {"ema_decay": 0.5},
    "mean of steps 2, 4 and 6": {"mean": (5, 2)},
    "mean of steps 2 to 6, fp16": {"mean": (5, 1), "precision": "fp16"},
    "half precision": {"precision": "fp16"},
}


def outcome(trainer: Trainer) -> dict[str, Any]:
    """Everything that must be the same after a resumed run as after one that never stopped."""
    updater = trainer.updater
    return {
        "weights": {name: value.tolist() for name, value in updater.parallel.model.state_dict().items()},
        "averaged": {name: value.tolist() for name, value in updater.average.state().items()}
        if updater.average
        else {},
        "optimizer": repr(updater.parallel.optimizer_state()),
        "scale": updater.loss_scale.state_dict() if updater.loss_scale.is_adaptive else None,
        "state": trainer.state,
        "random": repr(random_state(updater.device)),
        "metrics": [(line["step"], line["metrics"]) for line in read_metrics(trainer.run)],
    }


@pytest.mark.parametrize("way", WAYS)
def test_stopped_by_a_signal_and_resumed_is_bit_for_bit_the_same(tmp_path: Path, way: str) -> None:
    """Also the evaluation of the step at which it was stopped is made up for."""
    settings = SETTINGS | WAYS[way] | {"dropout": 0.5}
    whole = outcome(train(tmp_path / "whole", **settings))
    with pytest.raises(Interrupted, match=r"stopped by SIGTERM after step 3 of 6; .*--resume"):
        train(tmp_path / "halves", FakeBatches(stopped_at=4), **settings)
    assert [line["step"] for line in read_metrics(tmp_path / "halves")] == [1, 2]
    assert outcome(train(tmp_path / "halves", resume=True, **settings)) == whole


@pytest.mark.parametrize("way", WAYS)
def test_crashed_between_checkpoints_and_resumed_is_bit_for_bit_the_same(tmp_path: Path, way: str) -> None:
    settings = SETTINGS | WAYS[way] | {"dropout": 0.5}
    whole = outcome(train(tmp_path / "whole", **settings))
    with pytest.raises(RuntimeError, match="disk went away"):
        train(tmp_path / "halves", FakeBatches(lost_at=8), **settings)
    assert read_metrics(tmp_path / "halves")[-1]["step"] == 4
    assert outcome(train(tmp_path / "halves", resume=True, **settings)) == whole


def test_a_different_seed_gives_another_outcome(tmp_path: Path) -> None:
    """The comparison above is able to fail."""
    first = outcome(train(tmp_path / "first", dropout=0.5))
    assert outcome(train(tmp_path / "other", FakeBatches(first=2), dropout=0.5)) != first


def test_the_first_and_the_last_step_are_logged_with_means_in_between(tmp_path: Path) -> None:
    every = train(tmp_path / "every", intervals=Intervals(log=1))
    train(tmp_path / "some", intervals=Intervals(log=4))
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
    rates = [group["lr"] for group in every.updater.parallel.optimizer.param_groups]
    assert rates[0] == pytest.approx(0.5 * each[6]["optim/lr"])
    assert set(read_metrics(tmp_path / "some")[0]["conditions"]) >= {
        "time",
        "speed/clips_per_second",
        "speed/data_wait_share",
        "speed/checkpoint_share",
    }


def test_evaluation_runs_in_evaluation_mode_and_leaves_frozen_parts_alone(tmp_path: Path) -> None:
    with assembled(tmp_path, evaluation=evaluation, intervals=Intervals(evaluate=4)) as trainer:
        model = trainer.updater.parallel.model
        frozen = model.get_submodule("dropout").eval()
        metrics = trainer.fit()
    task = trainer.updater.task
    assert isinstance(task, FakeTask)
    assert task.evaluated_in_training_mode == [False, False]
    assert model.training
    assert not frozen.training
    lines = [line for line in read_metrics(tmp_path) if "evaluation/error" in line["metrics"]]
    assert [line["step"] for line in lines] == [4, 6]
    assert lines[-1]["metrics"]["evaluation/error"] == metrics["error"]


def test_the_moving_average_is_evaluated_and_exported_and_training_goes_on_without_it(tmp_path: Path) -> None:
    every = {"evaluation": evaluation, "intervals": Intervals(evaluate=1)}
    plain = train(tmp_path / "plain", **every)
    averaged = train(tmp_path / "averaged", ema_decay=0.9, **every)
    assert_same_weights(plain.updater.parallel.model.state_dict(), averaged.updater.parallel.model.state_dict())
    errors = [
        [line["metrics"]["evaluation/error"] for line in read_metrics(t.run) if "evaluation/error" in line["metrics"]]
        for t in (plain, averaged)
    ]
    assert errors[0] != errors[1]
    assert averaged.updater.average is not None
    assert_same_weights(load_weights(tmp_path / "averaged")["whole"], averaged.updater.average.state())


def test_the_mean_of_the_last_weights_is_evaluated_and_exported_from_when_there_is_one(tmp_path: Path) -> None:
    every = {"intervals": Intervals(save=1, evaluate=1), "evaluation": evaluation, "keep": NUM_STEPS}
    plain = train(tmp_path / "plain", **every)
    mean = train(tmp_path / "mean", mean=(4, 2), **every)  # after steps 4 and 6
    assert_same_weights(plain.updater.parallel.model.state_dict(), mean.updater.parallel.model.state_dict())
    errors, own = (
        [line["metrics"]["evaluation/error"] for line in read_metrics(t.run) if "evaluation/error" in line["metrics"]]
        for t in (mean, plain)
    )
    weights = [load_weights(tmp_path / "plain", str(step))["whole"] for step in range(1, NUM_STEPS + 1)]
    exported = [load_weights(tmp_path / "mean", str(step))["whole"] for step in range(1, NUM_STEPS + 1)]
    assert errors[:4] == own[:4]  # the mean of one set is that set
    assert errors[4] == errors[3] != own[4]  # step 5 takes nothing
    assert errors[5] not in own
    for step in range(4):
        assert_same_weights(exported[step], weights[step])
    assert_same_weights(exported[4], weights[3])
    for name, value in exported[5].items():
        torch.testing.assert_close(value, (weights[3][name] + weights[5][name]) / 2)


def test_a_run_that_began_without_a_mean_goes_on_with_one_from_the_next_weights(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(tmp_path, FakeBatches(stopped_at=8), keep=9)
    trainer = train(tmp_path, resume=True, mean=(5, 2), intervals=Intervals(save=1), keep=9)
    assert latest_checkpoint(tmp_path) is not None
    assert_same_weights(load_weights(tmp_path)["whole"], trainer.updater.parallel.model.state_dict())


def test_a_complete_run_is_only_evaluated_again(tmp_path: Path) -> None:
    whole = train(tmp_path)
    with assembled(tmp_path, resume=True, evaluation=evaluation) as trainer:
        assert trainer.fit().keys() == {"error"}
    assert trainer.state == whole.state


def test_a_complete_run_that_was_evaluated_has_nothing_left_to_do(tmp_path: Path) -> None:
    train(tmp_path, evaluation=evaluation)
    before = read_metrics(tmp_path)
    with assembled(tmp_path, resume=True, evaluation=evaluation) as trainer:
        metrics = trainer.fit()
    assert isinstance(trainer.updater.task, FakeTask)
    assert trainer.updater.task.evaluated_in_training_mode == []
    assert {f"evaluation/{name}": value for name, value in metrics.items()} == before[-1]["metrics"]
    assert read_metrics(tmp_path) == before


def test_a_crash_before_the_best_is_marked_does_not_lose_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = SETTINGS | {"best": ("error", "lowest"), "keep": 1}
    whole = train(tmp_path / "whole", **settings)
    with assembled(tmp_path / "halves", **settings) as trainer:
        monkeypatch.setattr(trainer.saver, "mark_best", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            trainer.fit()
    halves = train(tmp_path / "halves", resume=True, **settings)
    assert halves.saver.best == whole.saver.best is not None
    best = [json.loads((run.run / "checkpoints/best.json").read_text()) for run in (whole, halves)]
    assert best[0] == best[1]
    assert outcome(halves) == outcome(whole)


def test_a_loader_that_ends_is_an_error(tmp_path: Path) -> None:
    with assembled(tmp_path) as trainer:
        trainer.batches = [next(iter(FakeBatches()))]
        with pytest.raises(ValueError, match="ended at step 1"):
            trainer.fit()


def test_a_model_in_evaluation_mode_is_refused(tmp_path: Path) -> None:
    with assembled(tmp_path) as trainer:
        trainer.updater.parallel.model.eval()
        with pytest.raises(ValueError, match="evaluation mode"):
            trainer.fit()


def test_older_checkpoints_are_deleted_and_weights_load_without_the_rest(tmp_path: Path) -> None:
    trainer = train(tmp_path, intervals=Intervals(save=1), keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step_00000005", "step_00000006"]
    assert_same_weights(load_weights(tmp_path)["whole"], trainer.updater.parallel.model.state_dict())


def test_a_checkpoint_is_due_by_the_clock_of_rank_0(tmp_path: Path) -> None:
    train(tmp_path / "always", intervals=Intervals(save_minutes=1e-9), keep=9)
    assert [int(path.name[5:]) for path in checkpoints(tmp_path / "always")] == [1, 2, 3, 4, 5, 6]
    train(tmp_path / "never", intervals=Intervals(save_minutes=60.0), keep=9)
    assert [int(path.name[5:]) for path in checkpoints(tmp_path / "never")] == [6]


class ScriptedTask(FakeTask):
    """Evaluations that give 3, 1, 2, ... in turn."""

    values = (3.0, 1.0, 2.0, 1.5, 2.5, 2.0)

    def evaluate(self, batches: Iterable[Inputs]) -> dict[str, float]:
        super().evaluate(batches)
        return {"error": self.values[len(self.evaluated_in_training_mode) - 1]}


@pytest.mark.parametrize(("which", "step"), [("lowest", 2), ("highest", 1)])
def test_the_best_checkpoint_stays_and_has_a_name(tmp_path: Path, which: Any, step: int) -> None:
    settings: dict[str, Any] = {"evaluation": evaluation, "best": ("error", which)}
    with assembled(tmp_path, intervals=Intervals(save=3, evaluate=1), keep=1, **settings) as trainer:
        trainer.updater.task = scripted = ScriptedTask()
        scripted.model = trainer.updater.parallel.model
        trainer.fit()
    assert [int(path.name[5:]) for path in checkpoints(tmp_path)] == [step, 6]
    assert (tmp_path / "checkpoints/best").resolve().name == f"step_{step:08d}"
    assert json.loads((tmp_path / "checkpoints/best.json").read_text()) == {
        "step": step,
        "metric": "error",
        "value": ScriptedTask.values[step - 1],
    }
    assert trainer.saver.best == ScriptedTask.values[step - 1]


def test_a_best_metric_that_does_not_exist_is_told_with_those_that_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"best_metric is accuracy, but the evaluation gives error"):
        train(tmp_path, evaluation=evaluation, best=("accuracy", "highest"))


def test_a_failed_save_is_told_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sync, calls = os.fsync, []

    def full_disk(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 1:
            raise OSError(28, "No space left on device")
        sync(descriptor)

    whole = train(tmp_path / "whole")
    with assembled(tmp_path / "full", intervals=Intervals(save=2)) as trainer:
        monkeypatch.setattr(os, "fsync", full_disk)
        trainer.fit()
    assert "No space left on device" in caplog.text
    assert [int(path.name[5:]) for path in checkpoints(tmp_path / "full")][-1] == 6
    assert_same_weights(
        load_checkpoint(checkpoints(tmp_path / "full")[-1]).model, whole.updater.parallel.model.state_dict()
    )


def test_a_last_save_that_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    with assembled(tmp_path, intervals=Intervals(save=4)) as trainer:
        save = trainer.saver.save

        def save_on_a_full_disk(checkpoint: Any) -> None:
            if checkpoint.state.step == 6:
                trainer.saver.settle()
                monkeypatch.setattr(os, "fsync", full_disk)
            save(checkpoint)

        monkeypatch.setattr(trainer.saver, "save", save_on_a_full_disk)
        with pytest.raises(UserError, match=r"No space left.*all 6 steps are done: make space, then --resume"):
            trainer.fit()
    monkeypatch.undo()
    assert [path.name for path in checkpoints(tmp_path)] == ["step_00000004"]
    assert train(tmp_path, resume=True).state == train(tmp_path / "whole").state


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2])
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


def test_a_clip_is_not_read_from_the_device_between_log_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads late reads the verdict of the step before, never the step under way, and nothing else."""
    read: list[str] = []
    item, tolist = torch.Tensor.__float__, torch.Tensor.tolist
    with assembled(tmp_path, reads_late=True, num_steps=6, intervals=Intervals(log=6)) as trainer:
        log = Tracker.log
        monkeypatch.setattr(torch.Tensor, "__float__", lambda self: read.append("float") or item(self))
        monkeypatch.setattr(torch.Tensor, "item", lambda self: read.append("item") or item(self))
        monkeypatch.setattr(torch.Tensor, "tolist", lambda self: read.append("tolist") or tolist(self))
        monkeypatch.setattr(Tracker, "log", lambda *arguments: read.append("log") or log(*arguments))
        trainer.fit()
    between = read[read.index("log") + 1 : len(read) - read[::-1].index("log") - 1]
    # Steps 2 to 6, each verdict once; the means of the log line are the last read.
    assert between == ["tolist"] * 6


# Functions below this line run in other processes.


def _resume_in_ranks(folder: Path, way: dict[str, Any]) -> list[Any]:
    settings = SETTINGS | {"dropout": 0.5} | way
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


# A late reader learns of the signal in step 3 only in step 4, unless step 3 itself is logged or saved.
@pytest.mark.parametrize(
    ("way", "step"),
    [({}, 3), ({"reads_late": True, "intervals": Intervals(log=5, save=5)}, 4)],
    ids=["at once", "late"],
)
def test_a_signal_to_one_rank_stops_both_and_both_resume_bit_for_bit(
    tmp_path: Path, way: dict[str, Any], step: int
) -> None:
    (first, same_first, random_first), (second, same_second, random_second) = run_in_ranks(
        _resume_in_ranks, tmp_path, way
    )
    assert f"stopped by a signal to another rank after step {step}" in first
    assert f"stopped by SIGTERM after step {step}" in second
    assert same_first
    assert same_second
    assert random_first != random_second


def _resume_in_two(run: Path) -> tuple[dict[str, Any], int, bool, int]:
    path = latest_checkpoint(run)
    assert path is not None
    checkpoint = load_checkpoint(path)
    with assembled(run, resume=True, num_steps=8) as trainer:
        before = {name: value.clone() for name, value in trainer.updater.parallel.model.state_dict().items()}
        trainer.fit()
    return before, trainer.state.step, checkpoint.random is None, len(checkpoint.positions or [])


def test_another_number_of_ranks_goes_on_from_the_same_weights(tmp_path: Path) -> None:
    whole = train(tmp_path)
    for weights, step, is_anew, num_positions in run_in_ranks(_resume_in_two, tmp_path):
        assert_same_weights(weights, whole.updater.parallel.model.state_dict())
        assert (step, is_anew, num_positions) == (8, True, 1)
