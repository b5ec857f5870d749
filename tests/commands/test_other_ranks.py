"""A run that goes on with another number of ranks: real processes, one command line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from mavil.engine.checkpoint import load_checkpoint
from mavil.engine.tracker import read_metrics
from tests.commands.conftest import Outcome


def test_a_run_of_one_process_goes_on_in_two(
    mavil: Callable[..., Outcome], recipe: Callable[..., Path], tmp_path: Path
) -> None:
    path = recipe("stage1", steps=6)
    assert mavil("train", path, "--out", "run").code == 0
    # As if the run had died between the third and the last step.
    (tmp_path / "run/checkpoints/step_00000006").rename(tmp_path / "lost")
    refused = mavil("train", path, "trainer.device_batch=4", "--out", "run", "--resume")
    assert refused.code == 2
    assert "the run's steps had 8 clips over all ranks, with 1 ranks they would have 4" in refused.err
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "mavil"]
    arguments = ["train", str(path), "trainer.device_batch=4", "--out", "run", "--resume"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "the data go on with other readers (world_size was 1, is 2; batch_size was 8, is 4)" in done.stderr
    newest = load_checkpoint(tmp_path / "run/checkpoints/step_00000006")
    assert newest.state.samples_seen == 6 * 8
    assert newest.positions is not None
    assert [place["readers"]["world_size"] for place in newest.positions] == [2, 2]
    assert [line["step"] for line in read_metrics(tmp_path / "run") if "loss/total" in line["metrics"]] == [
        *range(1, 7)
    ]
