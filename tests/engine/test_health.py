"""Collapse: told once until it is over, or the run ends with a checkpoint, on every rank alike; healthy runs hear nothing."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from mavil import distributed
from mavil.engine.checkpoints.reading import latest_checkpoint
from mavil.engine.health import COLLAPSED, LINES_IN_A_ROW, Health
from mavil.engine.metrics.tracker import read_metrics
from mavil.engine.trainer import Intervals
from mavil.structs import Inputs, LossReport, UserError
from mavil.tasks.base import Limit, Monitored
from tests.engine.fake import FakeBatches, FakeTask, evaluation, train
from tests.support.ranks import run_in_ranks

LIMITS = {"train/spread": Limit(0.1, "all outputs are alike", "lower optimizer.base_lr")}
EVERY_STEP = Intervals(log=1)
LONG = 2 * LINES_IN_A_ROW + 4


def health(stops: bool = False, warmup_steps: int = 0) -> Health:
    return Health(LIMITS, warmup_steps, stops)


class SpreadTask(FakeTask):
    """Logs a spread that falls below 0.1 from step 4 on, and the mean over ranks alone shows it."""

    low = range(4, 1000)

    def loss(self, inputs: Inputs, step: int) -> LossReport:
        report = super().loss(inputs, step)
        value = 0.05 if step + 1 in self.low else 1.0
        # One rank says 0 and the other twice as much, or all say the same.
        shares = {1: [1.0], 2: [0.0, 2.0]}[distributed.world_size()]
        report.scalars["spread"] = torch.tensor(value * shares[distributed.rank()])
        return report

    def collapse_limits(self) -> dict[str, Limit]:
        return LIMITS


class RecoveringTask(SpreadTask):
    """Below for as long as it takes and one more, above, and below again."""

    low = range(2, 2 + LINES_IN_A_ROW + 1)


class SpreadAgain(SpreadTask):
    """Every few steps a step above."""

    @property
    def low(self) -> Any:  # type: ignore[override]
        return [step for step in range(1000) if step % LINES_IN_A_ROW]


def lines(run: Path) -> dict[int, float]:
    return {line["step"]: line["metrics"][COLLAPSED] for line in read_metrics(run) if COLLAPSED in line["metrics"]}


def seen(watch: Health, values: Mapping[int, float]) -> list[int]:
    """Steps at which it was collapsed."""
    return [step for step, value in values.items() if watch.look_at(step, {"train/spread": value})[COLLAPSED] == 1]


def test_it_takes_some_lines_in_a_row() -> None:
    n = LINES_IN_A_ROW
    assert seen(health(), dict.fromkeys(range(1, n + 3), 0.05)) == [n, n + 1, n + 2]
    assert seen(health(), dict.fromkeys(range(1, n + 3), 0.1)) == []
    interrupted = {step: 0.05 if step % n else 0.2 for step in range(1, 5 * n)}
    assert seen(health(), interrupted) == []


def test_lines_of_the_warm_up_do_not_count() -> None:
    n = LINES_IN_A_ROW
    assert seen(health(warmup_steps=20), dict.fromkeys(range(1, 30), 0.05)) == list(range(20 + n, 30))


def test_a_line_without_the_metric_changes_nothing_and_nothing_is_logged_without_limits() -> None:
    watch = health()
    assert seen(watch, dict.fromkeys(range(1, LINES_IN_A_ROW), 0.05)) == []
    assert watch.look_at(50, {"loss/total": 1.0}) == {COLLAPSED: 0.0}
    assert watch.look_at(51, {"train/spread": 0.05}) == {COLLAPSED: 1.0}
    assert Health().look_at(1, {"train/spread": 0.0}) == {}


def test_a_value_that_is_no_number_is_no_collapse() -> None:
    assert seen(health(), dict.fromkeys(range(1, 20), float("nan"))) == []


def test_a_warning_comes_once_until_it_is_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    settings: dict[str, Any] = {"intervals": EVERY_STEP, "num_steps": LONG}
    train(tmp_path / "once", make_task=SpreadTask, health=health(), **settings)
    first = 3 + LINES_IN_A_ROW
    assert lines(tmp_path / "once") == {step: float(step >= first) for step in range(1, LONG + 1)}
    told = [record for record in caplog.records if "collapse" in record.message]
    assert [record.levelname for record in told] == ["WARNING"]
    message = told[0].getMessage()
    assert message.startswith(f"step {first}: collapse: train/spread is 0.05, below 0.1 in {LINES_IN_A_ROW} log lines")
    assert "all outputs are alike; lower optimizer.base_lr. Training goes on" in message
    assert "\n" not in message
    caplog.clear()
    train(tmp_path / "recovers", make_task=RecoveringTask, health=health(), **settings)
    last = 1 + LINES_IN_A_ROW + 1
    assert [step for step, is_low in lines(tmp_path / "recovers").items() if is_low] == [last - 1, last]
    told = [record for record in caplog.records if "collapse" in record.message]
    assert told[0].getMessage().startswith(f"step {last - 1}: collapse: ")
    assert [record.getMessage() for record in told[1:]] == [f"step {last + 1}: recovered from collapse"]


def test_a_healthy_run_hears_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, task in (("again", SpreadAgain), ("plain", FakeTask)):
        train(
            tmp_path / name,
            make_task=task,
            health=health(stops=True),
            intervals=EVERY_STEP,
            num_steps=3 * LINES_IN_A_ROW,
        )
        assert not any(lines(tmp_path / name).values())
    assert "collapse" not in caplog.text


def test_training_itself_is_the_same_and_a_task_without_limits_logs_the_same(tmp_path: Path) -> None:
    plain = train(tmp_path / "plain", dropout=0.5)
    watched = train(tmp_path / "watched", dropout=0.5, make_task=SpreadTask, health=health())
    assert repr(plain.updater.parallel.model.state_dict()) == repr(watched.updater.parallel.model.state_dict())
    assert not lines(tmp_path / "plain")
    assert isinstance(SpreadTask(), Monitored)
    assert not isinstance(FakeTask(), Monitored)


@pytest.mark.parametrize("reads_late", [False, True])
def test_a_run_that_is_to_end_saves_first_and_says_why(tmp_path: Path, reads_late: bool) -> None:
    end = 3 + LINES_IN_A_ROW
    settings: dict[str, Any] = {"make_task": SpreadTask, "intervals": EVERY_STEP, "reads_late": reads_late}
    with pytest.raises(UserError) as caught:
        train(tmp_path, health=health(stops=True), num_steps=LONG, **settings)
    message = str(caught.value)
    assert "\n" not in message
    for words in (
        "train/spread is 0.05, below 0.1",
        "lower optimizer.base_lr",
        f"after step {end} of {LONG}",
        "--resume",
    ):
        assert words in message
    latest = latest_checkpoint(tmp_path)
    assert latest is not None
    assert latest.name == f"step_{end:08d}"
    assert list(lines(tmp_path)) == list(range(1, end + 1))


def test_a_resumed_run_has_not_forgotten(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Also one that goes on from between two log lines in the middle of a row."""
    settings: dict[str, Any] = {"make_task": SpreadTask, "intervals": Intervals(log=2, save=3)}
    num_steps = 4 * LINES_IN_A_ROW
    whole = train(tmp_path / "whole", health=health(), num_steps=num_steps, **settings)
    with pytest.raises(RuntimeError, match="disk went away"):
        train(tmp_path / "halves", FakeBatches(lost_at=20), health=health(), num_steps=num_steps, **settings)
    assert not any(lines(tmp_path / "halves").values())
    caplog.clear()
    train(tmp_path / "halves", health=health(), num_steps=num_steps, resume=True, **settings)
    assert lines(tmp_path / "halves") == lines(whole.run)
    assert sum(lines(whole.run).values()) > 0
    assert caplog.text.count("collapse: ") == 1


