"""Metrics: exact means, one line per step also after a resume, and something to read on the console."""

from __future__ import annotations

import errno
import io
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mavil import distributed
from mavil.engine.metrics.tracker import Averages, Tracker, memory, read_metrics
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
    names = {"time", "speed/clips_per_second", "memory/resident_gib", "data/skipped_no_audio"}
    assert first["conditions"].keys() == names
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


def test_a_killed_process_leaves_whole_lines(tmp_path: Path) -> None:
    """A line is one write, however long; what was cut off, or is no text at all, is dropped when the run goes on."""
    metrics = {f"loss/term_{i}": 1 / 3 for i in range(2000)} | {"loss/total": 0.5}  # more than any buffer
    path = tmp_path / "metrics.jsonl"
    with Tracker(tmp_path, 10, Console(file=io.StringIO())) as tracker:
        written: list[int] = []
        plain = tracker._lines._file.write
        tracker._lines._file = Spied(tracker._lines._file, lambda line: written.append(n := plain(line) or 0) or n)  # type: ignore[assignment]
        tracker.log(1, metrics, CONDITIONS)
        assert written == [path.stat().st_size]
        assert written[0] > 2 * io.DEFAULT_BUFFER_SIZE
    whole = path.read_bytes()
    for rest in (whole[: len(whole) // 2], b"\xff\xfe\x00", b"\x00" * 100, b"{"):
        path.write_bytes(whole + rest)
        assert [line["step"] for line in read_metrics(tmp_path)] == [1]
        with Tracker(tmp_path, 10, Console(file=io.StringIO()), resumed_step=1) as tracker:
            tracker.log(2, METRICS, CONDITIONS)
            assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2], "a short line is not kept back"


class Spied:
    """A file whose ``write`` is another one."""

    def __init__(self, file: Any, write: Callable[[bytes], int]) -> None:
        self._file, self.write = file, write

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def test_a_full_disk_costs_lines_and_not_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Tracker(tmp_path, 10, Console(file=io.StringIO())) as tracker:
        tracker.log(1, METRICS, CONDITIONS)
        file = tracker._lines._file

        def first_half(line: bytes) -> int:
            return file.write(line[: len(line) // 2]) or 0

        def no_space(line: bytes) -> int:
            first_half(line)
            raise OSError(errno.ENOSPC, "No space left on device")

        for step, write in ((2, first_half), (3, no_space)):
            tracker._lines._file = Spied(file, write)  # type: ignore[assignment]
            tracker.log(step, METRICS, CONDITIONS)
        tracker._lines._file = file
        tracker.log(4, METRICS, CONDITIONS)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 4]
    assert [message for message in caplog.messages if "was not written" in message] == [
        f"{tmp_path / 'metrics.jsonl'}: step 2 was not written: no space left; training goes on"
    ]


class Kept:
    """An output that keeps what it gets, and fails from a step on."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.lines: list[tuple[int, dict[str, float]]] = []
        self.fails_at, self.is_closed = fails_at, False

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if self.fails_at is not None and step >= self.fails_at:
            raise OSError("full")
        self.lines.append((step, dict(values)))

    def close(self) -> None:
        self.is_closed = True


def test_every_output_gets_metrics_and_conditions_and_one_that_fails_is_dropped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = Kept(), Kept(fails_at=2)
    with Tracker(tmp_path, 10, Console(file=io.StringIO()), loggers=[bad, good]) as tracker:
        tracker.log(1, METRICS, CONDITIONS)
        tracker.log(2, METRICS, CONDITIONS)
        tracker.log_evaluation(3, {"accuracy": 0.75})
        assert not good.is_closed
    assert good.is_closed
    assert [step for step, _ in good.lines] == [1, 2, 3]
    assert METRICS.items() <= good.lines[0][1].items()
    assert CONDITIONS.items() <= good.lines[0][1].items()
    assert good.lines[2][1] == {"evaluation/accuracy": 0.75}
    assert len(bad.lines) == 1
    assert [message for message in caplog.messages if "Kept" in message] == [
        "Kept takes no more metrics: full; training goes on"
    ]


def test_waiting_for_data_is_shown_when_it_is_worth_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "mavil"), Tracker(tmp_path, 2, Console(file=io.StringIO())) as tracker:
        tracker.log(1, METRICS, CONDITIONS | {"speed/data_wait_share": 0.1})
        tracker.log(2, METRICS, CONDITIONS | {"speed/data_wait_share": 0.347})
    assert "waiting" not in caplog.messages[0]
    assert "12.5 clips/s  35% waiting for data  " in caplog.messages[1]


def test_averages_wait_for_nothing_until_they_are_read() -> None:
    averages = Averages()
    without_content = torch.empty((), device="meta", requires_grad=True)
    averages.add({"a": without_content, "b": 1.0})
    averages.add({"a": without_content, "b": 2.0})
    with pytest.raises(NotImplementedError):
        averages.state_dict()


def test_memory_is_that_of_this_process() -> None:
    before = memory()["memory/resident_gib"]
    block = torch.ones(2**27)  # half a GiB
    assert memory()["memory/resident_gib"] - before == pytest.approx(0.5, abs=0.1)
    del block


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
        own = {"speed/data_wait_share": 0.4 * distributed.rank(), "speed/clips_per_second": 12.5 + distributed.rank()}
        tracker.log(4, means, own)
        tracker.log_evaluation(4, {"accuracy": 1.0})
    return means


def test_rank_0_writes_for_all(tmp_path: Path) -> None:
    assert run_in_ranks(_track, tmp_path) == [{"loss/total": 0.5}] * 2
    first, second = read_metrics(tmp_path)
    assert first["metrics"] == {"loss/total": 0.5}
    assert first["conditions"]["speed/data_wait_share"] == 0.4, "the rank that waits longest sets the pace"
    assert first["conditions"]["speed/clips_per_second"] == 12.5
    assert first["conditions"]["data/skipped_no_video"] == 2
    assert first["conditions"]["data/skipped_broken"] == 1
    assert first["conditions"]["data/bytes_per_sample"] == 100
    assert second["metrics"] == {"evaluation/accuracy": 1.0}
