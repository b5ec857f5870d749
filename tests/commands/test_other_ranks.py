"""Runs of several ranks: real processes, one command line. They go on in another number, and after one of them was killed."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from mavil.engine.checkpoints.reading import load_checkpoint
from mavil.engine.metrics.tracker import read_metrics
from tests.commands.conftest import Outcome
from tests.support.kills import ORPHAN_SECONDS, differences, newest_step
from tests.support.processes import (
    Fresh,
    Running,
    shared_launcher,
    start_ranks,
    survivors,
    wait_for,
    wait_until,
)

STEPS = 40
NOTICE_SECONDS = 60.0
"""So long after the death of a rank the others may take to end, on a busy machine too; they notice at once."""
TRAINER = {
    "device_batch": 4,
    "device": "cpu",
    "num_threads": 1,
    "log_every": 1,
    "checkpoint_every": "3 steps",
    "evaluate_every": "8 steps",
}


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "mavil")


@pytest.fixture
def torchrun() -> Iterator[Fresh]:
    starter = Fresh(*TORCHRUN)
    yield starter
    starter.close()


def test_a_run_of_one_process_goes_on_in_two(
    mavil: Callable[..., Outcome], recipe: Callable[..., Path], torchrun: Fresh, tmp_path: Path
) -> None:
    path = recipe("stage1", steps=6)
    assert mavil("train", path, "--out", "run").code == 0
    # As if the run had died between the third and the last step.
    (tmp_path / "run/checkpoints/step_00000006").rename(tmp_path / "lost")
    refused = mavil("train", path, "trainer.device_batch=4", "--out", "run", "--resume")
    assert refused.code == 2
    assert "the run's steps had 8 clips over all ranks, with 1 ranks they would have 4" in refused.err
    again = ["train", path, "trainer.device_batch=4", "--out", "run", "--resume"]
    assert wait_for(torchrun.start(again, tmp_path, tmp_path / "log"), 240) == 0, (tmp_path / "log").read_text()
    told = (tmp_path / "log").read_text()
    assert "the data go on with other readers (world_size was 1, is 2; batch_size was 8, is 4)" in told
    newest = load_checkpoint(tmp_path / "run/checkpoints/step_00000006")
    assert newest.state.samples_seen == 6 * 8
    assert newest.positions is not None
    assert [place["readers"]["world_size"] for place in newest.positions] == [2, 2]
    assert [line["step"] for line in read_metrics(tmp_path / "run") if "loss/total" in line["metrics"]] == [
        *range(1, 7)
    ]


@pytest.fixture
def train(recipe: Callable[..., Path], shards: Path, tmp_path: Path) -> Callable[[str], list[object]]:
    """The command line of one and the same run in a folder of some name; two loader workers on each rank."""
    data = {"train": str(shards / "train"), "evaluation": str(shards / "gallery"), "num_workers": 2}
    path = recipe("ranks", steps=STEPS, data=data, trainer=TRAINER)
    return lambda run: ["train", path, "--out", tmp_path / run, "--resume"]


def undisturbed(arguments: Sequence[object], folder: Path) -> None:
    for rank in start_ranks(shared_launcher(), 2, arguments, folder, folder / "undisturbed.log"):
        assert wait_for(rank, 180) == 0, (folder / "undisturbed.log").read_text()


def test_a_rank_that_is_killed_ends_the_others_and_the_run_goes_on(
    train: Callable[[str], list[object]], tmp_path: Path
) -> None:
    """No torchrun here that would end the others: they must notice by themselves."""
    undisturbed(train("whole"), tmp_path)
    run, log = tmp_path / "killed", tmp_path / "killed.log"
    for victim in (1, 0):  # rank 0 also keeps the list of who takes part
        reached = newest_step(run)
        ranks = start_ranks(shared_launcher(), 2, train("killed"), tmp_path, log)
        assert wait_until(lambda reached=reached: newest_step(run) > reached or None, 120, pause=0.002)
        os.kill(ranks[victim].pid, signal.SIGKILL)
        killed_at = time.monotonic()
        assert wait_for(ranks[1 - victim], NOTICE_SECONDS) not in (0, 75)
        for rank in ranks:
            assert wait_until(lambda pid=rank.pid: not survivors(pid) or None, ORPHAN_SECONDS), survivors(rank.pid)
        print(f"rank {victim} killed: all had ended after {time.monotonic() - killed_at:.1f} s")
    assert newest_step(run) < STEPS
    for rank in start_ranks(shared_launcher(), 2, train("killed"), tmp_path, log):
        assert wait_for(rank, 180) == 0, log.read_text()[-3000:]
    assert differences(tmp_path / "whole", run) == []


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all_of_them_after_the_same_step(
    train: Callable[[str], list[object]], tmp_path: Path
) -> None:
    undisturbed(train("whole"), tmp_path)
    run, log = tmp_path / "stopped", tmp_path / "stopped.log"
    ranks = start_ranks(shared_launcher(), 2, train("stopped"), tmp_path, log)
    assert wait_until(lambda: newest_step(run) or None, 120, pause=0.002)
    os.kill(ranks[1].pid, signal.SIGUSR1)
    assert [wait_for(rank, 120) for rank in ranks] == [75, 75], log.read_text()[-3000:]
    assert newest_step(run) < STEPS
    assert f"after step {newest_step(run)} of {STEPS}" in log.read_text()
    for rank in start_ranks(shared_launcher(), 2, train("stopped"), tmp_path, log):
        assert wait_for(rank, 180) == 0, log.read_text()[-3000:]
    assert differences(tmp_path / "whole", run) == []


def rank_of(torchrun: Running, rank: int) -> int:
    """The process of a rank that torchrun has started; newer ones give each a session of its own."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            variables = (entry / "environ").read_bytes().split(b"\0")
            if parent == torchrun.pid and f"RANK={rank}".encode() in variables:
                return int(entry.name)
    raise AssertionError(f"no rank {rank} among the children of {torchrun.pid}")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_torchrun(
    train: Callable[[str], list[object]], torchrun: Fresh, tmp_path: Path, number: signal.Signals
) -> None:
    """SIGKILL of one rank, and SIGTERM of torchrun itself as schedulers send it."""
    undisturbed(train("whole"), tmp_path)
    run, log = tmp_path / "run", tmp_path / "run.log"
    process = torchrun.start([*train("run")], tmp_path, log)
    assert wait_until(lambda: newest_step(run) or None, 240, pause=0.002)
    ranks = [rank_of(process, rank) for rank in (0, 1)]
    os.kill(ranks[1] if number == signal.SIGKILL else process.pid, number)
    began = time.monotonic()
    assert wait_for(process, 2 * NOTICE_SECONDS) not in (0, None)
    for session in (process.pid, *ranks):
        assert wait_until(lambda session=session: not survivors(session) or None, ORPHAN_SECONDS), survivors(session)
    print(f"{number.name}: torchrun and its ranks had ended after {time.monotonic() - began:.1f} s")
    stopped_at = newest_step(run)
    assert stopped_at < STEPS
    if number == signal.SIGTERM:
        assert f"stopped by SIGTERM after step {stopped_at} of {STEPS}" in log.read_text()
    process = torchrun.start([*train("run")], tmp_path, log)
    assert wait_for(process, 240) == 0, log.read_text()[-3000:]
    assert differences(tmp_path / "whole", run) == []