def test_a_run_that_ended_ends_again_unless_it_is_only_told(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"make_task": SpreadTask, "intervals": EVERY_STEP, "num_steps": LONG}
    for end in (3 + LINES_IN_A_ROW, 4 + LINES_IN_A_ROW):
        with pytest.raises(UserError, match=f"Stopped after step {end} "):
            train(tmp_path, health=health(stops=True), resume=end > 3 + LINES_IN_A_ROW, **settings)
    assert train(tmp_path, health=health(), resume=True, **settings).state.step == LONG


def test_a_run_that_collapses_in_its_last_step_is_evaluated_and_no_success(tmp_path: Path) -> None:
    end = 3 + LINES_IN_A_ROW
    settings: dict[str, Any] = {"make_task": SpreadTask, "intervals": EVERY_STEP, "evaluation": evaluation}
    with pytest.raises(UserError, match=f"Stopped after step {end} of {end}"):
        train(tmp_path, health=health(stops=True), num_steps=end, **settings)
    assert "evaluation/error" in read_metrics(tmp_path)[-1]["metrics"]


# Functions below this line run in other processes.


def _collapse_in_ranks(run: Path, reads_late: bool) -> tuple[str, int]:
    settings: dict[str, Any] = {"make_task": SpreadTask, "intervals": EVERY_STEP, "reads_late": reads_late}
    try:
        train(run, health=health(stops=True), num_steps=LONG, **settings)
        message = "not stopped"
    except UserError as error:
        message = str(error)
    resumed = "not stopped"
    try:
        train(run, health=health(stops=True), num_steps=LONG, resume=True, **settings)
    except UserError as error:
        resumed = str(error)
    assert f"Stopped after step {4 + LINES_IN_A_ROW} " in resumed
    latest = latest_checkpoint(run)
    assert latest is not None
    return message, int(latest.name[5:])


@pytest.mark.parametrize("reads_late", [False, True])
def test_all_ranks_leave_together_though_one_alone_sees_it(tmp_path: Path, reads_late: bool) -> None:
    """Rank 0 logs 0 and rank 1 twice the mean: the means decide."""
    (first, step), (second, other) = run_in_ranks(_collapse_in_ranks, tmp_path, reads_late)
    assert first == second
    assert f"train/spread is 0.05, below 0.1 in {LINES_IN_A_ROW} log lines" in first
    assert step == other == 4 + LINES_IN_A_ROW
