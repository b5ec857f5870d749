"""Metrics: exact means, one line per step also after a resume, and something to read on the console."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mavil import distributed
from mavil.engine.tracker import Averages, Tracker, read_metrics
from tests.support.ranks import run_in_ranks

CPU = torch.device("cpu")
METRICS, CONDITIONS = {"loss/total": 0.5}, {"speed/clips_per_second": 12.5}


def test_averages_are_means_since_the_last_read() -> None:
    averages = Averages()
    averages.add({"a": torch.tensor(1.0), "b": 4.0})
    averages.add({"a": torch.tensor(2.0)})
    restored = Averages()
    restored.load_state_dict(averages.state_dict())
    assert averages.read(CPU) == restored.read(CPU) == {"a": 1.5, "b": 4.0}
    assert averages.read(CPU) == {}
    averages.add({"a": 7.0})
    assert averages.read(CPU) == {"a": 7.0}


def test_metrics_go_to_jsonl_and_tensorboard(tmp_path: Path) -> None:
    with Tracker(tmp_path, 10, Console(file=io.StringIO()), counts=lambda: {"skipped_no_audio": 2}) as tracker:
        tracker.log(1, METRICS, CONDITIONS)
        tracker.log_evaluation(1, {"accuracy": 0.75})
    first, second = read_metrics(tmp_path)
    assert (first["step"], first["metrics"]) == (1, METRICS)
    assert first["conditions"].keys() == {"time", "speed/clips_per_second", "data/skipped_no_audio"}
    assert second["metrics"] == {"evaluation/accuracy": 0.75}
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in board.Scalars("loss/total")] == [(1, 0.5)]
    assert board.Scalars("data/skipped_no_audio")[0].value == 2


def test_resume_drops_what_comes_again_and_a_torn_line(tmp_path: Path) -> None:
    with Tracker(tmp_path, 10, Console(file=io.StringIO())) as tracker:
        for step in (2, 4, 6):
            tracker.log(step, {"loss/total": float(step)}, CONDITIONS)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 8, "met')
    assert [line["step"] for line in read_metrics(tmp_path)] == [2, 4, 6]
    with Tracker(tmp_path, 10, Console(file=io.StringIO()), resumed_step=4) as tracker:
        tracker.log(6, {"loss/total": 0.0}, CONDITIONS)
    assert [(line["step"], line["metrics"]["loss/total"]) for line in read_metrics(tmp_path)] == [
        (2, 2),
        (4, 4),
        (6, 0),
    ]


def test_plain_lines_are_few_and_include_the_last_step(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "mavil"), Tracker(tmp_path, 50, Console(file=io.StringIO())) as tracker:
        for step in range(1, 51):
            tracker.log(step, METRICS, CONDITIONS)
    assert [line.partition("  ")[0] for line in caplog.messages] == ["step 1/50", "step 50/50"]
    assert "loss 0.5000  12.5 clips/s" in caplog.messages[0]
    assert caplog.messages[1].endswith("0:00:00 left")


def test_a_terminal_gets_a_bar(tmp_path: Path) -> None:
    screen = io.StringIO()
    with Tracker(tmp_path, 50, Console(file=screen, force_terminal=True, width=100)) as tracker:
        tracker.advance(20)
        tracker.log(20, METRICS, CONDITIONS)
    assert "20/50" in screen.getvalue()
    assert "loss 0.5000  12.5 clips/s" in screen.getvalue()


def _track(run: Path) -> dict[str, float]:
    averages = Averages()
    averages.add({"loss/total": float(distributed.rank())})
    means = averages.read(CPU)
    counts = {"skipped_no_video": 1, "samples": 2, "bytes_read": 100}
    counts |= {} if distributed.rank() else {"skipped_broken": 1, "bytes_read": 300}
    with Tracker(run, 4, Console(file=io.StringIO()), counts=lambda: counts) as tracker:
        tracker.advance(4)
        tracker.log(4, means, CONDITIONS)
        tracker.log_evaluation(4, {"accuracy": 1.0})
    return means


def test_rank_0_writes_for_all(tmp_path: Path) -> None:
    assert run_in_ranks(_track, tmp_path) == [{"loss/total": 0.5}] * 2
    first, second = read_metrics(tmp_path)
    assert first["metrics"] == {"loss/total": 0.5}
    assert first["conditions"]["data/skipped_no_video"] == 2
    assert first["conditions"]["data/skipped_broken"] == 1
    assert first["conditions"]["data/bytes_per_sample"] == 100
    assert second["metrics"] == {"evaluation/accuracy": 1.0}
