"""A disk that is full for a while, or at the end: training goes on, and nothing that was saved is lost."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mavil.engine.checkpoints.reading import load_checkpoint
from tests.support.kills import differences, newest_step
from tests.support.processes import Running, shared_launcher, wait_for, wait_until

STEPS, EVERY = 150, 30
DISK_MIB = 24


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(folder)]
    try:
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        problem = made.stderr.strip()
    except OSError as error:
        made, problem = None, str(error)
    if made is None or made.returncode:
        pytest.skip(f"a file system of its own needs the right to mount one: {problem}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path, left: int) -> None:
    """Leave so many bytes on a disk."""
    with open(disk / "filler", "wb") as file:
        while True:
            free = os.statvfs(disk)
            try:
                return os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - left)
            except OSError:  # the run has just written a line
                os.ftruncate(file.fileno(), 0)


def is_there(run: Path, step: int, process: Running) -> bool:
    """Wait for a checkpoint while the run goes on."""
    return bool(wait_until(lambda: newest_step(run) >= step or process.code() is not None or None, 240, pause=0.003))


@pytest.mark.parametrize(
    "left",
    [
        pytest.param(400_000, id="too_little_for_a_checkpoint"),
        pytest.param(0, id="nothing", marks=pytest.mark.slow),
    ],
)
def test_a_full_disk_costs_checkpoints_and_not_the_run(
    recipe: Callable[..., Path], shards: Path, disk: Path, tmp_path: Path, left: int
) -> None:
    trainer = {
        "device_batch": 4,
        "device": "cpu",
        "num_threads": 1,
        "checkpoint_every": f"{EVERY} steps",
        "log_every": 1,
    }
    data = {"train": str(shards / "train"), "num_workers": 1, "cache_gib": 0.5}
    path = recipe("full", steps=STEPS, data=data, trainer=trainer)
    launcher = shared_launcher()
    whole = launcher.start(["train", path, "--out", tmp_path / "whole"], tmp_path, tmp_path / "whole.log")

    run, log = disk / "run", tmp_path / "full.log"
    process = launcher.start(["train", path, "--out", run, "--resume"], tmp_path, log)
    assert is_there(run, EVERY, process)
    fill(disk, left)
    warning = "the checkpoint could not be written"
    assert wait_until(lambda: warning in log.read_text() or None, 120, pause=0.003)
    (disk / "filler").unlink()
    kept = newest_step(run)
    load_checkpoint(run / f"checkpoints/step_{kept:08d}")  # whole, as its checksums say
    assert is_there(run, kept + 1, process)  # it has tried again by itself

    assert is_there(run, STEPS - EVERY, process)
    fill(disk, left)
    assert wait_for(process, 240) == 2, log.read_text()[-3000:]
    *_, last = log.read_text().splitlines()
    assert last.startswith("mavil: ")
    assert "free" in last
    assert "--resume" in last
    assert newest_step(run) == STEPS - EVERY
    (disk / "filler").unlink()

    assert wait_for(launcher.start(["train", path, "--out", run, "--resume"], tmp_path, log), 240) == 0
    assert wait_for(whole, 240) == 0
    found = differences(tmp_path / "whole", run)
    assert [text for text in found if left or not text.startswith("metrics: 1 and 0 lines of step")] == []
